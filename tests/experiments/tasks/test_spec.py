"""Stored environment properties are loaded unchanged, and invalid files are rejected."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents.rl.spaces import Spaces
from scrubjay.experiments.recipes import RECIPES
from scrubjay.experiments.tasks.environments import EnvFacts

from ..extras import recipe_parameters

SPACES = [
    spaces.Box(-np.inf, np.inf, (3,), np.float32),
    spaces.Box(0, 255, (4, 5, 3), np.uint8),
    spaces.Box(np.array([-1, -np.inf, 0.1]), np.array([1, np.inf, 2.5]), dtype=np.float64),
    spaces.Box(0, 1, ()),
    spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])),
    spaces.MultiDiscrete([2, 3], start=[1, -1]),
    spaces.MultiBinary(4),
    spaces.MultiBinary([2, 3]),
    spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Discrete(5)])}),
]
TOLD = {
    "observation": {"space": "Box", "shape": [3], "low": 0.0, "high": 1.0, "dtype": "float32"},
    "action": {"space": "Discrete", "n": 2, "start": 0, "dtype": "int64"},
    "num_agents": None,
    "success_without_memory": 0.5,
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*TOLD, "space", "n"]), inner)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_what_is_kept_comes_back_as_it_was(space):
    facts = EnvFacts(Spaces(space, spaces.Discrete(2), 3), 0.25)
    again = EnvFacts.from_json(facts.to_json())
    assert again == facts
    assert again.spaces.observation.dtype == space.dtype


@pytest.mark.parametrize("name", recipe_parameters("ppo", "team"))
def test_so_do_the_facts_of_every_recipe(name):
    config = RECIPES[name]()
    if config.policy_type is not None:
        facts = config.env.facts()
        assert EnvFacts.from_json(facts.to_json()) == facts
        assert facts.success_without_memory == config.success_without_memory


def test_a_space_without_a_policy_is_refused():
    with pytest.raises(TypeError, match="Text"):
        EnvFacts(Spaces(spaces.Text(3), spaces.Discrete(2))).to_json()


BOX, DISCRETE = TOLD["observation"], TOLD["action"]


@pytest.mark.parametrize(
    "change",
    [
        {"observation": {**BOX, "shape": [10**12]}},
        {"observation": {**BOX, "shape": [4096, 4096, 4096]}},
        {"observation": {**BOX, "shape": [-1]}},
        {"observation": {**BOX, "dtype": "object"}},
        {"observation": {**BOX, "dtype": "O"}},
        {"observation": {**BOX, "low": [0.0, 1.0]}},
        {"observation": {**BOX, "low": None}},
        {"observation": {**BOX, "low": "1e5"}},
        {"observation": {"space": "Tuple", "parts": [{**BOX, "shape": [2**23]}] * 3}},
        {"observation": {"space": "Text"}},
        {"observation": {"space": ["Box"]}},
        {"action": {**DISCRETE, "n": 10**12}},
        {"action": {**DISCRETE, "n": 0}},
        {"action": {**DISCRETE, "n": True}},
        {"action": {**DISCRETE, "start": 10**400}},
        {"action": {"space": "MultiDiscrete", "n": [2**23] * 3, "start": [0] * 3, "dtype": "int64"}},
        {"action": {"space": "MultiDiscrete", "n": [10**30], "start": [0], "dtype": "int64"}},
        {"action": {"space": "MultiBinary", "n": [2**20, 2**20]}},
        {"num_agents": 10**9},
        {"num_agents": 1.5},
        {"success_without_memory": "much"},
        {"success_without_memory": float("nan")},
    ],
)
def test_sizes_and_kinds_that_cannot_be_meant_are_refused(change):
    with pytest.raises(ValueError, match=r".") as error_info:
        EnvFacts.from_json(json.dumps(TOLD | change))
    assert "\n" not in str(error_info.value)


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", "[" * 100_000, '{"observation": 3}', "\0"])
def test_so_is_what_is_no_such_file(text):
    with pytest.raises(ValueError, match=r"."):
        EnvFacts.from_json(text)


@given(st.sampled_from(sorted(TOLD)), json_values)
def test_nothing_else_is_raised_whatever_is_written(field, value):
    try:
        facts = EnvFacts.from_json(json.dumps(TOLD | {field: value}))
    except ValueError:
        return
    assert isinstance(facts.spaces.observation, gymnasium.Space)


def test_a_nest_of_spaces_has_an_end():
    nested = BOX
    for _ in range(50):
        nested = {"space": "Tuple", "parts": [nested]}
    with pytest.raises(ValueError, match="deep"):
        EnvFacts.from_json(json.dumps(TOLD | {"observation": nested}))
