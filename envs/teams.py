"""Vector environment over PettingZoo environments: one row per environment, one column per agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float
from pettingzoo import ParallelEnv

_MASK = "action_mask"


class TeamError(ValueError):
    """An environment violates its declared `possible_agents` or spaces."""


class TeamStep(NamedTuple):
    """Result of one step of all environments, with same-step autoreset.

    After the end of an episode, `observations` and `alive` belong to the first step of the next episode.
    """

    observations: dict[str, np.ndarray]
    """Arrays `[environments, agents, ...]`, one for each part of the observation space. The key is the path
    of the part, such as "camera/image"; a space without parts has the key "". Action masks from infos or the
    method `action_masks` have the key "action_mask"."""
    alive: Bool[np.ndarray, "rows agents"]
    """True for agents that act in the next step."""
    rewards: Float[np.ndarray, "rows agents"]
    """Reward of the last action; 0 for agents that were not alive."""
    terminated: Bool[np.ndarray, "rows agents"]
    """True for agents that terminated in this step."""
    truncated: Bool[np.ndarray, " rows"]
    """True for environments whose episode was truncated."""
    dones: Bool[np.ndarray, " rows"]
    """True for environments that started a new episode, after truncation or because no agent was left."""
    final_observations: dict[str, np.ndarray]
    """Last observations of ended episodes, `[ended, agents, ...]`, in the order of the environments."""
    final_alive: Bool[np.ndarray, "ended agents"]
    """Mask with one row per ended episode. True: the agent was alive and the episode was truncated."""
    infos: dict[str, Float[np.ndarray, " rows"]]
    """Measurements of the step, such as the sum of rates."""


class ParallelTeams:
    """Sequential vector environment of copies of one PettingZoo `ParallelEnv`, with same-step autoreset.

    All agents must have equal spaces. An agent that leaves is dead for the rest of the episode. An agent that
    is truncated while others continue counts as terminated. Seed s gives environment i the seed s + i. This
    class has `get_state` and `set_state` if the environments have these methods.

    Action masks in `infos[agent]["action_mask"]`, or in the result of the method `action_masks`, a dict from
    agents to masks, are added to the observations. A missing mask is NaN.

    Raises ValueError if agents differ in their spaces or `num_envs` is less than 1. Raises TeamError, also
    during a run, if an agent appears that `possible_agents` does not name, or if an agent's observation or
    reward is missing or outside its space.
    """

    def __init__(self, make_env: Callable[[], ParallelEnv], num_envs: int) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs}: must be at least 1")
        self.env_fns = (make_env,)
        """Function that makes one environment, as in gymnasium's vector environments."""
        self.envs = [make_env() for _ in range(num_envs)]
        self.num_envs = num_envs
        first = self.envs[0]
        self.possible_agents: list[Any] = _get_possible_agents(first)
        for row, env in enumerate(self.envs):
            if _get_possible_agents(env) != self.possible_agents:
                raise TeamError(
                    f"possible_agents is {_get_possible_agents(env)} in environment {row}, but "
                    f"{self.possible_agents} in environment 0; possible_agents must be the same in all "
                    "environments: list all agents that may ever act, and omit absent agents from `agents` "
                    "only"
                )
        self.single_observation_space = _get_common_space(first, "observation_space")
        self.single_action_space = _get_common_space(first, "action_space")
        self._column = {agent: column for column, agent in enumerate(self.possible_agents)}
        self._leaves = _flatten_space(self.single_observation_space)
        # Masks outside the observations are not read if there are masks in the observations.
        self._observes_masks = any(path[-1:] == (_MASK,) for path, _ in self._leaves.values())
        self._has_masks, self._has_method = False, callable(getattr(first, "action_masks", None))
        self._discrete = isinstance(self.single_action_space, spaces.Discrete)
        self._agents: list[list[Any]] = [[] for _ in range(num_envs)]
        self._alive = np.zeros((num_envs, len(self.possible_agents)), dtype=np.bool_)
        if all(_has_state_methods(env) for env in self.envs):
            self.get_state = self._get_state
            self.set_state = self._set_state

    def reset(
        self, *, seed: int | None = None
    ) -> tuple[dict[str, np.ndarray], Bool[np.ndarray, "rows agents"]]:
        """Reset all environments; return observations and the mask of agents that are alive."""
        observations = self._allocate(self.num_envs)
        masks = []
        for row, env in enumerate(self.envs):
            obs, infos = env.reset(seed=None if seed is None else seed + row)
            self._set_agents(row, list(env.agents))
            self._write_observations(observations, row, obs, self._agents[row])
            masks.append(self._read_masks(env, infos))
        self._has_masks = any(masks)
        self._write_masks(observations, masks)
        return observations, self._alive.copy()

    def step(self, actions: np.ndarray) -> TeamStep:
        """Step with actions `[environments, agents, ...]`; actions of dead agents are ignored."""
        observations = self._allocate(self.num_envs)
        rewards = np.zeros(self._alive.shape)
        terminated, cut = np.zeros((2, *self._alive.shape), dtype=np.bool_)
        dones = np.zeros(self.num_envs, dtype=np.bool_)
        finals = []
        column, masks = self._column, []
        # Environments handle Python integers faster than numpy integers.
        choices = actions.tolist() if self._discrete else actions
        for row, (env, acting, row_actions) in enumerate(zip(self.envs, self._agents, choices, strict=True)):
            obs, env_rewards, terminations, truncations, infos = env.step(
                {name: row_actions[column[name]] for name in acting}
            )
            for name in acting:
                if name not in env_rewards:
                    raise TeamError(
                        f"no reward of {name!r}: step() must return a reward of each agent that acted; "
                        f"it returned rewards of {list(env_rewards)}"
                    )
                try:
                    rewards[row, column[name]] = env_rewards[name]
                except (TypeError, ValueError):
                    raise TeamError(
                        f"reward of {name!r} is {_shorten(env_rewards[name])}; expected a number"
                    ) from None
            if any(terminations.values()) or any(truncations.values()) or env.agents != acting:
                staying = [
                    name for name in env.agents if not (terminations.get(name) or truncations.get(name))
                ]
                for name in acting:
                    if name not in staying:
                        last = not staying and truncations.get(name) and not terminations.get(name)
                        (cut if last else terminated)[row, column[name]] = True
                if not staying:
                    dones[row] = True
                    finals.append(self._allocate(1))
                    # The last observation of a terminated agent is not needed, and some environments omit it.
                    observers = [name for name in acting if name in obs or cut[row, column[name]]]
                    self._write_observations(finals[-1], 0, obs, observers)
                    obs, infos = env.reset()
                    staying = list(env.agents)
                self._set_agents(row, staying)
            self._write_observations(observations, row, obs, self._agents[row])
            masks.append(self._read_masks(env, infos))
        final_observations = {
            key: np.concatenate([final[key] for final in finals]) if finals else leaf[:0]
            for key, leaf in observations.items()
        }
        self._write_masks(observations, masks)
        return TeamStep(
            observations=observations,
            alive=self._alive.copy(),
            rewards=rewards,
            terminated=terminated,
            truncated=np.logical_or.reduce(cut, axis=1),
            dones=dones,
            final_observations=final_observations,
            final_alive=cut[dones],
            infos={},
        )

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()

    def _set_agents(self, row: int, agents: list[Any]) -> None:
        for name in agents:
            if name not in self._column:
                raise TeamError(
                    f"unknown agent {name!r}; possible_agents must list every agent that ever acts, but is "
                    f"{self.possible_agents}"
                )
        self._agents[row] = agents
        self._alive[row] = False
        self._alive[row, [self._column[name] for name in agents]] = True

    def _allocate(self, rows: int) -> dict[str, np.ndarray]:
        shape = (rows, len(self.possible_agents))
        # Fill with the first value of a Discrete space, so that unused entries are valid.
        return {
            key: np.full((*shape, *(leaf.shape or ())), getattr(leaf, "start", 0), dtype=leaf.dtype)
            for key, (_, leaf) in self._leaves.items()
        }

    def _write_observations(
        self, arrays: dict[str, np.ndarray], row: int, obs: Mapping[Any, Any], agents: list[Any]
    ) -> None:
        for name in agents:
            if name not in obs:
                raise TeamError(
                    f"no observation of {name!r}, which is in `agents`; got observations of {list(obs)}"
                )
        for key, (path, leaf) in self._leaves.items():
            array = arrays[key][row]
            for name in agents:
                try:
                    value = obs[name]
                    for part in path:
                        value = value[part]
                    fits = np.shape(value) == leaf.shape
                except (LookupError, TypeError, ValueError):
                    fits = False
                if not fits:  # numpy would broadcast a smaller array
                    raise TeamError(
                        f"observation of {name!r} is {_shorten(obs[name])}, which does not match its "
                        f"observation_space, {self.single_observation_space}"
                    )
                array[self._column[name]] = value

    def _read_masks(self, env: ParallelEnv, infos: Any) -> dict[Any, Any]:
        if self._observes_masks:
            return {}
        return read_masks(env if self._has_method else None, infos)

    def _write_masks(self, arrays: dict[str, np.ndarray], masks: list[dict[Any, Any]]) -> None:
        """Add the masks of all environments to the observations, if the environments offer masks."""
        if not self._has_masks and not any(masks):
            return
        space = self.single_action_space
        if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            raise TeamError(
                f"action masks of the action space {space} are not supported; use Discrete or MultiDiscrete, "
                "or remove the masks"
            )
        size = int(space.n) if isinstance(space, spaces.Discrete) else int(space.nvec.sum())
        array = np.full((*self._alive.shape, size), np.nan)
        for row, by_agent in enumerate(masks):
            for name in self._agents[row]:
                mask = by_agent.get(name)
                if mask is None:
                    continue
                if np.shape(mask) != (size,):
                    raise TeamError(
                        f"the action mask of {name!r} is {_shorten(mask)}; return {size} booleans, or "
                        "numbers 0 and 1, in every reset and step"
                    )
                array[row, self._column[name]] = mask
        array[~self._alive] = 1
        arrays[_MASK] = array

    def _get_state(self) -> dict[str, Any]:
        """Return the full state of all environments."""
        return {
            "envs": [env.get_state() for env in self.envs],  # pyright: ignore[reportAttributeAccessIssue]
            "agents": [list(agents) for agents in self._agents],
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `_get_state`; every environment must have been reset once."""
        for row, env in enumerate(self.envs):
            env.set_state(state["envs"][row])  # pyright: ignore[reportAttributeAccessIssue]
            self._set_agents(row, list(state["agents"][row]))


def read_masks(env: ParallelEnv | None, infos: Any) -> dict[Any, Any]:
    """Return the action masks of a team by agent: from `infos`, or else from the method `action_masks`."""
    by_agent = infos.items() if isinstance(infos, Mapping) else ()
    masks = {agent: info[_MASK] for agent, info in by_agent if isinstance(info, Mapping) and _MASK in info}
    if masks or not callable(getattr(env, "action_masks", None)):
        return masks
    method: Any = env
    return dict(method.action_masks())


def _get_possible_agents(env: ParallelEnv) -> list[Any]:
    """Return `possible_agents` of an environment. Raises TeamError if it is missing or empty."""
    names = list(getattr(env, "possible_agents", None) or ())
    if not names:
        raise TeamError(
            f"{type(env).__name__} has no possible_agents: set it, before reset, to the names of all agents "
            "that may ever act"
        )
    return names


def _shorten(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:60]} ..."


def _get_common_space(env: ParallelEnv, kind: str) -> spaces.Space:
    """Return the space that all agents share. Raises ValueError if the space of an agent differs."""
    first, *others = env.possible_agents
    common = getattr(env, kind)(first)
    for agent in others:
        space = getattr(env, kind)(agent)
        if space != common:
            raise ValueError(
                f"{kind} of {agent!r} is {space}, but {common} for {first!r}; all agents of a team must have "
                "equal spaces: pad them (supersuit.pad_observations_v0, pad_action_space_v0)"
            )
    return common


def _flatten_space(
    space: spaces.Space, path: tuple[Any, ...] = ()
) -> dict[str, tuple[tuple[Any, ...], spaces.Space]]:
    """Return the path and the space of each leaf of a nested space, in a dict by leaf name.

    The name of a leaf is its path joined with "/".
    """
    if isinstance(space, spaces.Dict):
        parts = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        parts = list(enumerate(space.spaces))
    else:
        return {"/".join(map(str, path)): (path, space)}
    return {name: leaf for key, part in parts for name, leaf in _flatten_space(part, (*path, key)).items()}


def _has_state_methods(env: Any) -> bool:
    return callable(getattr(env, "get_state", None)) and callable(getattr(env, "set_state", None))
