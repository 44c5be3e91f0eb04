"""Rollout: the one loop over environments, for a single agent or for a team in each environment.

An actor and environments take turns in `rollout`. Samplers, evaluations, films and pages consume its steps.
`Environments` is the interface of the environments. `VectorEnvs` implements it for gymnasium's vector
environments, and `scrubjay.agents.teams.env.TeamEnvs` for teams.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.agents.rl.exits import EXITS, EnvExitError
from scrubjay.agents.rl.masks.action_masks import MASK, METHOD, refuse_mask
from scrubjay.agents.rl.observations import (
    check_indices,
    from_leaves,
    leaf_dtype,
    leaf_spaces,
    leaf_values,
)
from scrubjay.agents.rl.policy import Policy
from scrubjay.agents.rl.segment import Observation
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.memory import State

SUCCESS = ("success", "is_success")
"""Infos that say whether an episode succeeded. The first of them that is present counts."""

MEASURES = ("reached",)
"""Final infos of an episode to record in addition to its success: `reached` is 1 if a choice was made."""


class ActorInput(NamedTuple):
    """Observations of all environments, on which an actor acts."""

    observations: Mapping[str, Any]
    """Leaves of the observations, `[envs, ...]`, or `[envs, agents, ...]` for teams. A mask that the
    environments offer outside the observations is the leaf `action_mask`."""
    starts: Bool[np.ndarray, " envs"]
    """True for environments at the start of an episode."""
    alive: Bool[np.ndarray, "envs agents"] | None = None
    """True for agents that act; None for single agents."""

    def write(self, leaves: Mapping[str, np.ndarray], alive: np.ndarray, t: int) -> None:
        """Copy the observations and the mask of living agents to step `t` of arrays with a time axis."""
        for key, leaf in leaves.items():
            leaf[t] = self.observations[key]
        if self.alive is not None:
            alive[t] = self.alive


class Choice(NamedTuple):
    """Actions of an actor in all environments."""

    actions: Any
    """Actions for the environments, `[envs, ...]` or `[envs, agents, ...]`."""
    output: Any = None
    """Output of the actor for the consumer of the rollout, such as log-probabilities and values."""


@runtime_checkable
class Actor(Protocol):
    """Interface of actors: policies with their memory states, and rules."""

    def act(self, inputs: ActorInput) -> Choice:
        """Choose the actions in all environments."""
        ...


class EnvStep(NamedTuple):
    """Result of one step of all environments."""

    following: ActorInput
    """Inputs of the next action. Where an episode has ended, they belong to the next episode."""
    rewards: Float[np.ndarray, "envs *agents"]
    terminated: Bool[np.ndarray, "envs *agents"]
    """True where the action led to a terminal state."""
    truncated: Bool[np.ndarray, " envs"]
    """True where the episode was truncated, such as by a time limit."""
    infos: Mapping[str, Any]
    """Infos of gymnasium's vector environments, or the metrics of the step by name for teams."""
    final: Callable[[Int[np.ndarray, " ended"]], ActorInput]
    """Function that returns the final observations in environments, by index, whose episodes have ended."""


class Environments(ABC):
    """Interface of environments that are stepped together and reset in the last step of an episode."""

    num_envs: int
    num_agents: int | None = None
    """Number of agents in each environment; None for single agents."""
    leaves: dict[str, spaces.Space]
    """Leaves of the observation space of one agent, and of a mask outside of it."""

    @abstractmethod
    def reset(self, seed: int | None = None) -> ActorInput:
        """Begin new episodes in all environments. Raises EnvFaultError on an invalid observation."""

    @abstractmethod
    def step(self, actions: Any) -> EnvStep:
        """Take one action in every environment. Raises EnvFaultError on an invalid observation."""

    @abstractmethod
    def close(self) -> None:
        """Release the resources of the environments."""


