"""The gate's custom backward pass against torch's autograd."""

import pytest
import torch

from scrubjay.memory.parts import gate

DIM = 5


def draw(dtype=torch.float64, *lead):
    generator = torch.Generator().manual_seed(0)
    shapes = [(*lead, DIM), (*lead, DIM), (3 * DIM, DIM), (2 * DIM, DIM), (DIM, DIM), (DIM,)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def test_value_and_gradients_of_two_orders_are_those_of_finite_differences():
    inputs = draw(torch.float64, 2, 3)
    torch.testing.assert_close(gate.apply_gate(*inputs), gate._run_torch(*inputs), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(gate.apply_gate, inputs)
    assert torch.autograd.gradgradcheck(gate.apply_gate, inputs)


@pytest.mark.parametrize("lead", [(), (4,), (2, 3, 4), (0, 3)])
def test_any_leading_dimensions_pass(lead):
    inputs = draw(torch.float32, *lead)
    actual, expected = gate.apply_gate(*inputs), gate._run_torch(*inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    each = (torch.autograd.grad(y.square().sum(), inputs) for y in (actual, expected))
    for one, other in zip(*each, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [30.0, 1e12])
def test_large_inputs_saturate_the_gate_and_stay_finite(size):
    inputs = draw(torch.float32, 4)
    with torch.no_grad():
        for value in inputs[:2]:
            value.mul_(size)
    actual, expected = gate.apply_gate(*inputs), gate._run_torch(*inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert all(g.isfinite().all() for g in torch.autograd.grad(actual.sum() / size, inputs))


def test_gradients_come_in_batches_and_tangents_pass():
    inputs = draw(torch.float64, 3)
    y = gate.apply_gate(*inputs)
    ways = torch.stack([torch.ones_like(y), y.detach()])
    each = [torch.autograd.grad(y, inputs[0], way, retain_graph=True)[0] for way in ways]
    (batched,) = torch.autograd.grad(y, inputs[0], ways, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(batched, torch.stack(each))
    plain = [value.detach() for value in inputs]
    along = torch.func.jvp(lambda x: gate.apply_gate(x, *plain[1:]).sum(), (plain[0],), (torch.ones_like(y),))
    torch.testing.assert_close(along[1], each[0].sum())
