"""Policies have equal returns within noise in scrubjay's environments and in POPGym's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
from popgym import envs as popgym_envs

import scrubjay.envs  # noqa: F401  (registers)

pytestmark = pytest.mark.requires("popgym")

Answer = Callable[[Sequence[np.ndarray]], int]
"""Policy with memory: maps all observations of the episode so far to an answer."""


def suit_before(history: Sequence[np.ndarray]) -> int:
    return int(history[-4][0]) if len(history) >= 4 else 0


def recite(history: Sequence[np.ndarray]) -> int:
    playing = [mode == 0 for mode, _ in history]
    if not playing[-1]:
        return 0
    first = playing.index(True)
    return int(history[first - (len(history) - 1 - first)][1])


def count(history: Sequence[np.ndarray]) -> int:
    return sum(int(value == history[-1][1]) for value, _ in history)


TASKS: dict[str, tuple[Answer, str, dict[str, Any]]] = {
    "RepeatPreviousEasy": (suit_before, "scrubjay/RepeatPrevious-v0", {"k": 4}),
    "AutoencodeEasy": (recite, "scrubjay/Autoencode-v0", {}),
    "CountRecallEasy": (count, "scrubjay/CountRecall-v0", {}),
}


def measure_scrubjay_returns(
    answer: Answer, slip: float, env_id: str, options: dict[str, Any], rows: int
) -> np.ndarray:
    env = gymnasium.make_vec(env_id, num_envs=rows, autoreset_mode="Disabled", **options)
    space: Any = env.single_action_space
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    history, total, done = [observation.reshape(rows, -1)], np.zeros(rows), False
    while not done:
        answers = np.array([answer([step[row] for step in history]) for row in range(rows)])
        actions = np.where(rng.random(rows) < slip, rng.integers(space.n, size=rows), answers)
        observation, rewards, terminated, truncated, _ = env.step(actions)
        history.append(observation.reshape(rows, -1))
        total += rewards
        done = bool((terminated | truncated).all())
    return total


def measure_popgym_returns(answer: Answer, slip: float, name: str, episodes: int) -> np.ndarray:
    env = getattr(popgym_envs, name)()
    rng = np.random.default_rng(1)
    totals = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        history, total, done = [np.atleast_1d(observation)], 0.0, False
        while not done:
            slips = rng.random() < slip
            action = int(rng.integers(env.action_space.n)) if slips else answer(history)
            observation, reward, terminated, truncated, _ = env.step(action)
            history.append(np.atleast_1d(observation))
            total += reward
            done = terminated or truncated
        totals.append(total)
    return np.array(totals)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("slip", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", TASKS)
def test_a_policy_has_the_returns_that_it_has_in_popgym(name: str, slip: float) -> None:
    answer, env_id, options = TASKS[name]
    ours = measure_scrubjay_returns(answer, slip, env_id, options, 60)
    theirs = measure_popgym_returns(answer, slip, name, 60)
    if slip == 0:
        np.testing.assert_allclose(ours, 1)
        np.testing.assert_allclose(theirs, 1)
        return
    noise = np.sqrt(ours.var(ddof=1) / len(ours) + theirs.var(ddof=1) / len(theirs))
    assert abs(ours.mean() - theirs.mean()) < 4 * noise
    assert 0.5 < ours.std() / theirs.std() < 2
