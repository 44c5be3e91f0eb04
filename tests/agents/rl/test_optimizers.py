"""A restored optimizer continues exactly; a state of other parameters is refused and changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from scrubjay.agents.rl.learner import adam, load_optimizer_state, take_step
from scrubjay.kernels.derivatives import retain_freed_memory


def train_model(steps: int, seed: int = 0) -> tuple[nn.Module, torch.optim.Adam]:
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(steps):
        update(model, optimizer)
    return model, optimizer


def update(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.arange(3.0)).square().sum().backward()
    optimizer.step()


def test_who_learns_keeps_what_steps_free():
    retain_freed_memory.cache_clear()
    optimizer = adam(nn.Linear(3, 2).parameters(), 0.1)
    assert retain_freed_memory.cache_info().currsize == 1
    assert optimizer.defaults["lr"] == 0.1


@pytest.mark.parametrize("has_unused", [False, True])
def test_a_step_is_the_optimisers_own(has_unused, assert_equal):
    ends = []
    for quick in (False, True):
        torch.manual_seed(1)
        model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
        optimizer = adam(model.parameters(), 0.1)
        for turn in range(5):
            optimizer.param_groups[0]["lr"] = 0.1 / (turn + 1)
            optimizer.zero_grad()
            # A part that is not used at first gets its state later than the others.
            active_parts = model[:1] if has_unused and turn < 2 else model
            torch.stack(
                [part(torch.arange(3.0) + turn).square().sum() for part in active_parts]
            ).sum().backward()
            take_step(optimizer) if quick else optimizer.step()
        ends.append({"weights": model.state_dict(), "moments": optimizer.state_dict()["state"]})
    assert_equal(*ends)


@pytest.mark.parametrize("steps", [0, 4])
def test_it_goes_on_as_the_one_that_was_saved(steps, assert_equal):
    model, optimizer = train_model(steps)
    optimizer.param_groups[0]["lr"] = 0.03
    other, again = train_model(0, seed=1)
    other.load_state_dict(model.state_dict())
    saved_state = copy.deepcopy(optimizer.state_dict())
    load_optimizer_state(again, saved_state)
    for _ in range(3):
        update(model, optimizer)
        update(other, again)
    assert_equal(model.state_dict(), other.state_dict())
    assert_equal(saved_state["state"], train_model(steps)[1].state_dict()["state"])


def list_invalid_states():
    """Yield functions that make a state invalid, each with the expected error message."""
    nan = torch.full((2, 3), float("nan"))
    for name, value in (
        *(
            ("exp_avg", value)
            for value in (None, 3, "x", [1], torch.zeros(3, 2), nan, torch.zeros(2, 3).int())
        ),
        *(("step", value) for value in (None, torch.zeros(2), 4.0, torch.tensor(float("inf")))),
    ):
        yield lambda state, n=name, v=value: state["state"][0].update({n: v}), f"{name!r} of parameter 0"
    for key, value in (
        ("state", 3),
        ("state", None),
        ("param_groups", []),
        ("param_groups", [3]),
        ("state", {0: 1}),
    ):
        yield lambda state, k=key, v=value: state.update({k: v}), "does not match this policy"
    yield lambda state: state["state"].update({7: {}}), "does not match this policy"
    yield lambda state: state["state"].update({"x": {}}), "does not match this policy"
    yield lambda state: state["state"][0].pop("exp_avg"), "must have the same keys"
    yield lambda state: state["param_groups"][0].update(params=[0]), "does not match this policy"
    for rate in (None, "x", -1.0, float("nan"), True, [0.1]):
        yield lambda state, r=rate: state["param_groups"][0].update(lr=r), "the state has learning rate"


@pytest.mark.parametrize(("change", "message"), list_invalid_states())
def test_what_is_not_of_its_parameters_is_refused_and_changes_nothing(change, message, assert_equal):
    _, optimizer = train_model(4)
    state = copy.deepcopy(optimizer.state_dict())
    before = copy.deepcopy(state)
    change(state)
    with pytest.raises(ValueError, match=message):
        load_optimizer_state(optimizer, state)
    assert_equal(optimizer.state_dict()["state"], before["state"])


@pytest.mark.parametrize("state", [None, 3, [], "x", {}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(ValueError, match="does not match this policy"):
        load_optimizer_state(train_model(1)[1], state)


def test_settings_are_the_optimisers_own():
    _, optimizer = train_model(2)
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0].update(betas=(2.0, -1.0), capturable=True, differentiable=True, unknown=1)
    load_optimizer_state(optimizer, state)
    group = optimizer.param_groups[0]
    assert (group["betas"], group["capturable"], group["differentiable"]) == ((0.9, 0.999), False, False)
    assert "unknown" not in group
