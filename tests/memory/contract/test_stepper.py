"""Steppers of every registered memory do what its steps do, and hand out values."""

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
    "elmur",
    "ffm",
    "gated_delta",
    "gtrxl",
    "hcam",
    "landmark",
    "lightning",
    "lru",
    "mingru",
    "moba",
    "nsa",
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
    start[0, 1:] = False  # one row fills all that it may keep
    return x, start


def stepped(module, x, start, state, steps):
    stepper = module.stepper(state)
    outputs = [stepper.step(x[:, t], start[:, t] if start[:, t].any() else None) for t in steps]
    return torch.stack(outputs, dim=1), stepper.state()


@torch.no_grad()
def plain(module, x, start, state, steps):
    outputs = []
    for t in steps:
        y, state = module(x[:, t : t + 1], state, start[:, t : t + 1])
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def assert_alike(found, expected, tolerance=1e-6):
    """Compare outputs and states, to so much of what is largest in them."""
    assert found[1].keys() == expected[1].keys()
    for one, other in [(found[0], expected[0]), *((found[1][n], value) for n, value in expected[1].items())]:
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        scale = max(1.0, float(other.abs().max())) if other.is_floating_point() else 0.0
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * scale, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_stepper_does_what_steps_do(name):
    """With starts at random, a learner's update in between and a stepper made anew of what one handed out."""
    torch.manual_seed(1)
    module = memory.make(name, dim=DIM)
    x, start = draw(2)
    state = other = module.initial_state(ROWS)
    for steps in (range(37), range(37, 38), range(38, STEPS)):
        y, state = stepped(module, x, start, state, steps)
        expected, other = plain(module, x, start, other, steps)
        assert_alike((y, state), (expected, other))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_is_written_in_place_has_a_stepper_of_its_own(name):
    module = memory.make(name, dim=DIM)
    assert not isinstance(module.stepper(module.initial_state(2)), PlainStepper)


def in_units(name):
    """Return a memory of one layer, head and chunk: to lay out its state by heads copies nothing."""
    sizes = {field.name for field in dataclasses.fields(memory.make_config(name, dim=DIM))}
    return memory.make(name, dim=DIM, **dict.fromkeys(sizes & {"num_layers", "num_heads", "num_chunks"}, 1))


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize("name", IN_PLACE)
def test_values_go_in_whatever_their_order(name, rows):
    module = in_units(name)
    x, start = (part[:rows] for part in draw(3))
    _, given = plain(module, x, start, module.initial_state(rows), range(40))
    kept = {key: value.clone() for key, value in given.items()}
    stepped(module, x, start, given, range(40, STEPS))
    for key in given:
        assert torch.equal(given[key], kept[key]), f"{key} of the state that was given has changed"


@pytest.mark.parametrize("start", [[0, 0, 1], [0.0, 0.0, 1.0], [True]])
@pytest.mark.parametrize("name", IN_PLACE)
def test_starts_that_do_not_fit_are_refused(name, start):
    """Places of rows for one that indexes, marks for another: an environment's numbers mean either."""
    module = memory.make(name, dim=DIM)
    rows = module.stepper(module.initial_state(3))
    with pytest.raises(ValueError, match="start"):
        rows.step(torch.zeros(3, DIM), torch.tensor(start))


@pytest.mark.parametrize("name", NAMES)
def test_of_no_rows_there_are_no_outputs(name):
    module = memory.make(name, dim=DIM)
    given = module.initial_state(0)
    y, state = stepped(
        module, torch.zeros(0, 20, DIM), torch.zeros(0, 20, dtype=torch.bool), given, range(20)
    )
    assert y.shape == (0, 20, DIM)
    assert {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in given.items()}


@pytest.mark.parametrize("name", IN_PLACE)
def test_values_go_in_and_come_out(name):
    module = memory.make(name, dim=DIM)
    x, start = draw(3)
    _, given = plain(module, x, start, module.initial_state(ROWS), range(40))
    kept = {key: value.clone() for key, value in given.items()}
    stepper = module.stepper(given)
    stepper.step(x[:, 40])
    out, some = stepper.state(), stepper.state(torch.tensor([3, 1]))
    copies = {key: value.clone() for key, value in out.items()}
    for key, value in out.items():
        assert torch.equal(some[key], value[[3, 1]])
    for t in range(41, 80):
        stepper.step(x[:, t], start[:, t])
    for key in given:
        assert torch.equal(given[key], kept[key]), f"{key} of the state that was given has changed"
        assert torch.equal(out[key], copies[key]), f"{key} of the state that was handed out has changed"


