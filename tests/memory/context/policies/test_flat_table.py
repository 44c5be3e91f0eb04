"""A flat table of tokens of heads with different numbers, against lists of tokens."""

import itertools

import pytest
import torch

from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.flat_table import RaggedTokens, attend_ragged

LENGTHS = {"uneven": [[3, 0], [5, 2]], "equal": [[4, 4], [4, 4]]}


def make(lengths, first=0):
    sizes = [size for row in lengths for size in row]
    table = torch.arange(first, first + sum(sizes)).double()[:, None]
    return RaggedTokens(table.repeat(1, 4).sin(), table, torch.tensor(lengths))


def as_lists(tokens):
    return [part.flatten().tolist() for part in tokens.values.split(tokens.lengths.flatten().tolist())]


@pytest.mark.parametrize(("old", "new"), itertools.product(LENGTHS, repeat=2))
def test_new_tokens_stand_after_those_of_their_head(old, new):
    left, right = make(LENGTHS[old]), make(LENGTHS[new], 100)
    both = left.append(right)
    assert as_lists(both) == [a + b for a, b in zip(as_lists(left), as_lists(right), strict=True)]
    assert both.sizes == both.lengths.flatten().tolist()


@pytest.mark.parametrize("kind", LENGTHS)
def test_tokens_are_selected_reordered_and_padded(kind):
    tokens = make(LENGTHS[kind])
    stays = torch.arange(len(tokens.keys)) % 3 != 1
    expected = [[token for token in part if token % 3 != 1] for part in as_lists(tokens)]
    assert as_lists(tokens.select(stays)) == expected
    again = tokens.reorder(torch.tensor([1, 1, 0]))
    lists = as_lists(tokens)
    assert as_lists(again) == [*lists[2:], *lists[2:], *lists[:2]]
    assert again.sizes == again.lengths.flatten().tolist()
    padded = tokens.pad(tokens.values)
    assert torch.equal(padded[tokens.valid], tokens.values)
    assert not padded[~tokens.valid].any()
    assert tokens.totals == tokens.lengths.sum(dim=1).tolist()


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("kind", LENGTHS)
def test_attention_is_that_of_each_head_alone(kind, cap, padding):
    torch.manual_seed(0)
    past, length = make(LENGTHS[kind]), 4
    query = torch.randn(2, 4, length, 4, dtype=torch.float64)
    keys, values = torch.randn(2, 2, length, 4).double(), torch.randn(2, 2, length, 1).double()
    scoring = Scoring(0.5, cap)
    valid = None
    if padding:
        valid = torch.arange(length) >= torch.tensor([[padding], [0]])
    out = attend_ragged(query, keys, values, past, valid, scoring)
    starts = [0, *itertools.accumulate(past.sizes)]
    for row, head in itertools.product(range(2), range(4)):
        index = 2 * row + head // 2
        own = slice(starts[index], starts[index + 1])
        for place in range(padding if row == 0 else 0, length):
            begin = padding if row == 0 else 0
            k = torch.cat([past.keys[own], keys[row, head // 2, begin : place + 1]])
            v = torch.cat([past.values[own], values[row, head // 2, begin : place + 1]])
            scores = scoring.compute_scores(k @ query[row, head, place])
            torch.testing.assert_close(out[row, head, place], torch.softmax(scores, dim=0) @ v)
