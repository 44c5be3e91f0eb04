"""Team policy: communicating actors and a centralized critic."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple, cast, get_args

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.agents.rl.composite import check_deviation, make_action_head
from scrubjay.agents.rl.distributions import (
    CategoricalHead,
    Deviation,
    Distribution,
    GaussianHead,
    stack_agents,
)
from scrubjay.agents.rl.learner import SingleProcess
from scrubjay.agents.rl.masks.action_masks import drop_mask, select_mask
from scrubjay.agents.rl.normalization import ObservationNormalizer
from scrubjay.agents.rl.observations import from_leaves, to_leaves, to_tensors
from scrubjay.agents.rl.pretrained import PretrainedPolicy
from scrubjay.agents.rl.segment import Observation
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.agents.rl.trunk import ACTOR, CRITIC, join_states
from scrubjay.agents.teams.network import AgentTrace, CriticType, TeamCritic, TeamNetwork
from scrubjay.agents.teams.segment import TeamSegment
from scrubjay.memory import MemoryConfig, State, detach_state, make_config
from scrubjay.memory.contract.base import add_affixes, select_part


@dataclass(frozen=True)
class TeamPolicyConfig:
    """Config of `TeamPolicy`.

    Raises:
        ValueError: On an invalid value.
    """

    memory: MemoryConfig = dataclasses.field(default_factory=lambda: make_config("gru"))
    """Memory of each agent; every layer has the width of the memory."""
    graph_rounds: int = 1
    """Rounds of graph attention per step; 0 disables communication."""
    graph_heads: int = 4
    """Attention heads of the graph and of the critic; must divide the memory's width."""
    critic: CriticType = "attention"
    """Team input of the critic: attention over living agents (attention), the mean of their features (pooled)
    or no team input (local)."""
    shared: bool = True
    """Share one actor among all agents. If False, each agent has a separate actor."""
    joint: bool = False
    """Let each actor also model the actions of all other agents. The learner gamatr needs this in its mode
    consensus. Needs `shared=False`."""
    identity: bool = False
    """Give actors and critic the index of the agent as an input. With a shared actor and without this input,
    agents with equal observations act alike. The policy then serves only teams of one size."""
    deviation: Deviation = "constant"
    """Standard deviation of Box actions: constant for a parameter that is the same in all states, or state
    for an output of the network."""
    normalize_observations: bool = False
    """Normalize floating-point vectors in observations by their running mean and standard deviation over all
    living agents, and clip them to [-10, 10]. The statistics change after each update in training, and are
    part of the weights. Images, indices and integers are not normalized."""

    def __post_init__(self) -> None:
        check_deviation(self.deviation)
        if self.graph_rounds < 0:
            raise ValueError(f"graph_rounds={self.graph_rounds}: must not be negative")
        if self.critic not in get_args(CriticType):
            raise ValueError(f"critic={self.critic!r}: choose from {', '.join(get_args(CriticType))}")
        if self.joint and self.shared:
            raise ValueError("joint=True requires a separate actor for each agent: set shared=False")

    def build(self, spaces: Spaces) -> TeamPolicy:
        """Return a new policy.

        Raises:
            TypeError: If a space is not supported or `num_agents` is None.
        """
        if spaces.num_agents is None:
            raise TypeError("a single agent needs a PolicyConfig, not a TeamPolicyConfig")
        return TeamPolicy(spaces.observation, spaces.action, spaces.num_agents, self, spaces.action_masks)


class TeamPolicyStep(NamedTuple):
    """Actions of teams in a batch of environments, and the next memory states."""

    action: Tensor
    """Sampled actions: zero-based indices or unbounded numbers, `[rows, agents, ...]`."""
    log_prob: Float[Tensor, "rows agents"]
    """Log probability of each action."""
    value: Float[Tensor, "rows agents"] | None
    """Value estimates; None if the critic was left out."""
    state: State
    """Next memory states."""


