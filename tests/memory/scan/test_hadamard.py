"""The recurrence of stable Hadamard memories: by hand and by the definition, at bounds and beyond numbers."""

import pytest
import torch

from scrubjay.memory.scan import hadamard
from scrubjay.memory.scan.hadamard import BOUND, bounded_scan


def problem(batch, time, size, dtype=torch.float64, largest=0.3, seed=0):
    """Return projections, rows of a table, matrices and starts, of which all but the last want gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator)

    projections, theta = draw(batch, time, 5 * size + 1), largest * draw(batch, time, size)
    given = projections.requires_grad_(), theta.requires_grad_(), draw(batch, size, size).requires_grad_()
    start = torch.rand(batch, time, generator=generator) < 0.1
    return given, start, (draw(batch, time, size), draw(batch, size, size))


def is_by_hand(outputs):
    return all(type(x.grad_fn).__name__ == "_SegmentBackward" for x in outputs)


@pytest.mark.parametrize(("batch", "time", "size"), [(16, 33, 16), (40, 1, 8), (512, 3, 2)])
@pytest.mark.parametrize("last", [True, False])
def test_by_hand_and_by_the_definition_are_one(batch, time, size, last):
    given, start, along = problem(batch, time, size)
    found, right = hadamard.segment(*given, start), hadamard._by_scan(*given, start)
    assert is_by_hand(found)
    assert not is_by_hand(right)
    for one, other in zip(found, right, strict=True):
        assert one.is_contiguous()
        torch.testing.assert_close(one, other)
    shown = slice(None) if last else slice(1)
    for one, other in zip(
        torch.autograd.grad(found[shown], given, along[shown]),
        torch.autograd.grad(right[shown], given, along[shown]),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_gradients_by_hand_have_gradients():
    given, start, _ = problem(16, 3, 12)

    def run(projections, theta, matrix):
        found = hadamard.segment(projections, theta, matrix, start)
        assert is_by_hand(found)
        return found

    assert torch.autograd.gradcheck(run, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, given, fast_mode=True)


def test_few_rows_and_those_of_vmap_go_by_the_definition():
    given, start, _ = problem(2, 5, 4)
    assert not is_by_hand(hadamard.segment(*given, start))
    (projections, theta, matrix), start, _ = problem(16, 5, 16)
    scaled = torch.func.vmap(lambda x: hadamard.segment(x * projections, theta, matrix, start)[0])
    found = scaled(torch.tensor([0.5, 1], dtype=torch.float64))
    torch.testing.assert_close(found[1], hadamard.segment(projections, theta, matrix, start)[0])


@pytest.mark.parametrize("entry", [BOUND, float("inf"), float("nan")])
def test_one_entry_at_its_bound_or_beyond_all_numbers_leaves_other_rows_as_they_are(entry):
    given, start, _ = problem(20, 9, 16)
    start[3], start[3, 4] = False, True
    right = hadamard.segment(*given, start)
    with torch.no_grad():
        given[2][3, 0, 0] = entry
    found = hadamard.segment(*given, start)
    assert not is_by_hand(found)
    torch.testing.assert_close(found[0][3, 4:], right[0][3, 4:])
    others = torch.arange(20) != 3
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one[others], other[others])


def test_a_product_of_gates_that_no_number_holds_is_owed_nothing():
    """Gates of nearly 2 for ever, of a row that holds nothing: its gradient is 0, and not inf times 0."""
    (projections, _, _), _, _ = problem(8, 1200, 16, torch.float32)
    with torch.no_grad():
        projections[:] = 0
        projections[..., 3 * 16 : 4 * 16] = 10
    theta, matrix = torch.full((8, 1200, 16), 10.0), torch.zeros(8, 16, 16)
    given = projections, theta.requires_grad_(), matrix.requires_grad_()
    start = torch.zeros(8, 1200, dtype=torch.bool)
    found = hadamard.segment(*given, start)
    assert is_by_hand(found)
    of_projections, of_theta, _ = torch.autograd.grad(found[0].sum(), given)
    assert of_projections.isfinite().all()
    assert of_theta.isfinite().all()


@pytest.mark.parametrize("largest", [1.2, 3.0])
def test_rows_at_the_bound_are_those_of_single_steps_and_others_are_not_touched(largest):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    gate, value = largest * draw(5, 60, 2, 2), draw(5, 60, 2, 2) - 0.5
    gate[:3] *= 0.5
    matrix, start = draw(5, 2, 2), draw(5, 60) < 0.05
    given = [x.requires_grad_() for x in (gate, value, matrix)]
    found = bounded_scan(given[0], given[1], given[2], start)
    state, steps = matrix, []
    for t in range(60):
        state = torch.where(start[:, t, None, None], 0, state)
        state = (gate[:, t] * state + value[:, t]).clamp(-BOUND, BOUND)
        steps.append(state)
    right = torch.stack(steps, dim=1)
    assert ((right.abs() == BOUND).flatten(1).any(1).tolist() == [False] * 3 + [True] * 2) is (largest == 3.0)
    torch.testing.assert_close(found, right)
    along = torch.randn(right.shape, generator=generator, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(found, given, along), torch.autograd.grad(right, given, along), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_what_leaves_all_numbers_between_two_bounds_has_gradients():
    gate = torch.full((2, 400, 1, 1), 2.0)
    gate[0] = 0.5
    gate.requires_grad_()
    found = bounded_scan(gate, torch.ones(2, 400, 1, 1), torch.zeros(2, 1, 1), torch.zeros(2, 400).bool())
    (gradient,) = torch.autograd.grad(found.sum(), gate)
    assert found[1, -1] == BOUND
    assert gradient.isfinite().all()
    assert gradient[0].any()
