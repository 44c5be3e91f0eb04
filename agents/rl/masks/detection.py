"""Detection of environments that offer action masks outside their observations."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from scrubjay.agents.rl.masks.action_masks import MASK, METHOD, ActionMasks, has_method
from scrubjay.agents.rl.observations import EnvFaultError


def offers_masks(env: Any) -> bool:
    """Return True if an environment offers masks in its infos or by a method.

    `env` is a gymnasium environment, single or vector, or a PettingZoo `ParallelEnv`. It is reset if this is
    needed to see the infos. The global random generators keep their states. Raises EnvFaultError if its
    action space has no masks, if a mask in the observations has the wrong shape, or if observations or infos
    have an entry `action_masks`, which nothing would read.
    """
    agents = list(getattr(env, "possible_agents", ()))
    if agents:
        observation, action = env.observation_space(agents[0]), env.action_space(agents[0])
    elif isinstance(env, VectorEnv):
        observation, action = env.single_observation_space, env.single_action_space
    else:
        observation, action = env.observation_space, env.action_space
    if ActionMasks.find(observation, action) is not None:
        return False
    if isinstance(observation, spaces.Dict) and METHOD in observation.spaces:
        raise EnvFaultError(f"observations have the entry {METHOD!r}; name a mask {MASK!r}")
    if has_method(env):
        return ActionMasks.find(observation, action, outside=True) is not None
    if not isinstance(action, (spaces.Discrete, spaces.MultiDiscrete)):
        return False
    with keep_random_states():
        result = env.reset(seed=0)
    infos = result[-1] if isinstance(result, tuple) else None
    all_infos = list(infos.values()) if agents and isinstance(infos, Mapping) else [infos]
    names = {name for info in all_infos if isinstance(info, Mapping) for name in info}
    if METHOD in names and MASK not in names:
        raise EnvFaultError(f"infos have the entry {METHOD!r}; name a mask {MASK!r}")
    return MASK in names


@contextlib.contextmanager
def keep_random_states() -> Iterator[None]:
    """Restore the states of the global random generators of random, numpy and torch after the block."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
