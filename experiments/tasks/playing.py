"""What goes wrong in an environment while it is played, told with its name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np

from scrubjay.agents.rl.observations import (
    EnvFaultError,
    check_numbers,
    check_rewards,
    check_shown,
    leaf_spaces,
    leaf_values,
)

_STEPS = 16


class BrokenEnvError(RuntimeError):
    """An environment's own code raised what its cause is: no bad input, so that its traceback is kept."""


@contextlib.contextmanager
def playing(name: str) -> Iterator[None]:
    """While entered, let what the environment `name` raises tell whose it is.

    Raises EnvFaultError on what it shows or pays, BrokenEnvError in place of its TypeError or ValueError,
    which would be taken for those of checks on what the user gave.
    """
    try:
        yield
    except EnvFaultError as error:
        raise EnvFaultError(f"environment {str(name)!r}: {error}") from error
    except (TypeError, ValueError) as error:
        raise BrokenEnvError(f"environment {str(name)!r} raised {type(error).__name__}: {error}") from error


def try_out(env: gymnasium.Env[Any, Any]) -> None:
    """Begin an episode and act at random for some steps; raises EnvFaultError on what is wrong."""
    env.action_space.seed(0)
    over = True
    for time in range(_STEPS):
        if over:
            observation, _ = _parts("reset", env.reset(seed=None if time else 0), "observation, info")
            _check_seen(env, observation)
        told = _parts(
            "step",
            env.step(env.action_space.sample()),
            "observation, reward, terminated, truncated, info",
        )
        _check_seen(env, told[0])
        _check_reward(told[1])
        over = bool(told[2] or told[3])


def _parts(method: str, told: Any, expected: str) -> tuple[Any, ...]:
    count = len(expected.split(", "))
    if not isinstance(told, tuple) or len(told) != count or not isinstance(told[-1], dict):
        found = f"a tuple of {len(told)}" if isinstance(told, tuple) else f"a {type(told).__name__}"
        raise EnvFaultError(f"{method} returned {found}; expected {expected} as of gymnasium 1.x")
    return told


def _check_seen(env: gymnasium.Env[Any, Any], observation: Any) -> None:
    check_shown(env.observation_space, observation)
    check_numbers(leaf_spaces(env.observation_space), leaf_values(observation))


def _check_reward(reward: Any) -> None:
    try:
        paid = np.asarray(reward, dtype=np.float64)
    except (TypeError, ValueError):
        paid = np.empty(0)
    if paid.shape:
        raise EnvFaultError(f"step paid {reward!r:.60}: a reward is a number")
    check_rewards(paid.reshape(1, 1))
