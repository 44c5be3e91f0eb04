"""Observations and rewards are checked against the spaces; the padding of sets is not."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from scrubjay.agents.rl.observations import (
    EnvFaultError,
    check_finite,
    check_indices,
    check_observation,
    check_rewards,
    leaf_spaces,
)

SPACE = spaces.Dict(
    {
        "marks": spaces.MultiDiscrete(np.array([[2, 3], [2, 3]])),
        "marks_mask": spaces.MultiBinary(2),
        "place": spaces.Discrete(3, start=-1),
        "speed": spaces.Box(-1, 1, (2,)),
    }
)


def batch(rows: int = 4) -> dict[str, np.ndarray]:
    observation = {
        "marks": np.zeros((rows, 2, 2), np.int64),
        "marks_mask": np.ones((rows, 2), np.int8),
        "place": np.array([-1, 0, 1, 1]),
        "speed": np.ones((rows, 2)),
    }
    observation["marks"][:, 0] = -7
    observation["marks_mask"][:, 0] = 0
    return observation


@pytest.mark.parametrize(
    ("key", "place", "value"),
    [("place", 2, 2), ("place", 0, -2), ("marks", (1, 1, 0), 2), ("marks", (3, 1, 1), -1)],
)
def test_an_index_of_no_category_is_named(key, place, value):
    leaves, observation = leaf_spaces(SPACE), batch()
    check_indices(leaves, observation)
    observation[key][place] = value
    with pytest.raises(
        EnvFaultError, match=f"observation '{key}' contains {value}, which is not in its space"
    ):
        check_indices(leaves, observation)


def test_numbers_and_rewards_are_finite():
    leaves, observation = leaf_spaces(SPACE), batch()
    check_finite(leaves, observation)
    observation["speed"][1, 1] = -np.inf
    with pytest.raises(EnvFaultError, match="observation 'speed' contains -inf; observations must be finite"):
        check_finite(leaves, observation)
    rewards = np.zeros((5, 3, 2), np.float32)
    check_rewards(rewards)
    rewards[2, 1, 0] = np.nan
    with pytest.raises(EnvFaultError, match="environment 1 returned the reward nan"):
        check_rewards(rewards)


def test_one_observation_has_the_shapes_of_its_space():
    plain = spaces.Box(0, 1, (2, 3))
    check_observation(plain, [[0, 1, 0], [1, 0, 1]])
    for observation, shape in ((np.zeros(6), r"\(6,\)"), ([[0], [1, 0]], "None"), (None, r"\(\)")):
        with pytest.raises(
            EnvFaultError, match=rf"observation has shape {shape}; expected \(2, 3\), as its space is"
        ):
            check_observation(plain, observation)