class VectorEnvs(Environments):
    """Environments of a gymnasium vector environment with `AutoresetMode.SAME_STEP`.

    With `action_masks=True` the environments must offer a mask in every info or by the method `action_masks`.
    """

    def __init__(self, env: VectorEnv, action_masks: bool = False) -> None:
        self.env = env
        self.num_envs = env.num_envs
        spaces = Spaces(env.single_observation_space, env.single_action_space, action_masks=action_masks)
        self.leaves, self._masks = spaces.leaves, spaces.masks
        self._observation_leaves = leaf_spaces(env.single_observation_space)
        self._time = 0

    def reset(self, seed: int | None = None) -> ActorInput:  # noqa: D102
        try:
            observation, infos = self.env.reset(seed=seed)
        except EXITS as error:
            raise EnvExitError.from_error(error) from error
        self._time = 0
        return ActorInput(self._leaves_of(observation, infos), np.ones(self.num_envs, dtype=np.bool_))

    def step(self, actions: Any) -> EnvStep:  # noqa: D102
        try:
            observation, rewards, terminated, truncated, infos = self.env.step(actions)
        except EXITS as error:
            raise EnvExitError.from_error(error) from error
        self._time += 1
        leaves = self._leaves_of(observation, infos)
        terminated, truncated = np.asarray(terminated, np.bool_), np.asarray(truncated, np.bool_)
        following = ActorInput(leaves, terminated | truncated)
        return EnvStep(
            following, rewards, terminated, truncated, infos, lambda rows: self._final(infos, rows)
        )

    def close(self) -> None:  # noqa: D102
        self.env.close()

    def _leaves_of(self, observation: Any, infos: Mapping[str, Any]) -> dict[str, Any]:
        leaves = leaf_values(observation)
        check_indices(self._observation_leaves, leaves)
        if self._masks is not None:
            masks = leaves[self._masks.key] if self._masks.in_observation else self._read_masks(infos)
            masks = self._masks.check(masks, f"step {self._time}")
            return leaves if self._masks.in_observation else {**leaves, MASK: masks}
        refuse_mask(infos, self._time)
        return leaves

    def _read_masks(self, infos: Mapping[str, Any]) -> Any:
        """Return one mask per environment; a missing mask is None."""
        if MASK in infos:
            has_mask = infos.get(f"_{MASK}", np.ones(self.num_envs, dtype=np.bool_))
            return (
                infos[MASK]
                if has_mask.all()
                else [mask if has else None for mask, has in zip(infos[MASK], has_mask, strict=True)]
            )
        try:
            return self.env.call(METHOD)  # type: ignore[attr-defined]
        except AttributeError:
            return [None] * self.num_envs

    def _final(self, infos: dict[str, Any], rows: Int[np.ndarray, " ended"]) -> ActorInput:
        if "final_obs" not in infos:
            raise ValueError(
                f"{self.env} truncated an episode without infos['final_obs']; add the final observations to "
                "infos"
            )
        final = infos["final_obs"]
        if isinstance(final, np.ndarray) and final.dtype == object:
            by_row = [leaf_values(final[row]) for row in rows]
            keys = self._observation_leaves
            leaves = {key: np.stack([np.asarray(row[key]) for row in by_row]) for key in keys}
        else:
            leaves = {key: leaf[rows] for key, leaf in leaf_values(final).items()}
        return ActorInput(leaves, np.zeros(len(rows), dtype=np.bool_))


class RolloutStep(NamedTuple):
    """One turn of actor and environments."""

    inputs: ActorInput
    choice: Choice
    result: EnvStep
    env_seconds: float
    """Wall time of the environments in this step, in seconds."""


def rollout(envs: Environments, actor: Actor, inputs: ActorInput) -> Iterator[RolloutStep]:
    """Step `envs` with `actor` without end; `inputs` are the result of a reset or follow the last step.

    The loop pauses at each step until the consumer asks for the next one.
    """
    while True:
        choice = actor.act(inputs)
        start_time = time.perf_counter()
        result = envs.step(choice.actions)
        yield RolloutStep(inputs, choice, result, time.perf_counter() - start_time)
        inputs = result.following


class InputTensors:
    """Conversion of an actor's inputs, whose observations have `leaves`, to tensors on `device`."""

    def __init__(self, leaves: Mapping[str, spaces.Space], device: torch.device) -> None:
        self._device = device
        self._dtypes = {key: leaf_dtype(leaf) for key, leaf in leaves.items()}

    def observation(self, inputs: ActorInput) -> Observation:
        """Return the observations."""
        leaves, dtypes = inputs.observations, self._dtypes
        if MASK in dtypes and MASK not in leaves:  # no action follows a final observation
            dtypes = {key: dtype for key, dtype in dtypes.items() if key != MASK}
        return from_leaves(
            {key: torch.as_tensor(leaves[key]).to(self._device, dtype) for key, dtype in dtypes.items()}
        )

    def start(self, inputs: ActorInput) -> Bool[Tensor, " envs"] | None:
        """Return `starts`, or None if no episode starts, which is faster."""
        return torch.from_numpy(inputs.starts).to(self._device) if inputs.starts.any() else None


