"""Steppers of every registered memory equal its steps, and return states as copies."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from scrubjay import memory
from scrubjay.memory.contract.stepper import PlainStepper

NAMES = memory.list_memories()
IN_PLACE = (
    "based",
    "comba",
    "elmur",
    "ffm",
    "gated_delta",
    "gtrxl",
    "hcam",
    "landmark",
    "lightning",
    "lru",
    "mamba2",
    "mamba3",
    "mingru",
    "moba",
    "nsa",
    "rwkv7",
    "sink",
    "stack",
    "titans",
    "titans_mac",
    "titans_mag",
    "titans_mal",
)
ROWS, STEPS, DIM = 5, 90, 16


def draw(seed, rate=0.05):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, STEPS, DIM, generator=generator)
    start = torch.rand(ROWS, STEPS, generator=generator) < rate
    start[0, 1:] = False  # one row fills all its stores
    return x, start


def run_stepper(module, x, start, state, steps):
    stepper = module.stepper(state)
    outputs = [stepper.step(x[:, t], start[:, t] if start[:, t].any() else None) for t in steps]
    return torch.stack(outputs, dim=1), stepper.state()


@torch.no_grad()
def run_steps(module, x, start, state, steps):
    outputs = []
    for t in steps:
        y, state = module(x[:, t : t + 1], state, start[:, t : t + 1])
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def assert_alike(actual, expected, tolerance=1e-6):
    """Compare outputs and states, with a tolerance relative to their largest value."""
    assert actual[1].keys() == expected[1].keys()
    for one, other in [
        (actual[0], expected[0]),
        *((actual[1][n], value) for n, value in expected[1].items()),
    ]:
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        scale = max(1.0, float(other.abs().max())) if other.is_floating_point() else 0.0
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * scale, equal_nan=True)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", NAMES)
def test_a_stepper_equals_the_steps(name):
    """Test random starts, weight updates in between, and a new stepper from the state of an old one."""
    torch.manual_seed(1)
    module = memory.make(name, dim=DIM)
    x, start = draw(2)
    state = other = module.initial_state(ROWS)
    for steps in (range(37), range(37, 38), range(38, STEPS)):
        y, state = run_stepper(module, x, start, state, steps)
        expected, other = run_steps(module, x, start, other, steps)
        assert_alike((y, state), (expected, other))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)


@pytest.mark.parametrize("name", IN_PLACE)
def test_memories_in_the_list_have_an_in_place_stepper(name):
    module = memory.make(name, dim=DIM)
    assert not isinstance(module.stepper(module.initial_state(2)), PlainStepper)


def in_units(name):
    """Return a memory with one layer, head and chunk, whose state needs no copy to be split by heads."""
    sizes = {field.name for field in dataclasses.fields(memory.make_config(name, dim=DIM))}
    return memory.make(name, dim=DIM, **dict.fromkeys(sizes & {"num_layers", "num_heads", "num_chunks"}, 1))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize("name", IN_PLACE)
def test_the_initial_state_is_not_modified_whatever_its_layout(name, rows):
    module = in_units(name)
    x, start = (part[:rows] for part in draw(3))
    _, initial = run_steps(module, x, start, module.initial_state(rows), range(40))
    copies = {key: value.clone() for key, value in initial.items()}
    run_stepper(module, x, start, initial, range(40, STEPS))
    for key in initial:
        assert torch.equal(initial[key], copies[key]), f"{key} of the initial state has changed"


@pytest.mark.parametrize("start", [[0, 0, 1], [0.0, 0.0, 1.0], [True]])
@pytest.mark.parametrize("name", IN_PLACE)
def test_invalid_starts_are_refused(name, start):
    """Some steppers would treat numbers as row indices, others as masks."""
    module = memory.make(name, dim=DIM)
    rows = module.stepper(module.initial_state(3))
    with pytest.raises(ValueError, match="start"):
        rows.step(torch.zeros(3, DIM), torch.tensor(start))


@pytest.mark.parametrize("name", NAMES)
def test_a_state_without_rows_gives_no_outputs(name):
    module = memory.make(name, dim=DIM)
    initial = module.initial_state(0)
    y, state = run_stepper(
        module, torch.zeros(0, 20, DIM), torch.zeros(0, 20, dtype=torch.bool), initial, range(20)
    )
    assert y.shape == (0, 20, DIM)
    assert {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in initial.items()}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", IN_PLACE)
def test_initial_and_returned_states_are_not_modified(name):
    module = memory.make(name, dim=DIM)
    x, start = draw(3)
    _, initial = run_steps(module, x, start, module.initial_state(ROWS), range(40))
    copies = {key: value.clone() for key, value in initial.items()}
    stepper = module.stepper(initial)
    stepper.step(x[:, 40])
    out, some = stepper.state(), stepper.state(torch.tensor([3, 1]))
    returned_copies = {key: value.clone() for key, value in out.items()}
    for key, value in out.items():
        assert torch.equal(some[key], value[[3, 1]])
    for t in range(41, 80):
        stepper.step(x[:, t], start[:, t])
    for key in initial:
        assert torch.equal(initial[key], copies[key]), f"{key} of the initial state has changed"
        assert torch.equal(out[key], returned_copies[key]), f"{key} of the returned state has changed"


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", IN_PLACE)
def test_a_saved_state_continues_with_the_same_steps(name):
    module = memory.make(name, dim=DIM)
    x, start = draw(4)
    _, state = run_stepper(module, x, start, module.initial_state(ROWS), range(33))
    put_away = {key: value.clone() for key, value in state.items()}
    one = run_stepper(module, x, start, state, range(33, STEPS))
    two = run_stepper(module, x, start, put_away, range(33, STEPS))
    assert_alike(one, two, tolerance=0.0)


@pytest.mark.one_in(8)
@pytest.mark.parametrize("bad_value", [float("nan"), float("inf"), 1e20, 1e30])
@pytest.mark.parametrize("name", IN_PLACE)
def test_invalid_values_affect_only_their_row_until_its_next_episode(name, bad_value):
    """NaN, inf or huge inputs of a row do not affect other rows or its next episode."""
    module = memory.make(name, dim=DIM)
    x, start = draw(5, rate=0.0)
    begin = 45
    start[2, begin] = True
    bad_x = x.clone()
    bad_x[2, 3:begin] = bad_value
    sound = run_stepper(module, x, start, module.initial_state(ROWS), range(STEPS))
    actual = run_stepper(module, bad_x, start, module.initial_state(ROWS), range(STEPS))
    others = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(actual[0][others], sound[0][others], rtol=0, atol=1e-6)
    torch.testing.assert_close(actual[0][2, begin:], sound[0][2, begin:], rtol=0, atol=1e-6)
    # The initial state of the stepper may hold such values, too.
    bad_state = {
        key: value.index_fill(0, torch.tensor([2]), bad_value) if value.is_floating_point() else value
        for key, value in run_stepper(module, x, start, module.initial_state(ROWS), range(begin))[1].items()
    }
    after, _ = run_stepper(module, x, start, bad_state, range(begin, STEPS))
    # The new stepper cuts its chunks elsewhere: sums round relative to their largest terms.
    expected = sound[0][:, begin:]
    rounding = 16 * torch.finfo(expected.dtype).eps * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(after, expected, rtol=0, atol=rounding)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", IN_PLACE)
def test_outputs_are_nan_at_the_same_steps_as_without_a_stepper(name):
    """Sampler and learner must get NaN at the same steps."""
    module = memory.make(name, dim=DIM)
    x, start = draw(6, rate=0.0)
    x[2, 3], x[4, 3] = float("nan"), 1e20
    actual, _ = run_stepper(module, x, start, module.initial_state(ROWS), range(STEPS))
    expected, _ = run_steps(module, x, start, module.initial_state(ROWS), range(STEPS))
    assert actual.isfinite().all(dim=2).tolist() == expected.isfinite().all(dim=2).tolist()


@pytest.mark.parametrize("name", IN_PLACE)
def test_half_precision_and_overridden_steps_use_the_plain_stepper(name):
    module = memory.make(name, dim=DIM)

    kind: Any = type(module)

    class Own(kind):
        def step(self, x, state):
            return super().step(2 * x, state)

    own = Own(module.config)
    assert isinstance(own.stepper(own.initial_state(2)), PlainStepper)
    half = module.to(torch.bfloat16)
    assert isinstance(half.stepper(half.initial_state(2)), PlainStepper)
    single = memory.make(name, dim=DIM)
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(single.stepper(single.initial_state(2)), PlainStepper)


class AdaptedLayer(nn.Module):
    """A layer with a learned adapter, as adapter libraries replace a layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.beside = nn.Parameter(torch.randn_like(base.weight) / 10)

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, x):
        return self.base(x) + x @ self.beside.T


