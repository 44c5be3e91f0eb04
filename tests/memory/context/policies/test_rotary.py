"""Rotations against complex multiplication, for every layout, for one token and for many."""

import pytest
import torch

from scrubjay.memory.context.policies.rotary import PairLayout, Rotary, Rotation

FREQUENCIES = torch.tensor([1.0, 0.3, 0.05])
LAYOUTS = [PairLayout(3), PairLayout(3, is_interleaved=True)]


def make(layout, dtype=torch.float64):
    return Rotary(layout, lambda: FREQUENCIES, dtype)


def by_complex_numbers(x, positions, layout):
    """Rotate `x`, "batch heads length width", by positions, "batch length"."""
    paired_x, rest = x[..., :6], x[..., 6:]
    pairs = paired_x.unflatten(-1, (3, 2)) if layout.is_interleaved else paired_x.unflatten(-1, (2, 3)).mT
    angle = positions[:, None, :, None].double() * FREQUENCIES.double()
    out = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.exp(1j * angle))
    out = out.flatten(-2) if layout.is_interleaved else out.mT.flatten(-2)
    return torch.cat([out, rest], dim=-1)


@pytest.mark.parametrize("width", [6, 8])
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["halves", "interleaved"])
def test_rotation_equals_complex_multiplication(layout, length, width):
    x = torch.randn(2, 3, length, width, dtype=torch.float64, requires_grad=True)
    positions = torch.randint(-50, 50, (2, length))
    out = make(layout).make_rotation(None, positions)(x)
    expected = by_complex_numbers(x, positions, layout)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)
    weights = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (out, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["halves", "interleaved"])
def test_keys_move_from_the_models_positions_to_targets(layout):
    position_ids, targets = torch.tensor([[7, 2000, 1_000_000]]), torch.tensor([[0, 3, 999]])
    x = torch.randn(1, 2, 3, 8, dtype=torch.float64)
    # Models compute angles in float32.
    angle = (position_ids[..., None].float() * FREQUENCIES).double()[:, None]
    as_taken = Rotation(angle.cos(), angle.sin(), layout)(x)
    out = make(layout).make_rotation(position_ids, targets)(as_taken)
    torch.testing.assert_close(out, by_complex_numbers(x, targets, layout), atol=1e-9, rtol=1e-9)


def side_by_side(x, layout):
    """Interleave the pairs of `x` by the definition of the layout."""
    if layout.is_interleaved:
        return x
    return torch.cat([torch.stack([x[..., :3], x[..., 3:6]], dim=-1).flatten(-2), x[..., 6:]], dim=-1)


@pytest.mark.parametrize("width", [6, 7, 8])
@pytest.mark.parametrize("length", [1, 5])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["halves", "interleaved"])
def test_interleaved_pairs_are_rotated_alike(layout, length, width):
    rotary = make(layout)
    x = torch.randn(2, 3, length, width, dtype=torch.float64, requires_grad=True)
    position_ids, targets = torch.randint(0, 50, (2, 2, length)).unbind()
    expected = side_by_side(by_complex_numbers(x, targets, layout), layout)
    assert torch.equal(layout.interleave(x), side_by_side(x, layout))
    assert torch.equal(layout.deinterleave(layout.interleave(x)), x)
    out = rotary.make_paired_rotation(torch.zeros_like(targets), targets).interleave_and_rotate(x)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (out, expected)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-12)
    # Vectors at the model's float32 positions, and interleaved vectors.
    angle = (position_ids[..., None].float() * FREQUENCIES).double()
    model_x = Rotation(angle.cos()[:, None], angle.sin()[:, None], layout)(x)
    torch.testing.assert_close(
        rotary.make_paired_rotation(position_ids, targets).interleave_and_rotate(model_x), expected
    )
    torch.testing.assert_close(rotary.make_paired_rotation(None, targets)(side_by_side(x, layout)), expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["halves", "interleaved"])
def test_slot_rotations_and_rotations_per_head_equal_single_rotations(layout):
    rotary, x = make(layout), torch.randn(1, 5, 300, 8, dtype=torch.float64)
    for columns in (3, 300, 7):
        out = rotary.make_slot_rotation(columns, x.device)(x[:, :, :columns])
        expected = rotary.make_paired_rotation(None, torch.arange(columns)[None])(x[:, :, :columns])
        torch.testing.assert_close(out, expected, atol=0, rtol=0)
        part = rotary.make_slot_rotation(columns, x.device).slice_tokens(1, columns)(x[:, :, 1:columns])
        torch.testing.assert_close(part, expected[:, :, 1:], atol=0, rtol=0)
    places, token = torch.tensor([[4, 9]]), x[:, :, :1]
    both = rotary.make_rotation(None, places).expand_to_heads([3, 2])(token)
    together = rotary.make_paired_rotation(None, places).expand_to_heads([3, 2]).interleave_and_rotate(token)
    for heads, place in ((slice(0, 3), 4), (slice(3, 5), 9)):
        expected = by_complex_numbers(token[:, heads], torch.tensor([[place]]), layout)
        torch.testing.assert_close(both[:, heads], expected, atol=1e-12, rtol=1e-12)
        expected = side_by_side(expected, layout)
        torch.testing.assert_close(together[:, heads], expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["halves", "interleaved"])
def test_half_precision_is_rounded_once(layout, dtype):
    x, positions = torch.randn(1, 2, 4, 8).to(dtype), torch.tensor([[0, 3, 500, 7]])
    out = make(layout, torch.float32).make_paired_rotation(None, positions).interleave_and_rotate(x)
    exact = side_by_side(by_complex_numbers(x.double(), positions, layout), layout)
    assert out.dtype == dtype
    torch.testing.assert_close(out, exact.float().to(dtype), atol=1e-5, rtol=torch.finfo(dtype).eps)


def test_rotations_created_in_inference_mode_work_with_gradients():
    rotary, x = make(PairLayout(3)), torch.randn(1, 1, 4, 6, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        rotary.make_slot_rotation(4, x.device)
    rotary.make_slot_rotation(4, x.device).interleave_and_rotate(x).sum().backward()
    assert x.grad is not None
    assert x.grad.any()


def test_changed_frequencies_take_effect():
    now = [torch.tensor([1.0, 0.5])]
    rotary = Rotary(PairLayout(2), lambda: now[0], torch.float64)
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    before = rotary.make_slot_rotation(4, x.device)(x)
    now[0] = torch.tensor([0.2, 0.1])
    after = rotary.make_slot_rotation(4, x.device)(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, rotary.make_paired_rotation(None, torch.arange(4)[None])(x))


def test_without_pairs_nothing_is_rotated():
    x, rotary = torch.randn(1, 2, 3, 4), Rotary(PairLayout(0), lambda: torch.zeros(0), torch.float32)
    assert rotary.make_rotation(None, torch.arange(3)[None])(x) is x
    rotation = rotary.make_paired_rotation(None, torch.arange(3)[None])
    assert rotation(x) is rotation.interleave_and_rotate(x) is x
