"""Errors of environments during episodes, reported with the environment's name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np

from scrubjay.agents.rl.observations import (
    EnvFaultError,
    check_finite,
    check_observation,
    check_rewards,
    leaf_spaces,
    leaf_values,
)

_TRIAL_STEPS = 16


class BrokenEnvError(RuntimeError):
    """Error raised by an environment's own code. It is not bad input, so its traceback is kept."""


@contextlib.contextmanager
def environment_errors(name: str) -> Iterator[None]:
    """Add the name of the environment to errors that are raised in the `with` block.

    Raises EnvFaultError on invalid observations or rewards. Raises BrokenEnvError in place of TypeError and
    ValueError of the environment, which would be mistaken for errors of input validation.
    """
    try:
        yield
    except EnvFaultError as error:
        raise EnvFaultError(f"environment {str(name)!r}: {error}") from error
    except (TypeError, ValueError) as error:
        raise BrokenEnvError(f"environment {str(name)!r} raised {type(error).__name__}: {error}") from error


def try_out(env: gymnasium.Env[Any, Any]) -> None:
    """Take some random steps. Raises EnvFaultError if the environment violates gymnasium's API."""
    env.action_space.seed(0)
    over = True
    for time in range(_TRIAL_STEPS):
        if over:
            observation, _ = _check_result("reset", env.reset(seed=None if time else 0), "observation, info")
            _check_observation(env, observation)
        result = _check_result(
            "step",
            env.step(env.action_space.sample()),
            "observation, reward, terminated, truncated, info",
        )
        _check_observation(env, result[0])
        _check_reward(result[1])
        over = bool(result[2] or result[3])


def _check_result(method: str, result: Any, expected: str) -> tuple[Any, ...]:
    count = len(expected.split(", "))
    if not isinstance(result, tuple) or len(result) != count or not isinstance(result[-1], dict):
        returned_type = (
            f"a tuple of {len(result)}" if isinstance(result, tuple) else f"a {type(result).__name__}"
        )
        raise EnvFaultError(f"{method} returned {returned_type}; expected {expected} as in gymnasium 1.x")
    return result


def _check_observation(env: gymnasium.Env[Any, Any], observation: Any) -> None:
    check_observation(env.observation_space, observation)
    check_finite(leaf_spaces(env.observation_space), leaf_values(observation))


def _check_reward(reward: Any) -> None:
    try:
        array = np.asarray(reward, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape:
        raise EnvFaultError(f"step returned reward {reward!r:.60}; it must be a number")
    check_rewards(array.reshape(1, 1))