def double_output(module: nn.Module) -> None:
    module.register_forward_hook(lambda *arguments: arguments[2] + arguments[2])


def apply_weight_norm(module: nn.Module) -> None:
    """Apply weight normalization, which recomputes a layer's weight at every call."""
    nn.utils.weight_norm(module)
    with torch.no_grad():
        module.get_parameter("weight_g").mul_(1.5)


@pytest.mark.parametrize("name", [name for name in IN_PLACE if name not in ("based", "stack")])
@pytest.mark.parametrize("change", ["adapter", double_output, apply_weight_norm])
def test_modified_layers_use_the_plain_stepper(name, change):
    module = memory.make(name, dim=DIM)
    layers = [
        (parent, child, layer)
        for parent in module.modules()
        for child, layer in parent.named_children()
        if isinstance(layer, nn.Linear)
    ]
    for parent, child, layer in layers:
        if change == "adapter":
            setattr(parent, child, AdaptedLayer(layer))
        else:
            change(layer)
    assert isinstance(module.stepper(module.initial_state(2)), PlainStepper) == bool(layers)


def test_a_modified_part_is_called_and_other_parts_are_stepped_in_place():
    module: Any = memory.make("stack", dim=DIM)
    double_output(next(layer for layer in module.parts[0].modules() if isinstance(layer, nn.Linear)))
    x, start = draw(7)
    state = module.initial_state(ROWS)
    assert_alike(
        run_stepper(module, x, start, state, range(30)),
        run_steps(module, x, start, state, range(30)),
        tolerance=1e-5,
    )
    assert not isinstance(module.stepper(state), PlainStepper)
