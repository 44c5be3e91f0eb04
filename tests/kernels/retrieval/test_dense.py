"""Attention to all chunks by hand, in blocks of any size, against plain operations."""

import pytest
import torch

from scrubjay.kernels.retrieval import dense
from scrubjay.kernels.retrieval.dense import attend_all

BATCH, GROUPS, CHUNKS, LENGTH, SHARED, TIME, WIDTH, VALUE = 3, 2, 4, 5, 2, 3, 6, 7


def given(apart: bool) -> list[torch.Tensor]:
    """Queries, keys, values and weights; `apart` says that heads have weights of their own."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    heads = (BATCH * GROUPS, SHARED * TIME)
    steps = CHUNKS * LENGTH
    shape = (BATCH, GROUPS, CHUNKS, 1, SHARED, TIME) if apart else (BATCH, 1, CHUNKS, 1, 1, TIME)
    weights = random(*shape).masked_fill(torch.rand(shape, generator=generator) < 0.3, 0)
    return [
        random(heads[0], WIDTH, heads[1]),
        random(heads[0], steps, WIDTH),
        random(heads[0], VALUE, steps),
        weights,
    ]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("scalars", [1, 130, 260, 500, 1 << 20])
def test_blocks_of_any_size_read_and_are_differentiated_alike(apart, scalars, monkeypatch):
    monkeypatch.setattr(dense, "_BLOCK_SCALARS", scalars)
    inputs = [tensor.requires_grad_() for tensor in given(apart)]
    # Keys come as features before steps, too.
    inputs[1] = inputs[1].detach().mT.contiguous().mT.requires_grad_()
    outs = [attend_all(*inputs), dense._by_torch(*inputs)]
    torch.testing.assert_close(outs[0], outs[1])
    slope = torch.randn(outs[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, plain = (torch.autograd.grad(out, inputs, slope) for out in outs)
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("constant", [(), (1, 2), (0, 3)])
def test_derivatives_of_both_orders_whatever_is_constant(constant):
    inputs = [tensor.requires_grad_(i not in constant) for i, tensor in enumerate(given(apart=False))]
    assert torch.autograd.gradcheck(attend_all, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(attend_all, inputs, fast_mode=True)


def test_forward_mode_and_function_transforms_see_plain_operations():
    inputs = given(apart=True)
    tangents = [torch.ones_like(tensor) for tensor in inputs]
    tangent = torch.func.jvp(attend_all, tuple(inputs), tuple(tangents))[1]
    step = 1e-6
    moved = [
        attend_all(*(x + sign * step * t for x, t in zip(inputs, tangents, strict=True))) for sign in (1, -1)
    ]
    torch.testing.assert_close(tangent, (moved[0] - moved[1]) / (2 * step), rtol=1e-6, atol=1e-6)
