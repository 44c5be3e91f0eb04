"""Many teams stepped at once: one row is a team, one column an agent, all agents alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float
from pettingzoo import ParallelEnv


class TeamError(ValueError):
    """An environment does something else than its own words on its agents and their spaces say."""


class TeamStep(NamedTuple):
    """What one step of every row came to. A row whose episode ended shows the first step of its next one."""

    observations: dict[str, np.ndarray]
    """Leaves of every agent's observation, `[rows, agents, ...]`; a space that is no Dict has the one leaf
    ""."""
    alive: Bool[np.ndarray, "rows agents"]
    """Who acts next."""
    rewards: Float[np.ndarray, "rows agents"]
    """Reward of the action just taken; 0 for those who were not alive."""
    terminated: Bool[np.ndarray, "rows agents"]
    """True where the action ended the agent's own episode for good."""
    truncated: Bool[np.ndarray, " rows"]
    """True where the row's episode was cut off."""
    ended: Bool[np.ndarray, " rows"]
    """True where a new episode has begun: the row was cut off, or nobody is left in it."""
    final_observations: dict[str, np.ndarray]
    """What the ended rows saw last, `[ended rows, agents, ...]`, in the order of rows."""
    final_alive: Bool[np.ndarray, "ended agents"]
    """Who was still alive then."""
    infos: dict[str, Float[np.ndarray, " rows"]]
    """What was measured in the step, such as the sum of rates."""


