"""Saving and restoring the state of vector environments that support it."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.vector import SyncVectorEnv, VectorEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit


def can_restore(env: VectorEnv) -> bool:
    """Return True if `env` supports `save_env` and `load_env`.

    `env` must have the methods `get_state` and `set_state`, or be a `SyncVectorEnv` of environments with both
    methods. The only allowed wrappers are those that `gymnasium.make` adds and those with a class attribute
    `stateless = True`.
    """
    env = _unwrap_stateless(env)
    if _offers_state(env):
        return True
    return type(env) is SyncVectorEnv and all(_layers(sub_env) is not None for sub_env in env.envs)


def save_env(env: VectorEnv) -> Any:
    """Return the state of `env`. Raises TypeError if `env` does not support this."""
    env = _unwrap_stateless(env)
    if _offers_state(env):
        return env.get_state()  # type: ignore[attr-defined]
    return [_save_layers(layers) for layers in _all_layers(env)]


def load_env(env: VectorEnv, state: Any) -> None:
    """Restore a state that `save_env` returned; `env` must have been reset once.

    Raises TypeError if `env` does not support this.
    """
    env = _unwrap_stateless(env)
    if _offers_state(env):
        env.set_state(state)  # type: ignore[attr-defined]
        return
    for layers, layer_state in zip(_all_layers(env), state, strict=True):
        for limit, steps in zip(layers[:-1], layer_state["elapsed_steps"], strict=True):
            limit._elapsed_steps = steps
        layers[-1].set_state(layer_state["env"])


def _unwrap_stateless(env: Any) -> Any:
    """Remove stateless wrappers."""
    while getattr(type(env), "stateless", False):
        env = env.env
    return env


def _offers_state(env: Any) -> bool:
    return callable(getattr(env, "get_state", None)) and callable(getattr(env, "set_state", None))


def _layers(env: gymnasium.Env) -> list[Any] | None:
    """Return the layers of `env` whose state is saved: all `TimeLimit` wrappers, then the environment itself.

    The environment itself is the outermost layer with `get_state` and `set_state`. Returns None if there is
    no such layer, or if a wrapper around this layer could have its own state.
    """
    limits: list[Any] = []
    while not _offers_state(env := _unwrap_stateless(env)):
        if not isinstance(env, (TimeLimit, OrderEnforcing, PassiveEnvChecker)):
            return None
        if isinstance(env, TimeLimit):
            limits.append(env)
        env = env.env
    return [*limits, env]


def _all_layers(env: VectorEnv) -> list[list[Any]]:
    env_layers = [_layers(sub_env) for sub_env in env.envs] if type(env) is SyncVectorEnv else [None]
    complete = [layers for layers in env_layers if layers is not None]
    if len(complete) != len(env_layers):
        raise TypeError(
            f"{env} cannot save its state: use a SyncVectorEnv of environments that have get_state and "
            "set_state; wrappers must come from gymnasium.make or have stateless = True"
        )
    return complete


def _save_layers(layers: list[Any]) -> dict[str, Any]:
    return {"elapsed_steps": [limit._elapsed_steps for limit in layers[:-1]], "env": layers[-1].get_state()}
