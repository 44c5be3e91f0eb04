"""Turning by positions: what complex numbers say, for every layout, of one token as of many."""

import pytest
import torch

from scrubjay.memory.context.parts.rotary import Layout, Rotary

FREQUENCIES = torch.tensor([1.0, 0.3, 0.05])
LAYOUTS = [Layout(3), Layout(3, neighbours=True)]


def make(layout, dtype=torch.float64):
    return Rotary(layout, lambda: FREQUENCIES, dtype)


def by_complex_numbers(x, positions, layout):
    """Return `x`, "batch heads length width", turned by positions, "batch length"."""
    moved, still = x[..., :6], x[..., 6:]
    pairs = moved.unflatten(-1, (3, 2)) if layout.neighbours else moved.unflatten(-1, (2, 3)).mT
    angle = positions[:, None, :, None].double() * FREQUENCIES.double()
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.exp(1j * angle))
    turned = turned.flatten(-2) if layout.neighbours else turned.mT.flatten(-2)
    return torch.cat([turned, still], dim=-1)


@pytest.mark.parametrize("width", [6, 8])
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["halves", "neighbours"])
def test_tokens_are_turned_as_complex_numbers(layout, length, width):
    x = torch.randn(2, 3, length, width, dtype=torch.float64, requires_grad=True)
    positions = torch.randint(-50, 50, (2, length))
    turned = make(layout).move(positions)(x)
    expected = by_complex_numbers(x, positions, layout)
    torch.testing.assert_close(turned, expected, atol=1e-12, rtol=1e-12)
    weights = torch.randn_like(turned)
    ours, theirs = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (turned, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["halves", "neighbours"])
def test_what_the_model_turned_is_turned_on_to_where_it_is_wanted(layout):
    given, wanted = torch.tensor([[7, 2000, 1_000_000]]), torch.tensor([[0, 3, 999]])
    x = torch.randn(1, 2, 3, 8, dtype=torch.float64)
    # As models do it, in float32.
    angle = (given[..., None].float() * FREQUENCIES).double()[:, None]
    as_taken = Rotary(layout, lambda: torch.ones(3), torch.float64)._turn(angle[:, 0])(x)
    moved = make(layout).turn(given, wanted)(as_taken)
    torch.testing.assert_close(moved, by_complex_numbers(x, wanted, layout), atol=1e-9, rtol=1e-9)


def side_by_side(x, layout):
    """Return `x` with pairs of coordinates brought together, as the definition of a layout has them."""
    if layout.neighbours:
        return x
    return torch.cat([torch.stack([x[..., :3], x[..., 3:6]], dim=-1).flatten(-2), x[..., 6:]], dim=-1)


@pytest.mark.parametrize("width", [6, 7, 8])
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["halves", "neighbours"])
def test_pairs_that_lie_together_are_turned_alike(layout, length, width):
    rotary = make(layout)
    x = torch.randn(2, 3, length, width, dtype=torch.float64, requires_grad=True)
    given, wanted = torch.randint(0, 50, (2, 2, length)).unbind()
    expected = side_by_side(by_complex_numbers(x, wanted, layout), layout)
    assert torch.equal(layout.together(x), side_by_side(x, layout))
    assert torch.equal(layout.apart(layout.together(x)), x)
    together = rotary.spin(torch.zeros_like(wanted), wanted).together(x)
    torch.testing.assert_close(together, expected, atol=1e-12, rtol=1e-12)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (together, expected)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-12)
    # What the model has turned, in float32, and what lies together already, turned on.
    angle = (given[..., None].float() * FREQUENCIES).double()
    as_taken = Rotary(layout, lambda: torch.ones(3), torch.float64)._turn(angle)(x)
    torch.testing.assert_close(rotary.spin(given, wanted).together(as_taken), expected)
    torch.testing.assert_close(rotary.spin_by(wanted)(side_by_side(x, layout)), expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["halves", "neighbours"])
def test_slots_in_order_and_heads_of_several_kinds_are_the_same_turns(layout):
    rotary, x = make(layout), torch.randn(1, 5, 300, 8, dtype=torch.float64)
    for columns in (3, 300, 7):
        moved = rotary.in_order(columns, x.device)(x[:, :, :columns])
        expected = rotary.spin_by(torch.arange(columns)[None])(x[:, :, :columns])
        torch.testing.assert_close(moved, expected, atol=0, rtol=0)
        part = rotary.in_order(columns, x.device).part(1, columns)(x[:, :, 1:columns])
        torch.testing.assert_close(part, expected[:, :, 1:], atol=0, rtol=0)
    places, token = torch.tensor([[4, 9]]), x[:, :, :1]
    both = rotary.move(places).by_heads([3, 2])(token)
    together = rotary.spin_by(places).by_heads([3, 2]).together(token)
    for heads, place in ((slice(0, 3), 4), (slice(3, 5), 9)):
        expected = by_complex_numbers(token[:, heads], torch.tensor([[place]]), layout)
        torch.testing.assert_close(both[:, heads], expected, atol=1e-12, rtol=1e-12)
        expected = side_by_side(expected, layout)
        torch.testing.assert_close(together[:, heads], expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["halves", "neighbours"])
def test_half_precision_is_rounded_once(layout, dtype):
    x, positions = torch.randn(1, 2, 4, 8).to(dtype), torch.tensor([[0, 3, 500, 7]])
    turned = make(layout, torch.float32).spin_by(positions).together(x)
    exact = side_by_side(by_complex_numbers(x.double(), positions, layout), layout)
    assert turned.dtype == dtype
    torch.testing.assert_close(turned, exact.float().to(dtype), atol=1e-5, rtol=torch.finfo(dtype).eps)


def test_what_was_made_in_inference_mode_serves_gradients():
    rotary, x = make(Layout(3)), torch.randn(1, 1, 4, 6, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        rotary.in_order(4, x.device)
    rotary.in_order(4, x.device).together(x).sum().backward()
    assert x.grad is not None
    assert x.grad.any()


def test_frequencies_that_change_are_heeded():
    now = [torch.tensor([1.0, 0.5])]
    rotary = Rotary(Layout(2), lambda: now[0], torch.float64)
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    before = rotary.in_order(4, x.device)(x)
    now[0] = torch.tensor([0.2, 0.1])
    after = rotary.in_order(4, x.device)(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, rotary.spin_by(torch.arange(4)[None])(x))


def test_nothing_is_turned_without_pairs():
    x, rotary = torch.randn(1, 2, 3, 4), Rotary(Layout(0), lambda: torch.zeros(0), torch.float32)
    assert rotary.move(torch.arange(3)[None])(x) is x
    spin = rotary.spin_by(torch.arange(3)[None])
    assert spin(x) is spin.together(x) is x