class TeamActor(nn.Module):
    """Actor with a `TeamNetwork` and an action head; a joint actor has one head per agent of the team."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        config: TeamPolicyConfig,
        heads: int,
        identities: int | None = None,
    ) -> None:
        super().__init__()
        self.network = TeamNetwork(
            observation_space, config.memory, config.graph_rounds, config.graph_heads, identities
        )
        if isinstance(action_space, (spaces.Dict, spaces.Tuple)):
            raise TypeError(
                f"action space {action_space} is not supported for teams; use Discrete, MultiDiscrete, "
                "MultiBinary or a Box of floats"
            )
        self.heads = nn.ModuleList(
            make_action_head(action_space, config.memory.dim, config.deviation) for _ in range(heads)
        )

    def own_distribution(
        self,
        features: Float[Tensor, "*leading dim"],
        agent: int,
        mask: Bool[Tensor, "*leading actions"] | None = None,
    ) -> Distribution:
        """Return the action distribution of `agent` from its features and its action mask."""
        head = self.heads[agent if len(self.heads) > 1 else 0]
        return head(features) if mask is None else head(features, mask)

    def joint_distribution(
        self,
        features: Float[Tensor, "*leading dim"],
        masks: Bool[Tensor, "*leading agents actions"] | None = None,
    ) -> Distribution:
        """Return one agent's prediction of the actions of all agents, from the features of this agent.

        The leading axes of the returned distribution are `[*leading, agents]`. `masks` are the action masks
        of all agents.
        """
        return stack_agents(
            [
                self.own_distribution(features, agent, None if masks is None else masks[..., agent, :])
                for agent in range(len(self.heads))
            ]
        )

    def to_env(self, actions: Tensor) -> np.ndarray:
        """Convert sampled actions to the environment's action space."""
        return cast("CategoricalHead | GaussianHead", self.heads[0]).to_env(actions)


