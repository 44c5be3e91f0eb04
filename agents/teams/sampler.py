"""Sampler of segments from vectorized teams."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.agents.rl.observations import from_leaves
from scrubjay.agents.rl.rollout import (
    ActorInput,
    Choice,
    EpisodeStats,
    InputTensors,
    TeamEpisodeStats,
)
from scrubjay.agents.rl.sampler import BaseSampler, Sampler
from scrubjay.agents.rl.segment import Observation
from scrubjay.agents.teams.env import TeamEnv, TeamEnvs
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.agents.teams.segment import TeamSegment
from scrubjay.memory import State


class TeamPolicyActor:
    """Actor of a team's policy, with the memory states of every environment.

    `state=None` starts an episode in every environment. Without `generator` actions are sampled with torch's
    default generator. With `estimates_values=False` the critic and its memory are left out.
    """

    def __init__(
        self,
        policy: TeamPolicy,
        state: State | None = None,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
        estimates_values: bool = False,
    ) -> None:
        self.policy, self._state = policy, state
        self._generator, self._deterministic = generator, deterministic
        self._estimates_values = estimates_values
        self._inputs = InputTensors(policy.spaces.leaves, policy.device)

    def act(self, inputs: ActorInput) -> Choice:
        """Choose actions and advance the memory states; the output is a `TeamPolicyStep`."""
        if self._state is None:
            self._state = self.policy.initial_state(len(inputs.starts))
        output = self.policy.step(
            *self._tensors(inputs, self._state), self._generator, self._deterministic, self._estimates_values
        )
        self._state = output.state
        return Choice(self.policy.env_actions(output.action), output)

    def state(self, rows: Int[Tensor, " rows"] | None = None) -> State:
        """Return the memory states after the last action: of all environments, or of `rows`."""
        assert self._state is not None  # `act` has been called
        if rows is None:
            return self._state
        return {key: value.index_select(0, rows) for key, value in self._state.items()}

    def value(self, inputs: ActorInput, state: State) -> Float[Tensor, "envs agents"]:
        """Return each agent's value estimate of its observation; the memory states are not advanced."""
        return self.policy.value(*self._tensors(inputs, state))

    def _tensors(
        self, inputs: ActorInput, state: State
    ) -> tuple[Observation, Bool[Tensor, "envs agents"], State, Bool[Tensor, " envs"] | None]:
        alive = torch.as_tensor(inputs.alive, dtype=torch.bool, device=self.policy.device)
        return self._inputs.observation(inputs), alive, state, self._inputs.start(inputs)


class TeamSampler(BaseSampler):
    """Sampler of segments, which have `segment_length` steps of every environment.

    Each segment continues from the memory states at the end of the segment before. Everything except the
    environment is computed on the policy's device.

    Args:
        env: Team environments.
        policy: Policy that acts.
        segment_length: Steps of a segment.
        seed: Seed of the environments and of the sampled actions.

    Raises:
        ValueError: If `segment_length` is below 1, or if policy and environment differ in the number of
            agents.
        EnvFaultError: In the same cases as `Sampler`.
    """

    segment_class = TeamSegment

    def __init__(self, env: TeamEnv, policy: TeamPolicy, segment_length: int, seed: int = 0) -> None:
        self.num_agents = len(env.possible_agents)
        if policy.num_agents != self.num_agents:
            raise ValueError(
                f"the policy has num_agents={policy.num_agents}; the environment has {self.num_agents} agents"
            )
        # A critic without memory needs no stepping: values of the whole segment are computed at once.
        self._defers_values = not policy.critic_remembers
        super().__init__(env, TeamEnvs(env, policy.action_masks), policy, segment_length, seed)

    @property
    def restores_env(self) -> bool:
        """True if `set_state` also restores the environment, so that a resumed run continues exactly."""
        return all(callable(getattr(self.env, name, None)) for name in ("get_state", "set_state"))

    def _build_actor(self) -> TeamPolicyActor:
        return TeamPolicyActor(
            self.policy, self._state, self._generator, estimates_values=not self._defers_values
        )

    def _values(
        self, actor: TeamPolicyActor, outputs: list[Any], observations: dict[str, Tensor], alive: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        if not self._defers_values:
            return super()._values(actor, outputs, observations, alive)
        flat = {key: leaf.flatten(0, 1).to(self.policy.device) for key, leaf in observations.items()}
        all_values = self.policy.value(from_leaves(flat), alive.flatten(0, 1), self._state)
        *values, last_values = all_values.unflatten(0, (-1, self.num_envs))
        return values, last_values

    def _save_env(self) -> Any:
        return self.env.get_state()

    def _load_env(self, state: Any) -> None:
        self.env.set_state(state)

    def _build_episode(self, fields: dict[str, Any]) -> EpisodeStats:
        return TeamEpisodeStats(**{**fields, "returns": tuple(fields["returns"])})


def make_sampler(
    env: Any, policy: Any, segment_length: int, seed: int = 0, burn_in_segments: int = 0
) -> BaseSampler:
    """Return the sampler of an environment and its policy, for a team or for a single agent.

    Raises ValueError if the policy is a team's and `burn_in_segments` is not 0.
    """
    if not isinstance(policy, TeamPolicy):
        return Sampler(env, policy, segment_length, seed, burn_in_segments)
    if burn_in_segments:
        raise ValueError(f"burn_in_segments={burn_in_segments}: must be 0 for teams")
    return TeamSampler(env, policy, segment_length, seed)