class ParallelTeams:
    """Rows of one PettingZoo `ParallelEnv`, stepped one after the other, as teams.

    Its agents must be alike in their spaces. A row begins its next episode in the step that ends one. An
    agent that leaves is not alive until the episode ends; one that is cut off while others go on counts as
    terminated. Seed s gives row i the seed s + i. If the environments offer `get_state` and `set_state`, so
    do the teams. Raises ValueError if agents differ, or there is no row; and TeamError, whenever it is seen,
    if others come than `possible_agents` names, or what an agent sees or earns is missing or not of its
    space.
    """

    def __init__(self, make_env: Callable[[], ParallelEnv], num_envs: int) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs}: at least one row is needed")
        self.envs = [make_env() for _ in range(num_envs)]
        self.num_envs = num_envs
        first = self.envs[0]
        self.possible_agents: list[Any] = _named(first)
        for row, env in enumerate(self.envs):
            if _named(env) != self.possible_agents:
                raise TeamError(
                    f"row {row} has possible_agents {_named(env)}, row 0 {self.possible_agents}; the agents "
                    "of a team must stay the same: name all that may ever act, who is away is not in agents"
                )
        self.single_observation_space = _common(first, "observation_space")
        self.single_action_space = _common(first, "action_space")
        self._column = {agent: column for column, agent in enumerate(self.possible_agents)}
        self._leaves = _leaves(self.single_observation_space)
        self._discrete = isinstance(self.single_action_space, spaces.Discrete)
        self._agents: list[list[Any]] = [[] for _ in range(num_envs)]
        self._alive = np.zeros((num_envs, len(self.possible_agents)), dtype=np.bool_)
        if all(_offers_state(env) for env in self.envs):
            self.get_state = self._get_state
            self.set_state = self._set_state

    def reset(
        self, *, seed: int | None = None
    ) -> tuple[dict[str, np.ndarray], Bool[np.ndarray, "rows agents"]]:
        """Begin an episode in every row; return observations and who is alive."""
        observations = self._blank(self.num_envs)
        for row, env in enumerate(self.envs):
            seen, _ = env.reset(seed=None if seed is None else seed + row)
            self._live(row, list(env.agents))
            self._write(observations, row, seen, self._agents[row])
        return observations, self._alive.copy()

    def step(self, actions: np.ndarray) -> TeamStep:
        """Take the actions `[rows, agents, ...]`; those of agents that are not alive are passed over."""
        observations = self._blank(self.num_envs)
        rewards = np.zeros(self._alive.shape)
        terminated, cut = np.zeros((2, *self._alive.shape), dtype=np.bool_)
        ended = np.zeros(self.num_envs, dtype=np.bool_)
        finals = []
        column = self._column
        # Plain integers, since environments handle them faster than numpy's.
        choices = actions.tolist() if self._discrete else actions
        for row, (env, acting, chosen) in enumerate(zip(self.envs, self._agents, choices, strict=True)):
            seen, earned, terminations, truncations, _ = env.step(
                {name: chosen[column[name]] for name in acting}
            )
            for name in acting:
                if name not in earned:
                    raise TeamError(f"step returned no reward of {name!r}, who acted, but of {list(earned)}")
                try:
                    rewards[row, column[name]] = earned[name]
                except (TypeError, ValueError):
                    raise TeamError(f"{name!r} earned {_short(earned[name])}, which is no number") from None
            if any(terminations.values()) or any(truncations.values()) or env.agents != acting:
                staying = [
                    name for name in env.agents if not (terminations.get(name) or truncations.get(name))
                ]
                for name in acting:
                    if name not in staying:
                        last = not staying and truncations.get(name) and not terminations.get(name)
                        (cut if last else terminated)[row, column[name]] = True
                if not staying:
                    ended[row] = True
                    finals.append(self._blank(1))
                    # Of who died, nothing is asked of what it saw last, and some environments do not tell.
                    told = [name for name in acting if name in seen or cut[row, column[name]]]
                    self._write(finals[-1], 0, seen, told)
                    seen, _ = env.reset()
                    staying = list(env.agents)
                self._live(row, staying)
            self._write(observations, row, seen, self._agents[row])
        return TeamStep(
            observations=observations,
            alive=self._alive.copy(),
            rewards=rewards,
            terminated=terminated,
            truncated=np.logical_or.reduce(cut, axis=1),
            ended=ended,
            final_observations={
                key: np.concatenate([final[key] for final in finals]) if finals else leaf[:0]
                for key, leaf in observations.items()
            },
            final_alive=cut[ended],
            infos={},
        )

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()

    def _live(self, row: int, agents: list[Any]) -> None:
        for name in agents:
            if name not in self._column:
                raise TeamError(
                    f"agent {name!r} came, and possible_agents are {self.possible_agents}: name there all "
                    "that may ever act"
                )
        self._agents[row] = agents
        self._alive[row] = False
        self._alive[row, [self._column[name] for name in agents]] = True

    def _blank(self, rows: int) -> dict[str, np.ndarray]:
        shape = (rows, len(self.possible_agents))
        # Indices begin at their space's first value, so that a blank is one too.
        return {
            key: np.full((*shape, *(leaf.shape or ())), getattr(leaf, "start", 0), dtype=leaf.dtype)
            for key, (_, leaf) in self._leaves.items()
        }

    def _write(
        self, arrays: dict[str, np.ndarray], row: int, seen: Mapping[Any, Any], agents: list[Any]
    ) -> None:
        for name in agents:
            if name not in seen:
                raise TeamError(f"no observation of {name!r}, who is in agents, but of {list(seen)}")
        for key, (path, leaf) in self._leaves.items():
            array = arrays[key][row]
            for name in agents:
                try:
                    value = seen[name]
                    for part in path:
                        value = value[part]
                    fits = np.shape(value) == leaf.shape
                except (LookupError, TypeError, ValueError):
                    fits = False
                if not fits:  # numpy would stretch what is too small
                    raise TeamError(
                        f"{name!r} sees {_short(seen[name])}, which is not of its observation_space, "
                        f"{self.single_observation_space}"
                    )
                array[self._column[name]] = value

    def _get_state(self) -> dict[str, Any]:
        """Return all that decides the future."""
        return {
            "envs": [env.get_state() for env in self.envs],  # pyright: ignore[reportAttributeAccessIssue]
            "agents": [list(agents) for agents in self._agents],
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        """Go back to where the state was taken; the environments must have been reset once."""
        for row, env in enumerate(self.envs):
            env.set_state(state["envs"][row])  # pyright: ignore[reportAttributeAccessIssue]
            self._live(row, list(state["agents"][row]))


def _named(env: ParallelEnv) -> list[Any]:
    """Return all agents that an environment may have. Raises TeamError if it does not name them."""
    names = list(getattr(env, "possible_agents", None) or ())
    if not names:
        raise TeamError(
            f"{type(env).__name__} names no possible_agents: set it, before reset, to the names of all that "
            "may ever act"
        )
    return names


def _short(value: Any) -> str:
    words = " ".join(str(value).split())
    return words if len(words) <= 60 else f"{words[:60]} ..."


def _common(env: ParallelEnv, kind: str) -> spaces.Space:
    """Return the space that all agents share. Raises ValueError, naming an agent that differs."""
    first, *others = env.possible_agents
    common = getattr(env, kind)(first)
    for agent in others:
        space = getattr(env, kind)(agent)
        if space != common:
            raise ValueError(
                f"{kind} of {agent!r} is {space}, that of {first!r} {common}; agents of a team must be "
                "alike: pad them (supersuit.pad_observations_v0, pad_action_space_v0)"
            )
    return common


def _leaves(
    space: spaces.Space, path: tuple[Any, ...] = ()
) -> dict[str, tuple[tuple[Any, ...], spaces.Space]]:
    """Return each plain space with the way to it, under the way's parts joined by "/"."""
    if isinstance(space, spaces.Dict):
        parts = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        parts = list(enumerate(space.spaces))
    else:
        return {"/".join(map(str, path)): (path, space)}
    return {name: leaf for key, part in parts for name, leaf in _leaves(part, (*path, key)).items()}


def _offers_state(env: Any) -> bool:
    return callable(getattr(env, "get_state", None)) and callable(getattr(env, "set_state", None))
