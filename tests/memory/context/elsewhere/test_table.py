"""Tables of keys and values: parts of the attention are merged to the attention over all keys."""

import pytest
import torch

from scrubjay.kernels.normalisers import merge
from scrubjay.memory.context.elsewhere.table import Table, partial_attention
from scrubjay.memory.context.policies.dense import Scoring, masked_attention


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("length", [1, 5, 300])
def test_parts_are_merged_exactly(length, cap):
    query = torch.randn(2, 6, length, 8, dtype=torch.float64)
    keys, values = torch.randn(2, 2, 3, 40, 8, dtype=torch.float64)
    valid = torch.ones(2, 40, dtype=torch.bool)
    valid[0, :25] = False  # the first row has no token in the first table
    scoring, tables = Scoring(0.3, cap), []
    for first, last in ((0, 20), (20, 21), (21, 40)):
        table = Table()
        table.append((keys[:, :, first:last], values[:, :, first:last], valid[:, first:last]))
        tables.append(table)
    output = merge([table.attend(query, scoring) for table in tables])
    expected = masked_attention(query, keys, values, valid[:, None].expand(-1, length, -1), scoring)
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-12)


def test_large_scores_are_finite_with_and_without_a_mask():
    query, keys = 1e3 * torch.randn(1, 2, 1, 8), 1e3 * torch.randn(1, 1, 5, 8)
    parts = [
        partial_attention(query, keys, keys, mask, Scoring(1.0))
        for mask in (None, torch.ones(1, 1, 5, dtype=torch.bool))
    ]
    for without, with_mask in zip(*parts, strict=True):
        assert without.isfinite().all()
        torch.testing.assert_close(without, with_mask)


def test_a_table_is_read_cropped_and_reordered():
    table, keys = Table(), torch.randn(2, 1, 300, 4)
    valid = torch.ones(2, 300, dtype=torch.bool)
    for columns in (slice(0, 299), slice(299, 300)):
        table.append((keys[:, :, columns], keys[:, :, columns], valid[:, columns]))
    before = table.nbytes
    table.truncate(200)
    assert table.nbytes < before
    table.reorder(torch.tensor([1, 1, 0]))
    torch.testing.assert_close(table.read(190, 200)[0], keys[[1, 1, 0], :, 190:200], atol=0, rtol=0)
    assert table.columns == 200
