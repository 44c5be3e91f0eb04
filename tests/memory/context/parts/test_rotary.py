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


@pytest.mark.parametrize("layout", LAYOUTS, ids=["halves", "neighbours"])
def test_slots_in_order_and_heads_of_several_kinds_are_the_same_turns(layout):
    rotary, x = make(layout), torch.randn(1, 5, 300, 8, dtype=torch.float64)
    for columns in (3, 300, 7):
        moved = rotary.in_order(columns, x.device)(x[:, :, :columns])
        expected = rotary.move(torch.arange(columns)[None])(x[:, :, :columns])
        torch.testing.assert_close(moved, expected, atol=0, rtol=0)
    places, token = torch.tensor([[4, 9]]), x[:, :, :1]
    turned = rotary.move(places).by_heads([3, 2])(token)
    for heads, place in ((slice(0, 3), 4), (slice(3, 5), 9)):
        expected = by_complex_numbers(token[:, heads], torch.tensor([[place]]), layout)
        torch.testing.assert_close(turned[:, heads], expected, atol=1e-12, rtol=1e-12)


def test_frequencies_that_change_are_heeded():
    now = [torch.tensor([1.0, 0.5])]
    rotary = Rotary(Layout(2), lambda: now[0], torch.float64)
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    before = rotary.in_order(4, x.device)(x)
    now[0] = torch.tensor([0.2, 0.1])
    after = rotary.in_order(4, x.device)(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, rotary.move(torch.arange(4)[None])(x))


def test_nothing_is_turned_without_pairs():
    x = torch.randn(1, 2, 3, 4)
    assert Rotary(Layout(0), lambda: torch.zeros(0), torch.float32).move(torch.arange(3)[None])(x) is x
