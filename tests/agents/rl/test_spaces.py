"""Spaces as plain JSON: they come back as they were, and no room is taken for what cannot be meant."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from scrubjay.agents import Spaces

BYTES = spaces.Box(0, 255, (4, 5, 3), np.uint8)
NESTED = spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Tuple([BYTES, spaces.MultiBinary([2, 3])])})


@pytest.mark.parametrize("num_agents", [None, 3])
@pytest.mark.parametrize("observation", [BYTES, NESTED, spaces.MultiDiscrete([2, 3], start=[1, -1])], ids=str)
def test_they_come_back_as_they_were(observation, num_agents):
    saved_spaces = Spaces(observation, spaces.Box(-np.inf, 1, (2,)), num_agents)
    loaded_spaces = Spaces.from_dict(json.loads(json.dumps(saved_spaces.to_dict(), allow_nan=False)))
    assert loaded_spaces == saved_spaces
    assert loaded_spaces.observation.dtype == observation.dtype


@pytest.mark.parametrize(
    "choices", [[2**20] * 2**5, [2**12, *[1] * 2**13], [0], [-1], [2.5], [], [[[2**25]]]]
)
def test_no_room_is_made_for_more_choices_than_are_meant(choices):
    """A policy scores as many for each as the most that one has: one large one makes all of them large."""
    fields = Spaces(BYTES, spaces.MultiDiscrete([2, 3])).to_dict()
    fields["action"] = {**fields["action"], "n": choices, "start": choices}
    with pytest.raises(ValueError, match=r"numbers or choices|expected|integers|spaces of an environment"):
        Spaces.from_dict(fields)


@pytest.mark.parametrize("value", [None, [], 3, "x", {}, {"observation": 1}])
def test_what_is_none_is_refused(value):
    with pytest.raises(ValueError, match="invalid spaces: "):
        Spaces.from_dict(value)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([["a", "b"], ["a", "b"]], "choose from Box"),
        (
            [["a", {"space": "Discrete", "n": 2, "start": 0, "dtype": "int64"}]] * 2,
            "each key must occur once",
        ),
        ([[0, {"space": "MultiBinary", "n": 2}], ["0", {"space": "MultiBinary", "n": 3}]], "must occur once"),
        ([[None, {"space": "MultiBinary", "n": 2}]], "expected a string or an integer"),
        ([["a"]], "must|expected|not enough"),
        ("ab", "not enough|wrong type"),
        (7, "wrong type"),
    ],
)
def test_wrong_parts_of_an_action_space_are_refused(parts, message):
    fields = Spaces(BYTES, spaces.Dict({"a": spaces.Discrete(2)})).to_dict()
    fields["action"]["parts"] = parts
    with pytest.raises(ValueError, match=message):
        Spaces.from_dict(fields)


def test_an_action_space_of_too_many_parts_is_refused():
    fields = Spaces(BYTES, spaces.Tuple([spaces.Discrete(2)])).to_dict()
    fields["action"]["parts"] *= 2**10
    with pytest.raises(ValueError, match="too many nested spaces"):
        Spaces.from_dict(fields)


class WithMethod(gymnasium.Wrapper):
    def action_masks(self):
        return np.ones(2, dtype=bool)


CASES = [
    ("CartPole-v1", [], False),
    ("Pendulum-v1", [], False),
    ("Taxi-v3", [], True),
    ("CartPole-v1", [WithMethod], True),
]
MAKES = [gymnasium.make, "list", "sync", "async"]


@pytest.mark.parametrize(
    ("id", "wrappers", "masks", "make"),
    [*((*case, make) for case in CASES for make in MAKES), (*CASES[0], "vector_entry_point")],
)
def test_spaces_are_those_of_an_environment_single_or_batched(id, wrappers, masks, make):
    """Taxi-v3 offers action masks in its infos. `make_vec` makes its environments by a generator."""
    single = gymnasium.make(id)
    for wrapper in wrappers:
        single = wrapper(single)
    if make == "list":
        envs = SyncVectorEnv([lambda: single] * 2)
    elif isinstance(make, str):
        envs = gymnasium.make_vec(id, num_envs=2, vectorization_mode=make, wrappers=wrappers)
    else:
        envs = single
    spaces_of_env = Spaces.from_env(envs)
    envs.close()
    assert spaces_of_env == Spaces(single.observation_space, single.action_space, action_masks=masks)
