"""Tests of `BatchedEnv` on an environment with known observations and rewards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from scrubjay.envs.batched_env import BatchedEnv, check_bool, is_integer, select_row

LENGTHS = (2, 3, 4)
"""Episode lengths of the sub-environments."""


class Clock(BatchedEnv):
    """Environment that shows its step and episode number; episodes of row i last LENGTHS[i] steps."""

    row_arrays = ("time", "episode", "lot")

    def __init__(self, mode: AutoresetMode | str = AutoresetMode.NEXT_STEP, **settings: Any) -> None:
        observation_space = spaces.Box(-1, 99, (3,), np.int64)
        super().__init__(len(LENGTHS), observation_space, spaces.Discrete(2), settings, None, mode)
        self.time, self.lot = np.zeros((2, len(LENGTHS)), dtype=np.int64)
        self.episode = np.full(len(LENGTHS), -1)

    def _reset_rows(self, rows):
        self.time[rows] = 0
        self.episode[rows] += 1
        self.lot[rows] = self.streams.integers(rows, 90, 1)[:, 0]

    def _step_rows(self, actions):
        self.time += 1
        dones = self.time >= LENGTHS
        return self.time + 0.5 * actions, dones & (actions == 1), dones & (actions == 0)

    def _observe(self, rows):
        return np.stack([self.time[rows], self.episode[rows], self.lot[rows]], axis=1)

    def _final_info(self):
        return {"length": self.time.copy()}

    def _render_frame(self, row):
        raise NotImplementedError

    def _render_text(self, row):
        raise NotImplementedError


def run_steps(env: Clock, steps: int, action: int = 0) -> list[Any]:
    return [env.step(np.full(len(LENGTHS), action)) for _ in range(steps)]


def test_same_step_autoreset_starts_the_next_episode_in_the_last_step() -> None:
    env = Clock(AutoresetMode.SAME_STEP)
    env.reset(seed=0)
    for number, (obs, rewards, terminated, truncated, infos) in enumerate(run_steps(env, 12), start=1):
        for row, length in enumerate(LENGTHS):
            done = number % length == 0
            assert rewards[row] == (number - 1) % length + 1
            assert (truncated[row], terminated[row]) == (done, False)
            assert obs[row, :2].tolist() == [number % length, number // length]
            if done:
                assert infos["final_obs"][row][:2].tolist() == [length, number // length - 1]
                assert infos["final_info"]["length"][row] == length


def test_next_step_autoreset_starts_it_one_step_later_without_reward() -> None:
    env = Clock(AutoresetMode.NEXT_STEP)
    env.reset(seed=0)
    for number, (obs, rewards, terminated, _, infos) in enumerate(run_steps(env, 12, action=1), start=1):
        for row, length in enumerate(LENGTHS):
            time = number % (length + 1)
            assert obs[row, :2].tolist() == [time, number // (length + 1)]
            assert rewards[row] == (time + 0.5 if time else 0)
            assert terminated[row] == (time == length)
            if terminated[row]:
                assert infos["length"][row] == length


def test_disabled_autoreset_requires_a_reset() -> None:
    env = Clock(AutoresetMode.DISABLED)
    env.reset(seed=0)
    run_steps(env, 2)
    with pytest.raises(ResetNeeded, match=r"episodes of environments \[0\] have ended"):
        run_steps(env, 1)
    obs, _ = env.reset(options={"reset_mask": np.array([True, False, False])})
    assert obs[:, :2].tolist() == [[0, 1], [2, 0], [2, 0]]
    (last,) = run_steps(env, 1)
    assert last[3].tolist() == [False, True, False]


def test_a_seed_counts_up_over_rows_or_comes_as_a_list() -> None:
    def lots(seed):
        env = Clock()
        return env.reset(seed=seed)[0][:, 2].tolist(), env

    lots_of_seven, env = lots(7)
    assert lots([7, 8, 9])[0] == lots_of_seven
    assert lots([9, 8, 7])[0] == lots_of_seven[::-1]
    # None continues the stream, so the second draw of a row differs from the first.
    again = env.reset(seed=[7, None, None])[0][:, 2].tolist()
    assert again[0] == lots_of_seven[0]
    assert again[1:] != lots_of_seven[1:]
    with pytest.raises(ValueError, match="seed has 2 entries; expected one per environment, 3"):
        lots([1, 2])


def test_set_state_restores_the_future_and_rejects_other_states() -> None:
    env, other = Clock(pace=1), Clock(pace=2)
    env.reset(seed=0)
    run_steps(env, 3)
    state = env.get_state()
    future = [obs.tolist() for obs, *_ in run_steps(env, 9)]
    env.set_state(state)
    assert [obs.tolist() for obs, *_ in run_steps(env, 9)] == future
    with pytest.raises(ValueError, match=r"expected those of this environment: \{'pace': 2\}"):
        other.set_state(state)
    before = env.get_state()
    for broken_state, message in (
        ({name: value for name, value in state.items() if name != "lot"}, "state lacks 'lot'"),
        (state | {"time": np.zeros(2, dtype=np.int64)}, r"expected int64\(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            env.set_state(broken_state)
        np.testing.assert_equal(env.get_state(), before)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reset_mask": np.ones(2, dtype=bool)}, ValueError, r"reset_mask is bool\(2,\)"),
        ({"reset_mask": np.ones(3)}, ValueError, r"reset_mask is float64"),
        (
            {"reset_mask": np.array([True, False, True])},
            ResetNeeded,
            "the first reset must cover all environments",
        ),
    ],
)
def test_an_invalid_reset_mask_is_refused(options, error, message) -> None:
    with pytest.raises(error, match=message):
        Clock().reset(options=options)


def test_step_and_get_state_need_a_reset_first() -> None:
    for use in (lambda env: run_steps(env, 1), Clock.get_state):
        with pytest.raises(ResetNeeded, match="before reset"):
            use(Clock())
    with pytest.raises(ValueError, match="autoreset_mode='sometimes': choose from"):
        Clock("sometimes")


def test_select_row_copies_from_arrays_and_dicts() -> None:
    values = np.arange(6).reshape(3, 2)
    for row in (select_row(values, 1), select_row({"a": values}, 1)["a"]):
        assert row.tolist() == [2, 3]
        row[:] = 9
    assert values.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_python_and_numpy_booleans_are_not_integers() -> None:
    assert all(is_integer(value) for value in (0, -3, np.int8(4), np.uint64(2**63)))
    assert not any(is_integer(value) for value in (True, np.True_, 1.0, "1", None))
    assert all(check_bool("flag", value) is bool(value) for value in (True, False, np.True_))
    for value in (0, 1, np.int64(1), None):
        with pytest.raises(ValueError, match=r"flag=.*: expected True or False"):
            check_bool("flag", value)
