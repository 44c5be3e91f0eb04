"""Benchmark of segments: the full-attention baseline is causal and gives equal results in pieces."""

import torch

from scrubjay.experiments.bench.segments import FullAttention

DIM, HEADS = 8, 2


def compute_keys_values(block, x):
    """Compute the keys and values of steps, `[batch, heads, time, d]`."""
    normalized = block.norm(x)
    return [
        projection(normalized).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for projection in (block.key, block.value)
    ]


def test_a_segment_after_its_history_is_read_as_the_whole_at_once():
    torch.manual_seed(0)
    block, x = FullAttention(DIM, HEADS), torch.randn(3, 9, DIM)
    empty = torch.zeros(3, HEADS, 0, DIM // HEADS)
    whole = block(x, empty, empty)
    torch.testing.assert_close(block(x[:, 5:], *compute_keys_values(block, x[:, :5])), whole[:, 5:])


def test_later_steps_change_nothing_before_them():
    torch.manual_seed(1)
    block, x = FullAttention(DIM, HEADS), torch.randn(2, 6, DIM)
    empty = torch.zeros(2, HEADS, 0, DIM // HEADS)
    other = torch.cat([x[:, :4], torch.randn(2, 2, DIM)], dim=1)
    before, after = block(x, empty, empty), block(other, empty, empty)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])
