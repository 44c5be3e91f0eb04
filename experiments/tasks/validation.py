"""Type checks of environments returned by a callable, with hints on the right command."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv
from pettingzoo import AECEnv, ParallelEnv


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
