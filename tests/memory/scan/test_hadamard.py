"""Tests of the Hadamard scan: custom backward against autograd, entries at the bound, and overflow."""

import pytest
import torch

from scrubjay.memory.scan import shm
from scrubjay.memory.scan.shm import BOUND, bounded_scan


def problem(batch, time, size, dtype=torch.float64, largest=0.3, seed=0):
    """Return projections, table rows and matrices (which require gradients), starts, and output gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator)

    projections, theta = draw(batch, time, 5 * size + 1), largest * draw(batch, time, size)
    inputs = projections.requires_grad_(), theta.requires_grad_(), draw(batch, size, size).requires_grad_()
    start = torch.rand(batch, time, generator=generator) < 0.1
    return inputs, start, (draw(batch, time, size), draw(batch, size, size))


def uses_custom_backward(outputs):
    return all(type(x.grad_fn).__name__ == "_CustomBackward" for x in outputs)


@pytest.mark.parametrize(("batch", "time", "size"), [(16, 33, 16), (40, 1, 8), (512, 3, 2)])
@pytest.mark.parametrize("last", [True, False])
def test_by_hand_and_by_the_definition_are_one(batch, time, size, last):
    inputs, start, grad_outputs = problem(batch, time, size)
    result, expected = shm.scan_segment(*inputs, start), shm._segment_by_scan(*inputs, start)
    assert uses_custom_backward(result)
    assert not uses_custom_backward(expected)
    for one, other in zip(result, expected, strict=True):
        assert one.is_contiguous()
        torch.testing.assert_close(one, other)
    selection = slice(None) if last else slice(1)
    for one, other in zip(
        torch.autograd.grad(result[selection], inputs, grad_outputs[selection]),
        torch.autograd.grad(expected[selection], inputs, grad_outputs[selection]),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_gradients_by_hand_have_gradients():
    inputs, start, _ = problem(16, 3, 12)

    def run(projections, theta, matrix):
        result = shm.scan_segment(projections, theta, matrix, start)
        assert uses_custom_backward(result)
        return result

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_few_rows_and_those_of_vmap_go_by_the_definition():
    inputs, start, _ = problem(2, 5, 4)
    assert not uses_custom_backward(shm.scan_segment(*inputs, start))
    (projections, theta, matrix), start, _ = problem(16, 5, 16)
    scan_scaled = torch.func.vmap(lambda x: shm.scan_segment(x * projections, theta, matrix, start)[0])
    result = scan_scaled(torch.tensor([0.5, 1], dtype=torch.float64))
    torch.testing.assert_close(result[1], shm.scan_segment(projections, theta, matrix, start)[0])


@pytest.mark.parametrize("entry", [BOUND, float("inf"), float("nan")])
def test_one_entry_at_its_bound_or_beyond_all_numbers_leaves_other_rows_as_they_are(entry):
    inputs, start, _ = problem(20, 9, 16)
    start[3], start[3, 4] = False, True
    expected = shm.scan_segment(*inputs, start)
    with torch.no_grad():
        inputs[2][3, 0, 0] = entry
    result = shm.scan_segment(*inputs, start)
    assert not uses_custom_backward(result)
    torch.testing.assert_close(result[0][3, 4:], expected[0][3, 4:])
    others = torch.arange(20) != 3
    for one, other in zip(result, expected, strict=True):
        torch.testing.assert_close(one[others], other[others])


def test_a_product_of_gates_that_no_number_holds_is_owed_nothing():
    """With gates near 2 and an empty row, the gradient is 0, not inf times 0."""
    (projections, _, _), _, _ = problem(8, 1200, 16, torch.float32)
    with torch.no_grad():
        projections[:] = 0
        projections[..., 3 * 16 : 4 * 16] = 10
    theta, matrix = torch.full((8, 1200, 16), 10.0), torch.zeros(8, 16, 16)
    inputs = projections, theta.requires_grad_(), matrix.requires_grad_()
    start = torch.zeros(8, 1200, dtype=torch.bool)
    result = shm.scan_segment(*inputs, start)
    assert uses_custom_backward(result)
    grad_projections, grad_theta, _ = torch.autograd.grad(result[0].sum(), inputs)
    assert grad_projections.isfinite().all()
    assert grad_theta.isfinite().all()


@pytest.mark.parametrize("largest", [1.2, 3.0])
def test_rows_at_the_bound_are_those_of_single_steps_and_others_are_not_touched(largest):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    gate, value = largest * draw(5, 60, 2, 2), draw(5, 60, 2, 2) - 0.5
    gate[:3] *= 0.5
    matrix, start = draw(5, 2, 2), draw(5, 60) < 0.05
    inputs = [x.requires_grad_() for x in (gate, value, matrix)]
    result = bounded_scan(inputs[0], inputs[1], inputs[2], start)
    state, steps = matrix, []
    for t in range(60):
        state = torch.where(start[:, t, None, None], 0, state)
        state = (gate[:, t] * state + value[:, t]).clamp(-BOUND, BOUND)
        steps.append(state)
    expected = torch.stack(steps, dim=1)
    assert ((expected.abs() == BOUND).flatten(1).any(1).tolist() == [False] * 3 + [True] * 2) is (
        largest == 3.0
    )
    torch.testing.assert_close(result, expected)
    grad_outputs = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(result, inputs, grad_outputs),
        torch.autograd.grad(expected, inputs, grad_outputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_what_leaves_all_numbers_between_two_bounds_has_gradients():
    gate = torch.full((2, 400, 1, 1), 2.0)
    gate[0] = 0.5
    gate.requires_grad_()
    result = bounded_scan(gate, torch.ones(2, 400, 1, 1), torch.zeros(2, 1, 1), torch.zeros(2, 400).bool())
    (gradient,) = torch.autograd.grad(result.sum(), gate)
    assert result[1, -1] == BOUND
    assert gradient.isfinite().all()
    assert gradient[0].any()
