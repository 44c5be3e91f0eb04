"""Splitting of tokens into chunks, and the state passed between chunks."""

import pytest
import torch

from scrubjay.kernels.linear.chunks import (
    choose_chunk_length,
    compute_decays,
    from_chunks,
    run,
    split_tokens,
    to_chunks,
)
from scrubjay.kernels.linear.reference import LinearInputs


@pytest.mark.parametrize(
    ("time", "chunk_size", "width", "length"),
    [
        (2048, 64, 64, 32),
        (2048, 64, 128, 64),
        (2048, 16, 64, 16),
        (40, 64, 64, 16),
        (5, 64, 64, 8),
        (1, 64, 8, 1),
    ],
)
def test_chunk_lengths_are_powers_of_two_with_little_padding(time, chunk_size, width, length):
    assert choose_chunk_length(time, chunk_size, width) == length


def test_chunks_join_to_the_original():
    x = torch.randn(2, 11, 3, 5)
    chunks = to_chunks(x, 4)
    assert chunks.shape == (3, 6, 4, 5)
    assert torch.equal(from_chunks(chunks, 2, 11), x)
    assert torch.equal(chunks[1, 4], x[1, 4:8, 1])
    assert not chunks[2, :, 3].any()


def test_a_decay_is_zero_at_episode_starts_and_if_negligible():
    log = torch.tensor([[[0.0], [-1.0], [-81.0], [-torch.inf], [torch.nan]]], requires_grad=True)
    start = torch.tensor([[False, False, False, False, True]])
    result = compute_decays(log, start)
    assert result.shape == (1, 5, 1, 1)
    torch.testing.assert_close(result.flatten(), torch.tensor([1, 1 / torch.e, 0, 0, 0]))
    (grad,) = torch.autograd.grad(result.sum(), log)
    torch.testing.assert_close(grad.flatten(), torch.tensor([1, 1 / torch.e, 0, 0, 0]))


def test_padding_does_not_change_the_state():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = (
        normal(1, 5, 1, 3),
        normal(1, 5, 1, 3),
        normal(1, 5, 1, 2),
        -normal(1, 5, 1).abs(),
        normal(1, 5, 1),
    )
    state = normal(1, 3, 2)
    result = [
        run(split_tokens(LinearInputs(*inputs, state), None, length), state, "delta")[:2] for length in (1, 8)
    ]
    torch.testing.assert_close(result[0][1], result[1][1])
    torch.testing.assert_close(result[0][0].flatten(), result[1][0][:, :, :5].flatten())