class PolicyActor:
    """Actor of a policy, with the memory state of every environment.

    `state=None` starts an episode in every environment. Without `generator` actions are sampled with torch's
    default generator.
    """

    def __init__(
        self,
        policy: Policy,
        state: State | None = None,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> None:
        self.policy, self._generator, self._deterministic = policy, generator, deterministic
        self._tensors = InputTensors(policy.spaces.leaves, policy.device)
        self._stepper = None if state is None else policy.stepper(state)

    def act(self, inputs: ActorInput) -> Choice:
        """Choose actions and advance the memory states; the output is a `PolicyOutput`."""
        if self._stepper is None:
            self._stepper = self.policy.stepper(self.policy.initial_state(len(inputs.starts)))
        output = self.policy.advance(
            self._tensors.observation(inputs),
            self._stepper,
            self._tensors.start(inputs),
            self._generator,
            self._deterministic,
        )
        return Choice(self.policy.env_actions(output.action), output)

    def state(self, rows: Int[Tensor, " rows"] | None = None) -> State:
        """Return the memory states after the last action: of all environments, or of `rows`."""
        assert self._stepper is not None  # `act` has been called
        return self._stepper.state() if rows is None else self._stepper.state(rows)

    def value(self, inputs: ActorInput, state: State) -> Float[Tensor, " envs"]:
        """Return the value estimates of observations; the memory states are not advanced."""
        return self.policy.value(self._tensors.observation(inputs), state, self._tensors.start(inputs))


@dataclass(frozen=True)
class EpisodeStats:
    """Statistics of one finished episode."""

    episode_return: float
    """Undiscounted sum of rewards."""
    length: int
    """Number of actions."""
    success: float | None = None
    """Value of `info["success"]` at the end of the episode, or else of `info["is_success"]`; None without
    both."""
    measures: dict[str, float] = field(default_factory=dict)
    """Other measures by name. For a single agent: the value of `info[name]` at the end of the episode, for
    each name in `MEASURES` that is present. For a team: the mean of each other metric in the environment's
    `infos` over the steps of the episode."""


@dataclass(frozen=True)
class TeamEpisodeStats(EpisodeStats):
    """Statistics of one finished episode of a team; `episode_return` is summed over its agents."""

    returns: tuple[float, ...] = ()
    """Undiscounted sum of rewards of each agent."""


class EpisodeCounter:
    """Returns, lengths and measures of the current episode of each environment."""

    def __init__(self, num_envs: int, num_agents: int | None = None) -> None:
        self._is_team = num_agents is not None
        self.returns = np.zeros((num_envs, num_agents) if num_agents is not None else num_envs)
        self.lengths = np.zeros(num_envs, dtype=np.int64)
        self.measures: dict[str, np.ndarray] = {}
        """Sum of each metric of a team over the steps."""

    def count(self, step: EnvStep) -> list[tuple[int, EpisodeStats]]:
        """Add one step; return the environments whose episodes ended, with the statistics of the episodes."""
        self.returns += step.rewards
        self.lengths += 1
        for name, value in step.infos.items() if self._is_team else ():
            if name in SUCCESS:  # the value of the last step counts, and not the mean
                continue
            if name not in self.measures:
                self.measures[name] = np.zeros(len(self.lengths))
            self.measures[name] += value
        is_end = step.following.starts
        if not is_end.any():
            return []
        finish = self._finish_team if self._is_team else self._finish
        episodes = [(row, finish(row, step.infos)) for row in np.flatnonzero(is_end).tolist()]
        for total in (self.returns, self.lengths, *self.measures.values()):
            total[is_end] = 0
        return episodes

    def _finish(self, row: int, infos: Mapping[str, Any]) -> EpisodeStats:
        final_infos = {name: final_info(infos, row, name) for name in (*SUCCESS, *MEASURES)}
        present = {name: value for name, value in final_infos.items() if value is not None}
        measures = {name: present[name] for name in MEASURES if name in present}
        return EpisodeStats(
            float(self.returns[row]), int(self.lengths[row]), _first_success(present), measures
        )

    def _finish_team(self, row: int, infos: Mapping[str, Any]) -> TeamEpisodeStats:
        returns, length = self.returns[row], int(self.lengths[row])
        return TeamEpisodeStats(
            episode_return=float(returns.sum()),
            length=length,
            success=_first_success({name: float(infos[name][row]) for name in SUCCESS if name in infos}),
            returns=tuple(returns.tolist()),
            measures={name: float(total[row]) / length for name, total in self.measures.items()},
        )


def _first_success(present: Mapping[str, float]) -> float | None:
    return next((present[name] for name in SUCCESS if name in present), None)


def final_info(infos: Mapping[str, Any], row: int, name: str) -> float | None:
    """Return the final `info[name]` of the episode that ended in environment `row`; None if missing."""
    final = infos.get("final_info", {})
    if name not in final or not final.get(f"_{name}", infos["_final_info"])[row]:
        return None
    return float(final[name][row])
