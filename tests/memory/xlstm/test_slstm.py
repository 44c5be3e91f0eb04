"""sLSTM compared with the paper's stabilized equations."""

import torch

from scrubjay.memory.xlstm.slstm import run_cells, run_reference


def draw(seed=0, batch=3, time=25, heads=2, width=3):
    """Return random arguments of `run_cells` in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    start = torch.rand(batch, time, generator=generator) < 0.1
    return [
        2 * normal(heads, time, batch, 4 * width),
        start,
        *(normal(heads, batch, width) for _ in range(3)),
        normal(heads, width, 4 * width),
    ]


def oracle(gates, start, hidden, cell, log_norm, recurrent):
    """Return the hidden vectors by the equations with c, n and exp(i)."""
    norm = log_norm.exp()
    c, outputs = cell * norm, []
    for t in range(gates.shape[1]):
        keep = (~start[:, t, None]).double()
        hidden, c, norm = hidden * keep, c * keep, norm * keep
        i, minus_f, z, half_o = (gates[:, t] + hidden @ recurrent).chunk(4, dim=-1)
        c = torch.sigmoid(-minus_f) * c + i.exp() * torch.tanh(z)
        norm = torch.sigmoid(-minus_f) * norm + i.exp()
        hidden = torch.sigmoid(2 * half_o) * c / norm
        outputs.append(hidden)
    return torch.stack(outputs, dim=1)


def test_hidden_vectors_are_those_of_the_paper():
    arguments = draw()
    hidden, cell, log_norm = run_cells(*arguments)
    torch.testing.assert_close(hidden, oracle(*arguments), rtol=1e-10, atol=1e-10)
    assert cell.abs().max() <= max(1, arguments[3].abs().max())
    assert log_norm.isfinite().all()


def test_gates_of_any_size_give_finite_results():
    inputs, *rest = (x.float() if x.is_floating_point() else x for x in draw(1))
    for log_input in (-1e4, -90.0, 90.0, 1e4):
        gates = inputs.clone()
        gates[:, ::2, :, :3] = log_input
        gates[:, ::3, :, 3:6] = -log_input
        results = run_cells(gates, *rest)
        assert all(x.isfinite().all() for x in results)


def gradients(run, arguments):
    """Return outputs and gradients of a fixed function of all results."""
    leaves = [x.clone().requires_grad_() for x in arguments if x.is_floating_point()]
    results = run(arguments[1], *leaves)
    weights = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x) for x in results]
    return [*results, *torch.autograd.grad(results, leaves, weights)]


def run_fast(start, inputs, *rest):
    return run_cells(inputs, start, *rest)


def test_the_custom_backward_pass_equals_autograd():
    for seed, sizes in ((2, {}), (3, {"batch": 1, "time": 1}), (4, {"heads": 1, "width": 8, "time": 40})):
        arguments = draw(seed, **sizes)
        for result, right in zip(
            gradients(run_fast, arguments), gradients(run_reference, arguments), strict=True
        ):
            torch.testing.assert_close(result, right, rtol=1e-10, atol=1e-10)


def test_first_and_second_derivatives():
    inputs, start, *rest = draw(5, batch=2, time=4, heads=2, width=2)
    leaves = [x.requires_grad_() for x in (inputs, *rest)]
    assert torch.autograd.gradcheck(lambda *x: run_fast(start, *x), leaves)
    assert torch.autograd.gradgradcheck(lambda *x: run_fast(start, *x), leaves)


def test_an_episode_begins_without_a_past():
    """An empty normalizer gives the first candidate the whole weight."""
    inputs, start, hidden, cell, log_norm, recurrent = draw(6)
    start[:] = False
    start[:, 7] = True
    y, _, _ = run_cells(inputs, start, hidden, cell, log_norm, recurrent)
    _, _, z, half_o = inputs[:, 7].chunk(4, dim=-1)
    torch.testing.assert_close(y[:, 7], torch.sigmoid(2 * half_o) * torch.tanh(z))
    for number in (torch.nan, torch.inf):
        inputs[:, 3, 0] = number
        other, _, _ = run_cells(inputs, start, hidden, cell, log_norm, recurrent)
        assert torch.equal(other[:, 7:], y[:, 7:])