@pytest.mark.parametrize("name", IN_PLACE)
def test_the_same_steps_follow_a_state_that_was_put_away(name):
    module = memory.make(name, dim=DIM)
    x, start = draw(4)
    _, state = stepped(module, x, start, module.initial_state(ROWS), range(33))
    put_away = {key: value.clone() for key, value in state.items()}
    one = stepped(module, x, start, state, range(33, STEPS))
    two = stepped(module, x, start, put_away, range(33, STEPS))
    assert_alike(one, two, tolerance=0.0)


@pytest.mark.parametrize("harm", [float("nan"), float("inf"), 1e20, 1e30])
@pytest.mark.parametrize("name", IN_PLACE)
def test_harm_stays_in_its_row_and_ends_with_its_episode(name, harm):
    """What a row is given that is NaN, infinite or huge: others know nothing, nor does its next episode."""
    module = memory.make(name, dim=DIM)
    x, start = draw(5, rate=0.0)
    begin = 45
    start[2, begin] = True
    harmed = x.clone()
    harmed[2, 3:begin] = harm
    sound = stepped(module, x, start, module.initial_state(ROWS), range(STEPS))
    found = stepped(module, harmed, start, module.initial_state(ROWS), range(STEPS))
    others = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(found[0][others], sound[0][others], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[0][2, begin:], sound[0][2, begin:], rtol=0, atol=1e-6)
    # And if the harm came before the stepper was made.
    poisoned = {
        key: value.index_fill(0, torch.tensor([2]), harm) if value.is_floating_point() else value
        for key, value in stepped(module, x, start, module.initial_state(ROWS), range(begin))[1].items()
    }
    after, _ = stepped(module, x, start, poisoned, range(begin, STEPS))
    torch.testing.assert_close(after[2], sound[0][2, begin:], rtol=0, atol=1e-6)
    torch.testing.assert_close(after[others], sound[0][others, begin:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", IN_PLACE)
def test_harm_is_seen_for_as_long_as_by_steps(name):
    """A sampler acts on what a learner will be given: on NaN where that has NaN, in the same episode."""
    module = memory.make(name, dim=DIM)
    x, start = draw(6, rate=0.0)
    x[2, 3], x[4, 3] = float("nan"), 1e20
    found, _ = stepped(module, x, start, module.initial_state(ROWS), range(STEPS))
    expected, _ = plain(module, x, start, module.initial_state(ROWS), range(STEPS))
    assert found.isfinite().all(dim=2).tolist() == expected.isfinite().all(dim=2).tolist()


@pytest.mark.parametrize("name", IN_PLACE)
def test_half_precision_and_steps_of_ones_own_are_taken_one_by_one(name):
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


class Adapted(nn.Module):
    """A layer and what was learned beside it, as adapters put it in a layer's place."""

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


def louder(module: nn.Module) -> None:
    module.register_forward_hook(lambda *called: called[2] + called[2])


def reweighed(module: nn.Module) -> None:
    """Let a layer form its weight anew whenever it is called, and never before."""
    nn.utils.weight_norm(module)
    with torch.no_grad():
        module.get_parameter("weight_g").mul_(1.5)


@pytest.mark.parametrize("name", [name for name in IN_PLACE if name not in ("based", "stack")])
@pytest.mark.parametrize("change", ["adapted", louder, reweighed])
def test_layers_that_do_more_than_their_weights_say_are_called(name, change):
    module = memory.make(name, dim=DIM)
    layers = [
        (parent, child, layer)
        for parent in module.modules()
        for child, layer in parent.named_children()
        if isinstance(layer, nn.Linear)
    ]
    for parent, child, layer in layers:
        if change == "adapted":
            setattr(parent, child, Adapted(layer))
        else:
            change(layer)
    assert isinstance(module.stepper(module.initial_state(2)), PlainStepper) == bool(layers)


def test_a_part_that_is_changed_is_called_and_others_are_stepped_in_place():
    module: Any = memory.make("stack", dim=DIM)
    louder(next(layer for layer in module.parts[0].modules() if isinstance(layer, nn.Linear)))
    x, start = draw(7)
    state = module.initial_state(ROWS)
    assert_alike(
        stepped(module, x, start, state, range(30)), plain(module, x, start, state, range(30)), tolerance=1e-5
    )
    assert not isinstance(module.stepper(state), PlainStepper)
