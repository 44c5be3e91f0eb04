"""Snapshots of vector environments, for those that can be put back exactly where they were."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.vector import SyncVectorEnv, VectorEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit


def can_restore(env: VectorEnv) -> bool:
    """Return whether `save_env` and `load_env` work on `env`.

    They do if it offers `get_state` and `set_state` itself, or is a `SyncVectorEnv` whose environments do
    under no other wrappers than those that `gymnasium.make` adds, and those that say that they are
    `stateless`.
    """
    env = _bare(env)
    if _offers_state(env):
        return True
    return type(env) is SyncVectorEnv and all(_layers(sub_env) is not None for sub_env in env.envs)


def save_env(env: VectorEnv) -> Any:
    """Return the state of `env`. Raises TypeError if it offers none."""
    env = _bare(env)
    if _offers_state(env):
        return env.get_state()  # type: ignore[attr-defined]
    return [_save_layers(layers) for layers in _all_layers(env)]


def load_env(env: VectorEnv, state: Any) -> None:
    """Put `env` where it was at `save_env`; it must have been reset once. Raises TypeError if it cannot."""
    env = _bare(env)
    if _offers_state(env):
        env.set_state(state)  # type: ignore[attr-defined]
        return
    for layers, saved in zip(_all_layers(env), state, strict=True):
        for limit, steps in zip(layers[:-1], saved["elapsed_steps"], strict=True):
            limit._elapsed_steps = steps
        layers[-1].set_state(saved["env"])


def _bare(env: Any) -> Any:
    """Return the environment under wrappers that keep nothing between steps."""
    while getattr(type(env), "stateless", False):
        env = env.env
    return env


def _offers_state(env: Any) -> bool:
    return callable(getattr(env, "get_state", None)) and callable(getattr(env, "set_state", None))


def _layers(env: gymnasium.Env) -> list[Any] | None:
    """Return the time limits around an environment that offers its state, and it; None if something hides."""
    limits: list[Any] = []
    while not _offers_state(env := _bare(env)):
        if not isinstance(env, (TimeLimit, OrderEnforcing, PassiveEnvChecker)):
            return None
        if isinstance(env, TimeLimit):
            limits.append(env)
        env = env.env
    return [*limits, env]


def _all_layers(env: VectorEnv) -> list[list[Any]]:
    found = [_layers(sub_env) for sub_env in env.envs] if type(env) is SyncVectorEnv else [None]
    complete = [layers for layers in found if layers is not None]
    if len(complete) != len(found):
        raise TypeError(f"{env} offers no get_state and set_state; its episodes cannot be restored")
    return complete


def _save_layers(layers: list[Any]) -> dict[str, Any]:
    return {"elapsed_steps": [limit._elapsed_steps for limit in layers[:-1]], "env": layers[-1].get_state()}
