"""Masked attention: torch's fused kernels and explicit scores give equal results."""

import pytest
import torch

from scrubjay.memory.context.policies.dense import Scoring, causal_attention, masked_attention


def tensors(length, columns, heads=4, groups=2):
    generator = torch.Generator().manual_seed(0)
    shapes = ((heads, length), (groups, columns), (groups, columns))
    return [torch.randn(2, h, n, 8, generator=generator, dtype=torch.float64) for h, n in shapes]


@pytest.mark.parametrize(("length", "columns"), [(1, 9), (5, 5), (5, 9), (300, 310)])
@pytest.mark.parametrize("padded", [False, True])
def test_a_cap_and_sinks_that_do_nothing_change_nothing(length, columns, padded):
    query, keys, values = tensors(length, columns)
    valid = torch.arange(columns) >= torch.tensor([[3], [0]]) if padded else None
    plain = causal_attention(query, keys, values, valid, Scoring(0.4))
    nothing = Scoring(0.4, 1e9, torch.full((4,), -1e9, dtype=torch.float64))
    assert not nothing.is_plain
    special = causal_attention(query, keys, values, valid, nothing)
    visible = slice(None) if valid is None else valid[:, columns - length :]
    torch.testing.assert_close(special.transpose(1, 2)[visible], plain.transpose(1, 2)[visible])


def test_the_weights_of_a_key_head_are_those_among_all_heads():
    query, keys, _ = tensors(5, 9)
    products = (query.reshape(2, 2, -1, 8) @ keys.mT).unflatten(2, (2, 5))
    for sinks in (None, torch.tensor([0.0, 1.0, -2.0, 3.0], dtype=torch.float64)):
        scoring = Scoring(0.4, 2.0, sinks)
        weights = scoring.compute_weights(products)
        for head, own in enumerate(scoring.split(2)):
            part = slice(head, head + 1)
            torch.testing.assert_close(own.compute_weights(products[:, part]), weights[:, part])


def test_a_sink_takes_its_share_and_a_cap_bounds_the_rest():
    query, keys, values = tensors(3, 6)
    mask = torch.rand(2, 3, 6, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[:, :, 0] = True
    sinks = torch.tensor([0.0, 1.0, -2.0, 3.0], dtype=torch.float64)
    out = masked_attention(query, keys, values, mask, Scoring(0.4, 2.0, sinks))
    for row in range(2):
        for head in range(4):
            scores = 2 * torch.tanh(query[row, head] @ keys[row, head // 2].T * 0.4 / 2)
            weights = scores.exp() * mask[row]
            share = weights / (weights.sum(dim=-1, keepdim=True) + sinks[head].exp())
            torch.testing.assert_close(out[row, head], share @ values[row, head // 2])
