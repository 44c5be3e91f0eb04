"""A model is known by its config alone, and built only if its weights are as large."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.utils import _device

from scrubjay.agents.rl.spaces import Spaces
from scrubjay.experiments import RECIPES
from scrubjay.memory import list_memories, make_config
from scrubjay.memory.sketch import (
    MisfitError,
    TooLargeError,
    fitted,
    nbytes,
    sketch,
    state_nbytes,
)


@pytest.fixture(scope="module")
def spaces() -> dict[str, Spaces]:
    return {name: RECIPES[name]().env.spaces() for name in ("tmaze", "ballet", "uav-small")}


@pytest.mark.parametrize("memory", list_memories())
@pytest.mark.parametrize("recipe", ["tmaze", "ballet", "uav-small"])
def test_a_sketch_is_as_large_as_the_policy(recipe, memory, spaces):
    config = RECIPES[recipe]().with_memory(make_config(memory, dim=16)).policy
    build = lambda: config.build(spaces[recipe])
    drawn, made = sketch(build, 2**30), build()
    assert {name: value.shape for name, value in drawn.state_dict().items()} == {
        name: value.shape for name, value in made.state_dict().items()
    }
    assert all(value.is_meta for value in drawn.state_dict().values())
    assert state_nbytes(drawn, 3) == nbytes(made.initial_state(3))
    again = fitted(build, made.state_dict())
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("memory", list_memories())
def test_a_sketch_has_no_numbers_where_transformers_came_first(memory, monkeypatch):
    """It replaces `torch.linspace` while it loads a model, and torch may learn what makes tensors then."""
    made = _device._device_constructors() - {torch.linspace}
    monkeypatch.setattr(_device, "_device_constructors", lambda: made)
    drawn = sketch(make_config(memory, dim=16).build, 2**30)
    assert all(value.is_meta for value in drawn.state_dict().values())


def tower(layers: int, width: int = 8) -> nn.Module:
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


@pytest.mark.parametrize(
    ("layers", "width", "told"),
    [
        (1, 10**6, r"weight of shape \[1000000, 1000000\]"),
        (1, 2**62, "sizes too large to be counted"),
        (10**12, 8, "more than 80 tensors"),
        (3, 8, "2.bias is not there"),
        (1, 8, "1.bias is .*there, and not by the config"),
        (2, 10, r"0.bias is \[8\] there, and \[10\] by the config"),
    ],
)
def test_what_does_not_fit_is_not_built(layers, width, told):
    weights = tower(2).state_dict()
    built = []

    def build():
        built.append(torch.empty(0).is_meta)
        return tower(layers, width)

    with pytest.raises(MisfitError, match=told):
        fitted(build, weights)
    assert built == [True]


def test_many_small_parts_are_too_many_too():
    with pytest.raises(TooLargeError, match="more than 100 tensors"):
        sketch(lambda: tower(10**9), 2**60, 100)


def test_another_threads_models_are_built_as_ever():
    begun, ended = threading.Event(), threading.Event()

    def build():
        begun.set()
        assert ended.wait(60)
        return tower(1)

    made = []
    other = threading.Thread(target=lambda: (begun.wait(60), made.append(tower(1, 2000)), ended.set()))
    other.start()
    sketch(build, 2**10)
    other.join()
    assert not made[0][0].weight.is_meta
