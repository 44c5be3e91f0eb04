"""How tokens are cut into chunks, and what goes from chunk to chunk."""

import pytest
import torch

from scrubjay.kernels.linear.chunks import decays, in_chunks, in_time, length_of_chunks, run, tokens_of
from scrubjay.kernels.linear.reference import Given


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
def test_chunks_are_powers_of_two_that_waste_little(time, chunk_size, width, length):
    assert length_of_chunks(time, chunk_size, width) == length


def test_what_is_cut_can_be_joined():
    x = torch.randn(2, 11, 3, 5)
    chunks = in_chunks(x, 4)
    assert chunks.shape == (3, 6, 4, 5)
    assert torch.equal(in_time(chunks, 2, 11), x)
    assert torch.equal(chunks[1, 4], x[1, 4:8, 1])
    assert not chunks[2, :, 3].any()


def test_a_decay_is_zero_where_an_episode_begins_and_beyond_all_digits():
    log = torch.tensor([[[0.0], [-1.0], [-81.0], [-torch.inf], [torch.nan]]], requires_grad=True)
    start = torch.tensor([[False, False, False, False, True]])
    found = decays(log, start)
    assert found.shape == (1, 5, 1, 1)
    torch.testing.assert_close(found.flatten(), torch.tensor([1, 1 / torch.e, 0, 0, 0]))
    (grad,) = torch.autograd.grad(found.sum(), log)
    torch.testing.assert_close(grad.flatten(), torch.tensor([1, 1 / torch.e, 0, 0, 0]))


def test_what_lies_behind_the_last_token_changes_no_state():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    given = (
        normal(1, 5, 1, 3),
        normal(1, 5, 1, 3),
        normal(1, 5, 1, 2),
        -normal(1, 5, 1).abs(),
        normal(1, 5, 1),
    )
    state = normal(1, 3, 2)
    found = [run(tokens_of(Given(*given, state), None, length), state, "delta")[:2] for length in (1, 8)]
    torch.testing.assert_close(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][0].flatten(), found[1][0][:, :, :5].flatten())
