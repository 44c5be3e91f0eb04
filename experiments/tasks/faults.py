"""Faults of environments: wrong types and results, errors during episodes, and missing packages."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv
from pettingzoo import AECEnv, ParallelEnv

from scrubjay.agents.rl.exits import EXITS, EnvExitError, describe_exit
from scrubjay.agents.rl.masks.action_masks import ActionMasks, read_mask, refuse_mask, sample_action
from scrubjay.agents.rl.observations import (
    EnvFaultError,
    check_finite,
    check_observation,
    check_rewards,
    leaf_spaces,
    leaf_values,
)
from scrubjay.experiments.cli.failures import BrokenEnvError, FailedError, is_out_of_memory
from scrubjay.experiments.resources import CPULimitError


def check_single(env: Any, name: str) -> gymnasium.Env[Any, Any]:
    """Return `env` if it is a single-agent environment; raise ValueError otherwise."""
    if isinstance(env, gymnasium.Env):
        return env
    if isinstance(env, ParallelEnv):
        reason = f"it returned a PettingZoo ParallelEnv, a team: use scrubjay train team --env {name}"
    elif isinstance(env, AECEnv):
        reason = f"it returned a PettingZoo AECEnv, a team whose agents take turns: {_parallel_hint(name)}"
    elif isinstance(env, VectorEnv):
        reason = "it returned a VectorEnv; name a callable that returns a single environment instead"
    else:
        reason = f"it returned a {type(env).__name__}, not a gymnasium.Env"
    raise ValueError(f"environment {str(name)!r}: {reason}")


def check_team(env: Any, name: str) -> ParallelEnv[Any, Any, Any]:
    """Return `env` if it is a team environment; raise ValueError otherwise."""
    if isinstance(env, ParallelEnv):
        return env
    if isinstance(env, AECEnv):
        reason = f"its agents take turns (an AECEnv): {_parallel_hint(name)}"
    elif isinstance(env, gymnasium.Env | VectorEnv):
        reason = f"it returned a single-agent environment, not a team: use scrubjay train ppo --env {name}"
    else:
        reason = f"it returned a {type(env).__name__}, not a PettingZoo ParallelEnv"
    raise ValueError(f"environment {str(name)!r}: {reason}")


def _parallel_hint(name: str) -> str:
    """Return a hint on converting a turn-based environment to a parallel one."""
    module = str(name).partition(":")[0]
    own = f"use {module}:parallel_env, or " if hasattr(sys.modules.get(module), "parallel_env") else ""
    return f"{own}name your own function that returns pettingzoo.utils.aec_to_parallel(env)"


_TRIAL_STEPS = 16


@contextlib.contextmanager
def environment_errors(name: str) -> Iterator[None]:
    """Add the name of the environment to errors that are raised in the `with` block.

    Raises EnvFaultError on invalid observations or rewards. Raises BrokenEnvError in place of other errors of
    the environment, which would be mistaken for errors of Scrubjay. Raises ValueError if a module is missing,
    and the errors of `exit_errors`. Errors of files and a lack of memory are not changed.
    """
    try:
        with exit_errors(name):
            yield
    except EnvFaultError as error:
        raise EnvFaultError(f"environment {str(name)!r}: {error}") from error
    except ImportError as error:
        raise ValueError(describe_import_error(name, error)) from error
    except Exception as error:
        if is_plain(error):
            raise
        raise BrokenEnvError.from_error(name, error) from error


def is_plain(error: Exception) -> bool:
    """Return True if an error of an environment needs no traceback: of a file, a limit, or described."""
    return isinstance(error, (OSError, FailedError, CPULimitError)) or is_out_of_memory(error)


@contextlib.contextmanager
def exit_errors(name: str) -> Iterator[None]:
    """Raise FailedError with the name of the environment if its code ends the process in the `with` block.

    A KeyboardInterrupt counts as such an end, unless it comes from Ctrl-C.
    """
    try:
        with _mark_ctrl_c() as ctrl_c:
            yield
    except EnvExitError as error:
        raise FailedError(f"environment {str(name)!r}: {error}") from error
    except EXITS as error:
        raise FailedError(f"environment {str(name)!r}: {EnvExitError.from_error(error)}") from error
    except KeyboardInterrupt as error:
        if ctrl_c.is_set():
            raise
        raise FailedError(f"environment {str(name)!r}: {describe_exit(error)}") from error


@contextlib.contextmanager
def _mark_ctrl_c() -> Iterator[threading.Event]:
    """Set the event at Ctrl-C, which then raises KeyboardInterrupt as before.

    The event is set from the start where this function cannot tell: in another thread, and under another
    handler of Ctrl-C. A command in the background of a shell ignores Ctrl-C, so there the event is never set.
    """
    event, default = threading.Event(), signal.default_int_handler

    def handle(number: int, frame: FrameType | None) -> None:
        event.set()
        default(number, frame)

    is_main, handler = threading.current_thread() is threading.main_thread(), signal.getsignal(signal.SIGINT)
    if handler == signal.SIG_IGN:
        yield event
        return
    if not is_main or handler is not default:
        event.set()
        yield event
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        if signal.getsignal(signal.SIGINT) is handle:
            signal.signal(signal.SIGINT, default)


class ExitGuard(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Environment in its own process that raises EnvExitError in place of SystemExit.

    Otherwise the process would end without an answer.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Reset the environment."""
        try:
            return self.env.reset(seed=seed, options=options)
        except EXITS as error:
            raise EnvExitError.from_error(error) from error

    def step(self, action: Any) -> Any:
        """Take a step in the environment."""
        try:
            return self.env.step(action)
        except EXITS as error:
            raise EnvExitError.from_error(error) from error


