"""What an environment shows and pays is held to its spaces; what lies in a set's empty slots is not."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from scrubjay.agents.rl.observations import (
    EnvFaultError,
    check_indices,
    check_numbers,
    check_rewards,
    check_shown,
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
    shown = {
        "marks": np.zeros((rows, 2, 2), np.int64),
        "marks_mask": np.ones((rows, 2), np.int8),
        "place": np.array([-1, 0, 1, 1]),
        "speed": np.ones((rows, 2)),
    }
    shown["marks"][:, 0] = -7
    shown["marks_mask"][:, 0] = 0
    return shown


@pytest.mark.parametrize(
    ("key", "place", "value"),
    [("place", 2, 2), ("place", 0, -2), ("marks", (1, 1, 0), 2), ("marks", (3, 1, 1), -1)],
)
def test_an_index_of_no_category_is_named(key, place, value):
    leaves, shown = leaf_spaces(SPACE), batch()
    check_indices(leaves, shown)
    shown[key][place] = value
    with pytest.raises(EnvFaultError, match=f"observation '{key}' holds {value}, which is not of its space"):
        check_indices(leaves, shown)


def test_numbers_and_rewards_are_finite():
    leaves, shown = leaf_spaces(SPACE), batch()
    check_numbers(leaves, shown)
    shown["speed"][1, 1] = -np.inf
    with pytest.raises(EnvFaultError, match="observation 'speed' holds -inf: a policy sees finite numbers"):
        check_numbers(leaves, shown)
    rewards = np.zeros((5, 3, 2), np.float32)
    check_rewards(rewards)
    rewards[2, 1, 0] = np.nan
    with pytest.raises(EnvFaultError, match="row 1 was paid nan"):
        check_rewards(rewards)


def test_one_observation_has_the_shapes_of_its_space():
    plain = spaces.Box(0, 1, (2, 3))
    check_shown(plain, [[0, 1, 0], [1, 0, 1]])
    for shown, shape in ((np.zeros(6), r"\(6,\)"), ([[0], [1, 0]], "None"), (None, r"\(\)")):
        with pytest.raises(
            EnvFaultError, match=rf"an observation has shape {shape}, and \(2, 3\) by its space"
        ):
            check_shown(plain, shown)
