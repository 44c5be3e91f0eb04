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
    find_outside,
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


def test_the_first_value_outside_its_box_is_described():
    leaves = {
        "speed": spaces.Box(-1, 1, (2,)),
        "angle": spaces.Box(-np.pi, np.pi, ()),
        "free": spaces.Box(-np.inf, np.inf, (2,)),
        "half": spaces.Box(0, np.inf, (1,)),
        "image": spaces.Box(0, 255, (2, 2), np.uint8),
        "level": spaces.Box(0, 9, (2,), np.uint8),
    }
    values = {key: np.zeros((3, 4, *leaf.shape), leaf.dtype) for key, leaf in leaves.items()}
    values["speed"][:] = [-1, 1]
    values["free"][:] = 1e9
    values["image"][:] = 255
    assert find_outside(leaves, values) is None
    values["level"][2, 3, 1] = 10
    assert find_outside(leaves, values) == (
        "observation 'level' contains 10 at index (1,), which is outside its space, Box(0, 9, (2,), uint8)"
    )
    values["half"][1, 0] = -1
    assert str(find_outside(leaves, values)).startswith("observation 'half' contains -1.0 at index (0,)")
    values["angle"][2, 1] = 4
    assert str(find_outside(leaves, values)).startswith("observation 'angle' contains 4.0, which is outside")
    values["speed"][1, 2] = [3, -2]
    assert str(find_outside(leaves, values)).startswith("observation 'speed' contains 3.0 at index (0,)")
    alive = np.ones((3, 4), np.bool_)
    alive[1, 2] = False
    assert str(find_outside(leaves, values, alive)).startswith("observation 'angle'")


def test_padding_of_a_set_may_be_outside_its_box():
    leaves = {"things": spaces.Box(-1, 1, (3, 2)), "things_mask": spaces.MultiBinary(3)}
    values = {"things": np.zeros((5, 3, 2), np.float32), "things_mask": np.array([[1, 1, 0]] * 5)}
    values["things"][:, 2] = 7
    assert find_outside(leaves, values) is None
    values["things"][4, 1, 0] = 7
    assert "contains 7.0 at index (1, 0)" in str(find_outside(leaves, values))


@pytest.mark.parametrize(
    "parts",
    [
        {"a/b": spaces.Discrete(2), "a": spaces.Dict({"b": spaces.Discrete(3)})},
        {"a/0": spaces.Discrete(2), "a": spaces.Tuple([spaces.Discrete(3)])},
    ],
    ids=["dict", "tuple"],
)
def test_parts_with_the_same_joined_key_are_refused(parts):
    with pytest.raises(TypeError, match=r"two parts 'a/[b0]'; rename one of them"):
        leaf_spaces(spaces.Dict(parts))
    assert (
        len(leaf_spaces(spaces.Dict({"a": parts["a"], "b": parts["a/b" if "a/b" in parts else "a/0"]}))) == 2
    )
