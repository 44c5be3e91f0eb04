"""Spaces as plain JSON: they come back as they were, and no room is taken for what cannot be meant."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gymnasium import spaces

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
