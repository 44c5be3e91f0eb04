"""What all batched environments stand on, shown on one whose every number is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from scrubjay.envs.batched import BatchedEnv, is_bool, is_integer, row_of

LENGTHS = (2, 3, 4)
"""Steps of an episode, by row."""


class Clock(BatchedEnv):
    """Tells the time of its episode and how many began before it; row i ends after LENGTHS[i] steps."""

    row_arrays = ("time", "episode", "lot")

    def __init__(self, mode: AutoresetMode | str = AutoresetMode.NEXT_STEP, **settings: Any) -> None:
        seen = spaces.Box(-1, 99, (3,), np.int64)
        super().__init__(len(LENGTHS), seen, spaces.Discrete(2), settings, None, mode)
        self.time, self.lot = np.zeros((2, len(LENGTHS)), dtype=np.int64)
        self.episode = np.full(len(LENGTHS), -1)

    def _begin(self, rows):
        self.time[rows] = 0
        self.episode[rows] += 1
        self.lot[rows] = self.streams.integers(rows, 90, 1)[:, 0]

    def _advance(self, actions):
        self.time += 1
        ended = self.time >= LENGTHS
        return self.time + 0.5 * actions, ended & (actions == 1), ended & (actions == 0)

    def _observe(self, rows):
        return np.stack([self.time[rows], self.episode[rows], self.lot[rows]], axis=1)

    def _summary(self):
        return {"length": self.time.copy()}

    def _frame(self, row):
        raise NotImplementedError

    def _text(self, row):
        raise NotImplementedError


def rolled(env: Clock, steps: int, action: int = 0) -> list[Any]:
    return [env.step(np.full(len(LENGTHS), action)) for _ in range(steps)]


def test_in_the_step_that_ends_an_episode_the_next_begins() -> None:
    env = Clock(AutoresetMode.SAME_STEP)
    env.reset(seed=0)
    for number, (seen, rewards, terminated, truncated, infos) in enumerate(rolled(env, 12), start=1):
        for row, length in enumerate(LENGTHS):
            ended = number % length == 0
            assert rewards[row] == (number - 1) % length + 1
            assert (truncated[row], terminated[row]) == (ended, False)
            assert seen[row, :2].tolist() == [number % length, number // length]
            if ended:
                assert infos["final_obs"][row][:2].tolist() == [length, number // length - 1]
                assert infos["final_info"]["length"][row] == length


def test_or_in_the_step_after_it_which_pays_nothing() -> None:
    env = Clock(AutoresetMode.NEXT_STEP)
    env.reset(seed=0)
    for number, (seen, rewards, terminated, _, infos) in enumerate(rolled(env, 12, action=1), start=1):
        for row, length in enumerate(LENGTHS):
            time = number % (length + 1)
            assert seen[row, :2].tolist() == [time, number // (length + 1)]
            assert rewards[row] == (time + 0.5 if time else 0)
            assert terminated[row] == (time == length)
            if terminated[row]:
                assert infos["length"][row] == length


def test_or_never_by_itself() -> None:
    env = Clock(AutoresetMode.DISABLED)
    env.reset(seed=0)
    rolled(env, 2)
    with pytest.raises(ResetNeeded, match=r"rows \[0\] have ended"):
        rolled(env, 1)
    seen, _ = env.reset(options={"reset_mask": np.array([True, False, False])})
    assert seen[:, :2].tolist() == [[0, 1], [2, 0], [2, 0]]
    (last,) = rolled(env, 1)
    assert last[3].tolist() == [False, True, False]


def test_seeds_are_counted_on_by_row_or_given_one_by_one() -> None:
    def lots(seed):
        env = Clock()
        return env.reset(seed=seed)[0][:, 2].tolist(), env

    counted, env = lots(7)
    assert lots([7, 8, 9])[0] == counted
    assert lots([9, 8, 7])[0] == counted[::-1]
    # None goes on: two draws of a row are not the same draw.
    again = env.reset(seed=[7, None, None])[0][:, 2].tolist()
    assert again[0] == counted[0]
    assert again[1:] != counted[1:]
    with pytest.raises(ValueError, match="seed has 2 entries; expected one per row, 3"):
        lots([1, 2])


def test_what_was_is_gone_back_to_and_nothing_of_another_is_taken() -> None:
    env, other = Clock(pace=1), Clock(pace=2)
    env.reset(seed=0)
    rolled(env, 3)
    state = env.get_state()
    future = [seen.tolist() for seen, *_ in rolled(env, 9)]
    env.set_state(state)
    assert [seen.tolist() for seen, *_ in rolled(env, 9)] == future
    with pytest.raises(ValueError, match=r"this environment has \{'pace': 2\}"):
        other.set_state(state)
    before = env.get_state()
    for broken, message in (
        ({name: value for name, value in state.items() if name != "lot"}, "state lacks 'lot'"),
        (state | {"time": np.zeros(2, dtype=np.int64)}, r"expected int64\(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            env.set_state(broken)
        np.testing.assert_equal(env.get_state(), before)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reset_mask": np.ones(2, dtype=bool)}, ValueError, r"reset_mask is bool\(2,\)"),
        ({"reset_mask": np.ones(3)}, ValueError, r"reset_mask is float64"),
        ({"reset_mask": np.array([True, False, True])}, ResetNeeded, "the first reset must start every row"),
    ],
)
def test_a_mask_that_cannot_be_is_refused(options, error, message) -> None:
    with pytest.raises(error, match=message):
        Clock().reset(options=options)


def test_before_the_first_reset_there_is_nothing_to_step_or_keep() -> None:
    for use in (lambda env: rolled(env, 1), Clock.get_state):
        with pytest.raises(ResetNeeded, match="before reset"):
            use(Clock())
    with pytest.raises(ValueError, match="autoreset_mode='sometimes': choose from"):
        Clock("sometimes")


def test_a_row_is_copied_out_of_arrays_and_of_dicts_of_them() -> None:
    values = np.arange(6).reshape(3, 2)
    for row in (row_of(values, 1), row_of({"a": values}, 1)["a"]):
        assert row.tolist() == [2, 3]
        row[:] = 9
    assert values.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_integers_are_not_booleans_whoever_made_them() -> None:
    assert all(is_integer(value) for value in (0, -3, np.int8(4), np.uint64(2**63)))
    assert not any(is_integer(value) for value in (True, np.True_, 1.0, "1", None))
    assert all(is_bool(value) for value in (True, False, np.True_))
    assert not any(is_bool(value) for value in (0, 1, np.int64(1), None))
