"""Cells of sLSTM compared with the paper's equations, and the fast loop with the plain one."""

import pytest
import torch

from scrubjay.memory.xlstm import cells
from scrubjay.memory.xlstm.cells import run_cells, run_reference


def draw(seed=0, batch=3, time=25, heads=2, width=3):
    """Return random arguments of `run_cells` in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    start = torch.rand(batch, time, generator=generator) < 0.1
    return [
        start,
        *(normal(batch, time, heads * width) for _ in range(2)),
        *(normal(batch, heads * width) for _ in range(3)),
        *(normal(heads, 4, width, width) for _ in range(2)),
        normal(heads, 4, width),
    ]


def oracle(start, features, inputs, hidden, cell, log_norm, weight, recurrent, bias):
    """Return the hidden vectors by the equations with c, n and exp(i)."""
    heads, _, width = bias.shape
    norm = log_norm.exp()
    c, outputs = cell * norm, []
    for t in range(inputs.shape[1]):
        keep = (~start[:, t, None]).double()
        hidden, c, norm = hidden * keep, c * keep, norm * keep
        gates = []
        for gate, source in enumerate((features, features, inputs, inputs)):
            own = torch.zeros_like(hidden)
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                own[:, part] = source[:, t, part] @ weight[head, gate].T + bias[head, gate]
                own[:, part] += hidden[:, part] @ recurrent[head, gate].T
            gates.append(own)
        f, i, z, o = gates
        c = torch.sigmoid(f) * c + i.exp() * torch.tanh(z)
        norm = torch.sigmoid(f) * norm + i.exp()
        hidden = torch.sigmoid(o) * c / norm
        outputs.append(hidden)
    return torch.stack(outputs, dim=1)


def draw_without_weights(seed=0):
    """Return arguments of `run_cells` whose gate i is the first feature of its head and nothing else."""
    *arguments, weight, recurrent, bias = draw(seed)
    weight[:, 1], recurrent[:, 1], bias[:, 1] = 0, 0, 0
    weight[:, 1, :, 0] = 1
    return *arguments, weight, recurrent, bias


@pytest.mark.parametrize("run", [run_cells, run_reference])
def test_hidden_vectors_are_those_of_the_paper(run):
    arguments = draw()
    hidden, cell, log_norm = run(*arguments)
    torch.testing.assert_close(hidden, oracle(*arguments), rtol=1e-10, atol=1e-10)
    assert cell.abs().max() <= max(1, arguments[4].abs().max())
    assert log_norm.isfinite().all()


def test_gates_of_any_size_give_finite_results():
    """exp(i) overflows or is 0 in float32, but only quotients of gates matter."""
    start, features, *rest = (x.float() if x.is_floating_point() else x for x in draw_without_weights(1))
    for log_input in (-1e4, -90.0, 90.0, 1e4):
        gates = features.clone()
        gates[:, ::2, 0] = log_input
        gates[:, ::3, 3] = log_input
        leaves = [x.clone().requires_grad_() for x in (gates, *rest)]
        results = run_cells(start, *leaves)
        grads = torch.autograd.grad([x.sum() for x in results], leaves)
        assert all(x.isfinite().all() for x in (*results, *grads))
        exact = run_cells(start, *(x.double() for x in (gates, *rest)))
        # A log normalizer of 1e4 has an error of 1e-3 in float32.
        torch.testing.assert_close(results, tuple(x.float() for x in exact), rtol=1e-2, atol=1e-3)


def gradients(run, arguments):
    """Return outputs and gradients of a fixed function of all results."""
    start, *tensors = arguments
    leaves = [x.clone().requires_grad_() for x in tensors]
    results = run(start, *leaves)
    weights = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x) for x in results]
    return [*results, *torch.autograd.grad(results, leaves, weights)]


@pytest.mark.parametrize(
    ("seed", "sizes"),
    [(2, {}), (3, {"batch": 1, "time": 1}), (4, {"heads": 1, "width": 8, "time": 40}), (5, {"time": 2})],
)
def test_the_custom_backward_pass_equals_autograd(seed, sizes):
    arguments = draw(seed, **sizes)
    if seed == 4:
        arguments[0][:] = False
    expected = gradients(run_reference, arguments)
    for result, right in zip(gradients(run_cells, arguments), expected, strict=True):
        torch.testing.assert_close(result, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("batch", [1, 2])
def test_incoming_gradients_are_not_modified(batch):
    start, *tensors = draw(8, batch=batch)
    results = run_cells(start, *(x.requires_grad_() for x in tensors))
    grads = [torch.randn_like(x) for x in results]
    copies = [grad.clone() for grad in grads]
    torch.autograd.backward(results, grads)
    assert all(torch.equal(grad, copy) for grad, copy in zip(grads, copies, strict=True))


def test_the_plain_loop_runs_only_for_sums_outside_the_range(monkeypatch):
    calls = []
    monkeypatch.setattr(cells, "run_reference", lambda *x: calls.append(0) or run_reference(*x))
    start, features, *rest = draw_without_weights(7)
    for log_input, count in ((0.0, 0), (50.0, 0), (-50.0, 0), (90.0, 1), (-90.0, 1), (torch.nan, 1)):
        calls.clear()
        run_cells(start, torch.full_like(features, log_input), *rest)
        assert len(calls) == count, log_input


@pytest.mark.slow
def test_first_and_second_derivatives():
    start, *tensors = draw(5, batch=2, time=4, heads=2, width=2)
    leaves = [x.requires_grad_() for x in tensors]
    assert torch.autograd.gradcheck(lambda *x: run_cells(start, *x), leaves)
    assert torch.autograd.gradgradcheck(lambda *x: run_cells(start, *x), leaves)


def test_an_episode_begins_without_a_past():
    """An empty normalizer gives the first candidate the whole weight."""
    start, features, inputs, *rest = draw(6)
    weight, bias = rest[3], rest[5]
    start[:] = False
    start[:, 7] = True
    y, _, _ = run_cells(start, features, inputs, *rest)
    column = inputs[:, 7].unflatten(1, (2, 3))
    z, o = (torch.einsum("bhi,hoi->bho", column, weight[:, gate]) + bias[:, gate] for gate in (2, 3))
    torch.testing.assert_close(y[:, 7], (torch.sigmoid(o) * torch.tanh(z)).flatten(1))
    for number in (torch.nan, torch.inf):
        features[:, 3, 0] = number
        other, _, _ = run_cells(start, features, inputs, *rest)
        torch.testing.assert_close(other[:, 7:], y[:, 7:], rtol=1e-12, atol=1e-12)