class TeamPolicy(PretrainedPolicy):
    """Actor-critic policy for teams of `num_agents` agents; each space is the space of one agent.

    Actor and critic share no parameters. The shapes of parameters do not depend on the padded sizes of sets.
    With a shared actor and without identity these shapes do not depend on `num_agents` either. With
    `shared=False` the distribution of agent m depends only on actor m, which then also encodes the
    observations of the other agents for graph attention.

    Memory states are `[rows, agents, ...]`: each agent has one state for the actor and one for the critic.
    Agents that are not alive have no influence on other agents. Outputs for agents that are not alive are
    finite, but have no meaning. Action masks are used as in `Policy`; each agent has its own mask.

    Args:
        observation_space: Space of the observations of one agent.
        action_space: Space of its actions.
        num_agents: Number of agents of a team.
        config: Settings; the defaults without one.
        action_masks: The environment offers action masks outside its observations.
    """

    config_class = TeamPolicyConfig
    num_agents: int
    normalizer: ObservationNormalizer | None
    """Running statistics of observations; None if observations are not normalized."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        num_agents: int,
        config: TeamPolicyConfig | None = None,
        action_masks: bool = False,
    ) -> None:
        super().__init__()
        if num_agents < 1:
            raise ValueError(f"num_agents={num_agents}: a team needs at least 1")
        self.config = config = config if config is not None else TeamPolicyConfig()
        self.observation_space = observation_space
        self.action_space = action_space
        self.num_agents = num_agents
        self.normalizer = ObservationNormalizer(observation_space) if config.normalize_observations else None
        self.action_masks = action_masks
        self._masks = self.spaces.masks
        observation_space = drop_mask(observation_space)
        heads, identities = num_agents if config.joint else 1, num_agents if config.identity else None
        self.actors = nn.ModuleList(
            TeamActor(observation_space, action_space, config, heads, identities)
            for _ in range(1 if config.shared else num_agents)
        )
        self.critic = TeamCritic(
            observation_space,
            config.memory,
            config.graph_rounds,
            config.graph_heads,
            config.critic,
            identities,
        )

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.critic.network.memory.device

    def actor_parameters(self, agent: int | None = None) -> list[nn.Parameter]:
        """Return the parameters of all actors, or of the actor of `agent`."""
        actor = self.actors if agent is None or self.config.shared else self.actors[agent]
        return list(actor.parameters())

    def critic_parameters(self) -> list[nn.Parameter]:
        """Return the critic's parameters."""
        return list(self.critic.parameters())

    @property
    def critic_remembers(self) -> bool:
        """True if the critic has memory, so that values depend on past observations."""
        return bool(self.critic.network.initial_state(1))

    @torch.no_grad()
    def initial_state(self, rows: int) -> State:
        """Return the states of all memories at episode start, `[rows, agents, ...]`."""
        if self.config.shared:
            actor = self._actors[0].network.initial_state(rows, self.num_agents)
        else:
            actor = _stack_states([actor.network.initial_state(rows) for actor in self._actors])
        return join_states(actor, self.critic.network.initial_state(rows, self.num_agents))

    @torch.no_grad()
    def step(
        self,
        observation: Observation,
        alive: Bool[Tensor, "rows agents"],
        state: State,
        start: Bool[Tensor, "rows"] | None = None,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
        estimates_values: bool = True,
        traces: list[AgentTrace] | None = None,
    ) -> TeamPolicyStep:
        """Select one action per agent and estimate values.

        Args:
            observation: Leaves `[rows, agents, ...]`.
            alive: True for agents that act; the actions of all other agents have no meaning.
            state: Memory states of actors and critic.
            start: True for environments at episode start; None if no environment is at episode start.
            generator: Source of random numbers; None for torch's default generator.
            deterministic: Take the most likely actions instead of samples.
            estimates_values: Step the critic. Without the critic a step is faster, and its memory state is
                not updated.
            traces: List to which the trace of each agent is appended.
        """
        leaves, living = self._prepare(observation, alive)
        distribution, actor = self._distribution(leaves, living, state, start, traces)
        action = distribution.mode() if deterministic else distribution.sample(generator)
        after, values = {**state, **add_affixes(actor, prefix=ACTOR)}, None
        if estimates_values:
            critic_state = select_part(state, prefix=CRITIC)
            features, critic_state = self.critic.network.step(leaves, living, critic_state, start)
            values = self.critic(features, living)
            after |= add_affixes(critic_state, prefix=CRITIC)
        return TeamPolicyStep(action, distribution.log_prob(action), values, after)

    @torch.no_grad()
    def value(
        self,
        observation: Observation,
        alive: Bool[Tensor, "rows agents"],
        state: State,
        start: Bool[Tensor, "rows"] | None = None,
    ) -> Float[Tensor, "rows agents"]:
        """Return the values of one observation per agent; memory states are not updated.

        Args:
            observation: Observations of all agents.
            alive: True for agents that act.
            state: Memory state of each environment.
            start: True for environments in which an episode starts; None for no environment.
        """
        leaves, living = self._prepare(observation, alive)
        features, _ = self.critic.network.step(leaves, living, select_part(state, prefix=CRITIC), start)
        return self.critic(features, living)

    def distribution(self, segment: TeamSegment, agent: int | None = None) -> Distribution:
        """Return the action distribution of a segment, with gradients, over `[batch, time, agents]`.

        If `agent` is set, return the distribution of this agent only, over `[batch, time]`. A joint actor
        then returns its model of the actions of all agents, over `[batch, time, agents]`. Gradients stop at
        the start of the segment.
        """
        leaves, living = self._prepare(segment.observations, segment.alive)
        masks = select_mask(segment.observations, self._masks, self.action_masks)
        state = detach_state(select_part(segment.state, prefix=ACTOR))
        if self.config.shared:
            (actor,) = self._actors
            features, _ = actor.network(leaves, living, state, segment.starts)
            team_distribution = actor.own_distribution(features, 0, masks)
            return team_distribution if agent is None else team_distribution.agent(agent)

        def compute_features(one: int) -> Tensor:
            return self._actors[one].network(
                leaves, living, _select_agent_state(state, one), segment.starts, one
            )[0]

        if agent is None:
            return stack_agents(
                [
                    actor.own_distribution(compute_features(one), one, _select_agent_mask(masks, one))
                    for one, actor in enumerate(self._actors)
                ]
            )
        actor = self._actors[agent]
        return (
            actor.joint_distribution(compute_features(agent), masks)
            if self.config.joint
            else actor.own_distribution(compute_features(agent), agent, _select_agent_mask(masks, agent))
        )

    def values(self, segment: TeamSegment) -> Float[Tensor, "batch time agents"]:
        """Return the values of a segment, with gradients that stop at the start of the segment."""
        leaves, living = self._prepare(segment.observations, segment.alive)
        state = detach_state(select_part(segment.state, prefix=CRITIC))
        features, _ = self.critic.network(leaves, living, state, segment.starts)
        return self.critic(features, living)

    def act(
        self,
        observation: Any,
        alive: Any,
        state: State | None = None,
        start: Any = None,
        deterministic: bool = True,
        action_mask: Any = None,
    ) -> tuple[np.ndarray, State]:
        """Return actions for the environment, and the state to pass with the next observations.

        Accepts arrays of one team, with `alive` of shape `[agents]`, or arrays of a batch of teams, with
        `alive` of shape `[rows, agents]`.

        Args:
            observation: Observations of all agents.
            alive: True for agents that act.
            state: Memory states; None starts an episode in every environment.
            start: True for environments in which an episode starts; None for no environment.
            deterministic: Take the most likely actions instead of samples.
            action_mask: Masks that the environment offers beside the observations, `[agents, actions]` or
                `[rows, agents, actions]`; a policy that was trained with such masks requires them.

        Raises:
            ValueError: On a missing or invalid mask of a living agent.
        """
        alive = torch.as_tensor(alive, dtype=torch.bool, device=self.device)
        leaves = to_leaves(to_tensors(self.observation_space, observation, self.device))
        single = alive.ndim == 1
        if single:
            alive, leaves = alive[None], {key: leaf[None] for key, leaf in leaves.items()}
        leaves = self.spaces.with_mask(leaves, action_mask, not single, alive)
        if state is None:
            state = self.initial_state(len(alive))
        if start is not None:
            start = torch.as_tensor(start, dtype=torch.bool, device=self.device).reshape(len(alive))
        step = self.step(from_leaves(leaves), alive, state, start, deterministic=deterministic)
        actions = self.env_actions(step.action)
        return (actions[0] if single else actions), step.state

    def env_actions(self, actions: Tensor) -> np.ndarray:
        """Convert sampled actions to the environment's action space: bounds, shape and dtype."""
        return self._actors[0].to_env(actions)

    def update_statistics(self, segment: TeamSegment) -> None:
        """Update the running mean and variance of observations; learners call this after each update.

        All agents share the statistics. Only observations of living agents count.
        """
        if self.normalizer is not None:
            self.normalizer.update(segment.observations, SingleProcess(), segment.alive)

    def _prepare(self, observation: Observation, alive: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return normalized observations, masked by `_mask_observations`, and the mask of living agents."""
        if self.normalizer is not None:
            observation = self.normalizer(observation)
        return _mask_observations(observation, alive)

    def _distribution(
        self,
        leaves: dict[str, Tensor],
        alive: Tensor | None,
        state: State,
        start: Tensor | None,
        traces: list[AgentTrace] | None,
    ) -> tuple[Distribution, State]:
        """Return the action distribution and the next states of all actors."""
        state = select_part(state, prefix=ACTOR)
        masks = select_mask(leaves, self._masks, self.action_masks)
        if self.config.shared:
            (actor,) = self._actors
            features, state = actor.network.step(leaves, alive, state, start, None, traces)
            return actor.own_distribution(features, 0, masks), state
        distributions, states = [], []
        for agent, actor in enumerate(self._actors):
            features, after = actor.network.step(
                leaves, alive, _select_agent_state(state, agent), start, agent, traces
            )
            distributions.append(actor.own_distribution(features, agent, _select_agent_mask(masks, agent)))
            states.append(after)
        return stack_agents(distributions), _stack_states(states)

    @property
    def _actors(self) -> list[TeamActor]:
        return cast("list[TeamActor]", list(self.actors))


def _mask_observations(observation: Observation, alive: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
    """Zero the floating-point observations of agents that are not alive.

    Returns the leaves and the mask of living agents. The mask is None if all agents are alive.
    """
    leaves = to_leaves(observation)
    if alive.all():
        return leaves, None
    return {
        key: leaf.masked_fill(~alive.view(*alive.shape, *[1] * (leaf.ndim - alive.ndim)), 0)
        if leaf.is_floating_point()
        else leaf
        for key, leaf in leaves.items()
    }, alive


def _select_agent_mask(masks: Tensor | None, agent: int) -> Tensor | None:
    return None if masks is None else masks[..., agent, :]


def _select_agent_state(state: State, agent: int) -> State:
    return {key: value[:, agent] for key, value in state.items()}


def _stack_states(states: list[State]) -> State:
    return {key: torch.stack([state[key] for state in states], dim=1) for key in states[0]}