def try_out(env: gymnasium.Env[Any, Any]) -> None:
    """Take some random steps. Raises EnvFaultError if the environment violates gymnasium's API."""
    env.action_space.seed(0)
    over, masks, mask = True, None, None
    for time in range(_TRIAL_STEPS):
        if over:
            result = _check_result("reset", env.reset(seed=None if time else 0), "observation, info")
            _check_observation(env, result[0])
            if not time:
                masks = ActionMasks.find(
                    env.observation_space, env.action_space, read_mask(env, result[1]) is not None
                )
            mask = None if masks is None else masks.read(env, result[0], result[1], time)
        result = _check_result(
            "step",
            env.step(sample_action(env.action_space, mask)),
            "observation, reward, terminated, truncated, info",
        )
        _check_observation(env, result[0])
        _check_reward(result[1])
        over = bool(result[2] or result[3])
        if masks is None:
            refuse_mask(result[-1], time + 1)
        elif not over:
            mask = masks.read(env, result[0], result[-1], time + 1)


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


_REMEDIES = {
    "ale_py": "pip install ale-py",
    "Box2D": "pip install swig, then pip install 'gymnasium[box2d]'",
    "cv2": "pip install opencv-python",
    "mujoco": "pip install 'gymnasium[mujoco]'",
    "PIL": "pip install pillow",
    "sklearn": "pip install scikit-learn",
    "yaml": "pip install pyyaml",
    "mpe2": "pip install 'scrubjay[mpe]'",
    "minigrid": "pip install 'scrubjay[minigrid]'",
    "popgym": "pip install 'scrubjay[popgym]'",
    # Its requirements pin an older gymnasium, hence --no-deps.
    "memory_gym": "pip install --no-deps memory-gym pygame",
}


def missing_module(error: BaseException) -> str | None:
    """Return the name of the missing module from an error or its causes; None if no module is named."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            return cause.name
        cause = cause.__cause__ or cause.__context__
    return None


def describe_import_error(name: str, error: ImportError, kind: str = "environment") -> str:
    """Return an error message that names the module that an environment lacks, and how to get it.

    `kind` is the part of the environment that `name` refers to.
    """
    reason, module = " ".join(str(error).split()), missing_module(error)
    if module is None:
        return f"{kind} {str(name)!r}: {reason}"
    reason = f"{kind} {str(name)!r}: {reason.partition('. ')[0]}"  # gymnasium adds a second sentence
    what = "module:callable" if kind == "environment" else "module:Name"
    source, package = (text.partition(".")[0] for text in (name.partition(":")[0], module))
    has_package = package != module and _is_installed(package)
    remedy = _REMEDIES.get(package) or _REMEDIES.get(source) or f"pip install {package}"
    if has_package and package == source:
        return f"{reason}; write {what} with an importable module"
    if has_package:
        return f"{reason}; the {kind} needs it, but the installed {package} has no such module"
    if package == source and package in _REMEDIES:
        return f"{reason}; {remedy}"
    if package == source:
        return (
            f"{reason}; write {what} with a module in the current folder, or install its package, "
            f"for example: {remedy}"
        )
    return f"{reason}; the {kind} needs it: {remedy}"


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def install_hint(name: str) -> str | None:
    """Return how to install the package of a gymnasium id, if its namespace is not registered."""
    if not name.startswith("ALE/"):
        return None
    first = "" if _is_installed("ale_py") else f"{_REMEDIES['ale_py']}, and "
    return f"{first}name it ale_py:{name}"
