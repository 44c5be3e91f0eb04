"""Tests of SHM: reference outputs, a constant observation, and products of gates in closed form."""

import pytest
import torch

from scrubjay.kernels import scan
from scrubjay.memory.scan.shm import BOUND, HadamardUpdate, SHMConfig

from .published_results import outputs, set_weights, wave


def build_published():
    """Return the memory with the weights of the published code."""
    module = SHMConfig(8, memory_size=24).build().double()
    names = ("key", "query", "value", "gate", "through")
    parts = dict(zip(names, (0.5, 0.7, 0.9, 1.1, 1.5), strict=True))
    project = [wave(24, 8, offset=offset) for offset in parts.values()]
    set_weights(
        module,
        {
            "table": 0.5 * (wave(128, 24, offset=0.3) + 0.3),
            "project.weight": torch.cat([*project, wave(1, 8, offset=1.3)]),
            "out.weight": wave(8, 24, offset=1.7),
            "out.bias": wave(8, offset=1.9),
            "norm.weight": 1 + 0.5 * wave(8, offset=2.1),
            "norm.bias": wave(8, offset=2.3),
        },
    )
    return module


def test_outputs_are_those_of_published_code():
    module = build_published()
    y, _ = module(wave(1, 11, 8, offset=0.1), module.initial_state(1))
    torch.testing.assert_close(y[0], outputs("shm"), rtol=0, atol=2e-7)


@torch.no_grad()
def test_entries_stop_where_those_of_published_code_do():
    module = build_published()
    state = module.initial_state(1)
    for _ in range(20):
        y, state = module(wave(8, offset=0.1).expand(1, 100, 8), state)
    assert (state["matrix"].abs() == BOUND).any()
    torch.testing.assert_close(y[0, -1:], outputs("shm", "after_2000"), rtol=0, atol=2e-6)


@pytest.mark.slow
@torch.no_grad()
def test_an_observation_that_lasts_for_100_000_steps_fills_no_entry_beyond_its_bound():
    """Without the bound, the same weights overflow under the paper's equation."""
    torch.manual_seed(0)
    module = SHMConfig(8, memory_size=4).build()
    module.table.mul_(5)
    x = torch.randn(1, 1, 8).expand(1, 1000, 8)
    state, free_matrix = module.initial_state(1), torch.zeros(1, 4, 4)
    for _ in range(100):
        update = HadamardUpdate.from_projections(
            *module._write(x, state["time"][:, None] + torch.arange(1000))
        )
        _, free_matrix = scan(update.gate, update.value, free_matrix)
        y, state = module(x, state)
        assert y.isfinite().all()
        assert state["matrix"].abs().max() <= BOUND
    assert not free_matrix.isfinite().all()
    assert state["time"].item() == 100_000


def test_gates_multiply_what_was_written():
    """M_t is the sum of all writes, each times the product of all later gates."""
    torch.manual_seed(0)
    module = SHMConfig(8, memory_size=3, table_size=4).build().double()
    x = torch.randn(1, 9, 8, dtype=torch.float64)
    _, state = module(x, module.initial_state(1))
    normed_x = module.norm(x[0])
    key, _, value, gate, _, strength = module.project(normed_x).split([3, 3, 3, 3, 3, 1], dim=-1)
    theta = module.table[torch.arange(9) % 4]
    gates = 1 + torch.tanh(theta[:, :, None] * gate[:, None, :])
    key = key.relu() / (1e-5 + key.relu().sum(-1, keepdim=True))
    writes = (strength.sigmoid() * value)[:, :, None] * key[:, None, :]
    expected = sum(writes[t] * gates[t + 1 :].prod(0) for t in range(9))
    torch.testing.assert_close(state["matrix"][0], expected)


@torch.no_grad()
def test_a_step_takes_the_row_of_its_number_in_its_episode():
    """Outputs do not depend on when an episode starts, but they do depend on the order of the table rows."""
    torch.manual_seed(0)
    module = SHMConfig(8, memory_size=3, table_size=5).build()
    x = torch.randn(1, 12, 8)
    late = torch.cat([torch.randn(1, 7, 8), x], dim=1)
    start = torch.zeros(1, 19, dtype=torch.bool)
    start[:, 7] = True
    y, state = module(x, module.initial_state(1))
    y_late, state_late = module(late, module.initial_state(1), start)
    torch.testing.assert_close(y_late[:, 7:], y)
    assert torch.equal(state["time"], state_late["time"])
    module.table.copy_(module.table.roll(1, dims=0))
    assert not torch.allclose(module(x, module.initial_state(1))[0][:, 1:], y[:, 1:])


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    module = SHMConfig(8, memory_size=3, table_size=2).build().double()
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    start = torch.zeros(2, 5, dtype=torch.bool)
    start[0, 2] = True
    names = [name for name, _ in module.named_parameters()]

    def run(x, matrix, *values):
        inputs = (x, {"matrix": matrix, "time": torch.tensor([3, 0])}, start)
        y, after = torch.func.functional_call(module, dict(zip(names, values, strict=True)), inputs)
        return y, after["matrix"]

    assert torch.autograd.gradcheck(run, (x, matrix, *module.parameters()), fast_mode=True)


@pytest.mark.parametrize("name", ["memory_size", "table_size"])
def test_sizes_that_cannot_work_are_named(name):
    with pytest.raises(ValueError, match=f"{name}=0: must be at least 1"):
        SHMConfig(16, **{name: 0})
