"""The gate by hand against its plain operations."""

import pytest
import torch

from scrubjay.memory.parts import gate

DIM = 5


def draw(dtype=torch.float64, *lead):
    generator = torch.Generator().manual_seed(0)
    shapes = [(*lead, DIM), (*lead, DIM), (3 * DIM, DIM), (2 * DIM, DIM), (DIM, DIM), (DIM,)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def test_value_and_gradients_of_two_orders_are_those_of_finite_differences():
    given = draw(torch.float64, 2, 3)
    torch.testing.assert_close(gate.gated(*given), gate._by_torch(*given), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(gate.gated, given)
    assert torch.autograd.gradgradcheck(gate.gated, given)


@pytest.mark.parametrize("lead", [(), (4,), (2, 3, 4), (0, 3)])
def test_any_leading_dimensions_pass(lead):
    given = draw(torch.float32, *lead)
    found, expected = gate.gated(*given), gate._by_torch(*given)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    each = (torch.autograd.grad(y.square().sum(), given) for y in (found, expected))
    for one, other in zip(*each, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [30.0, 1e12])
def test_what_is_large_shuts_or_opens_the_gate_and_stays_finite(size):
    given = draw(torch.float32, 4)
    with torch.no_grad():
        for value in given[:2]:
            value.mul_(size)
    found, expected = gate.gated(*given), gate._by_torch(*given)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum() / size, given))


def test_gradients_come_in_batches_and_tangents_pass():
    given = draw(torch.float64, 3)
    y = gate.gated(*given)
    ways = torch.stack([torch.ones_like(y), y.detach()])
    each = [torch.autograd.grad(y, given[0], way, retain_graph=True)[0] for way in ways]
    (batched,) = torch.autograd.grad(y, given[0], ways, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(batched, torch.stack(each))
    plain = [value.detach() for value in given]
    along = torch.func.jvp(lambda x: gate.gated(x, *plain[1:]).sum(), (plain[0],), (torch.ones_like(y),))
    torch.testing.assert_close(along[1], each[0].sum())
