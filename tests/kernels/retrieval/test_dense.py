"""Dense attention to all chunks with analytic gradients, in blocks of any size, against plain operations."""

import pytest
import torch

from scrubjay.kernels.retrieval import dense
from scrubjay.kernels.retrieval.dense import attend_all

BATCH, GROUPS, CHUNKS, LENGTH, SHARED, TIME, WIDTH, VALUE = 3, 2, 4, 5, 2, 3, 6, 7


def draw_inputs(per_head_weights: bool) -> list[torch.Tensor]:
    """Return queries, keys, values and weights; with `per_head_weights`, each head has its own weights."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    heads = (BATCH * GROUPS, SHARED * TIME)
    steps = CHUNKS * LENGTH
    shape = (BATCH, GROUPS, CHUNKS, 1, SHARED, TIME) if per_head_weights else (BATCH, 1, CHUNKS, 1, 1, TIME)
    weights = random(*shape).masked_fill(torch.rand(shape, generator=generator) < 0.3, 0)
    return [
        random(heads[0], WIDTH, heads[1]),
        random(heads[0], steps, WIDTH),
        random(heads[0], VALUE, steps),
        weights,
    ]


@pytest.mark.parametrize("per_head_weights", [False, True])
@pytest.mark.parametrize("scalars", [1, 130, 260, 500, 1 << 20])
def test_blocks_of_any_size_read_and_are_differentiated_alike(per_head_weights, scalars, monkeypatch):
    monkeypatch.setattr(dense, "_BLOCK_SCALARS", scalars)
    inputs = [tensor.requires_grad_() for tensor in draw_inputs(per_head_weights)]
    # Keys may also be stored with features before steps.
    inputs[1] = inputs[1].detach().mT.contiguous().mT.requires_grad_()
    outs = [attend_all(*inputs), dense._attend_plain(*inputs)]
    torch.testing.assert_close(outs[0], outs[1])
    slope = torch.randn(outs[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    block_grads, plain_grads = (torch.autograd.grad(out, inputs, slope) for out in outs)
    for block_grad, plain_grad in zip(block_grads, plain_grads, strict=True):
        torch.testing.assert_close(block_grad, plain_grad)


@pytest.mark.parametrize("constant", [(), (1, 2), (0, 3)])
def test_derivatives_of_both_orders_whatever_is_constant(constant):
    inputs = [
        tensor.requires_grad_(i not in constant)
        for i, tensor in enumerate(draw_inputs(per_head_weights=False))
    ]
    assert torch.autograd.gradcheck(attend_all, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(attend_all, inputs, fast_mode=True)


def test_forward_mode_and_function_transforms_see_plain_operations():
    inputs = draw_inputs(per_head_weights=True)
    tangents = [torch.ones_like(tensor) for tensor in inputs]
    tangent = torch.func.jvp(attend_all, tuple(inputs), tuple(tangents))[1]
    step = 1e-6
    shifted_outs = [
        attend_all(*(x + sign * step * t for x, t in zip(inputs, tangents, strict=True))) for sign in (1, -1)
    ]
    torch.testing.assert_close(
        tangent, (shifted_outs[0] - shifted_outs[1]) / (2 * step), rtol=1e-6, atol=1e-6
    )
