"""What a callable returned for an environment, told to who expected another kind of it."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv
from pettingzoo import AECEnv, ParallelEnv


def check_single(env: Any, name: str) -> gymnasium.Env[Any, Any]:
    """Return what `name` made. Raises ValueError if it is a team's, or no environment."""
    if isinstance(env, gymnasium.Env):
        return env
    if isinstance(env, ParallelEnv):
        reason = f"this is a team, a PettingZoo ParallelEnv: use scrubjay train team --env {name}"
    elif isinstance(env, AECEnv):
        reason = f"this is a team whose agents take turns: {_in_parallel(name)}"
    elif isinstance(env, VectorEnv):
        reason = "this is a VectorEnv; name what returns one environment, of which Scrubjay makes rows itself"
    else:
        reason = f"it returned a {type(env).__name__}, not a gymnasium.Env"
    raise ValueError(f"environment {str(name)!r}: {reason}")


def check_team(env: Any, name: str) -> ParallelEnv[Any, Any, Any]:
    """Return what `name` made. Raises ValueError if it is of one agent, or no environment."""
    if isinstance(env, ParallelEnv):
        return env
    if isinstance(env, AECEnv):
        reason = f"its agents take turns (an AECEnv): {_in_parallel(name)}"
    elif isinstance(env, gymnasium.Env | VectorEnv):
        reason = f"this is of one agent, not a team: use scrubjay train ppo --env {name}"
    else:
        reason = f"it returned a {type(env).__name__}, not a PettingZoo ParallelEnv"
    raise ValueError(f"environment {str(name)!r}: {reason}")


def _in_parallel(name: str) -> str:
    """Return how agents that take turns become a team that acts at once."""
    module = str(name).partition(":")[0]
    own = f"use {module}:parallel_env, or " if hasattr(sys.modules.get(module), "parallel_env") else ""
    return f"{own}let a function of yours return pettingzoo.utils.aec_to_parallel(env), and name that"
