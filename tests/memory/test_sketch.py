"""Models on the meta device, and models that are built only if the weights match."""

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
    build_matching,
    nbytes,
    sketch,
    state_nbytes,
)


@pytest.fixture(scope="module")
def spaces() -> dict[str, Spaces]:
    return {name: RECIPES[name]().env.spaces() for name in ("tmaze", "ballet", "uav-small")}


@pytest.mark.one_in(9)
@pytest.mark.parametrize("memory", list_memories())
@pytest.mark.parametrize("recipe", ["tmaze", "ballet", "uav-small"])
def test_a_sketch_is_as_large_as_the_policy(recipe, memory, spaces):
    config = RECIPES[recipe]().with_memory(make_config(memory, dim=16)).policy
    build = lambda: config.build(spaces[recipe])
    sketch_model, model = sketch(build, 2**30), build()
    assert {name: value.shape for name, value in sketch_model.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    assert all(value.is_meta for value in sketch_model.state_dict().values())
    assert state_nbytes(sketch_model, 3) == nbytes(model.initial_state(3))
    again = build_matching(build, model.state_dict())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("memory", list_memories())
def test_a_sketch_has_no_numbers_where_transformers_came_first(memory, monkeypatch):
    """transformers replaces `torch.linspace` while loading, and torch may cache its constructors then."""
    model = _device._device_constructors() - {torch.linspace}
    monkeypatch.setattr(_device, "_device_constructors", lambda: model)
    sketch_model = sketch(make_config(memory, dim=16).build, 2**30)
    assert all(value.is_meta for value in sketch_model.state_dict().values())


def tower(layers: int, width: int = 8) -> nn.Module:
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


@pytest.mark.parametrize(
    ("layers", "width", "message"),
    [
        (1, 10**6, r"weight of shape \[1000000, 1000000\]"),
        (1, 2**62, "exceed the integer range of torch"),
        (10**12, 8, "limit of 80 tensors"),
        (3, 8, "2.bias: weights have shape none, but the config has"),
        (1, 8, "1.bias: weights have shape .*, but the config has none"),
        (2, 10, r"0.bias: weights have shape \[8\], but the config has \[10\]"),
    ],
)
def test_a_mismatched_model_is_not_built(layers, width, message):
    weights = tower(2).state_dict()
    meta_flags = []

    def build():
        meta_flags.append(torch.empty(0).is_meta)
        return tower(layers, width)

    with pytest.raises(MisfitError, match=message):
        build_matching(build, weights)
    assert meta_flags == [True]


def test_many_small_parts_are_too_many_too():
    with pytest.raises(TooLargeError, match="limit of 100 tensors"):
        sketch(lambda: tower(10**9), 2**60, 100)


def test_another_threads_models_are_built_as_ever():
    is_started, is_done = threading.Event(), threading.Event()

    def build():
        is_started.set()
        assert is_done.wait(60)
        return tower(1)

    model = []
    other = threading.Thread(
        target=lambda: (is_started.wait(60), model.append(tower(1, 2000)), is_done.set())
    )
    other.start()
    sketch(build, 2**10)
    other.join()
    assert not model[0][0].weight.is_meta
