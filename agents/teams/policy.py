"""Policies of a team: actors that may hear each other, and a critic that knows all."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, cast, get_args

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.agents.rl import pretrained
from scrubjay.agents.rl.card import Origin
from scrubjay.agents.rl.distributions import (
    CategoricalHead,
    Distribution,
    GaussianHead,
    make_action_head,
    stack_agents,
)
from scrubjay.agents.rl.observations import from_leaves, to_leaves, to_tensors
from scrubjay.agents.rl.segment import Observation
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.agents.teams.critic import CriticKind, TeamCritic
from scrubjay.agents.teams.network import AgentLook, TeamNetwork
from scrubjay.agents.teams.segment import TeamSegment
from scrubjay.memory import MemoryConfig, State, detach_state, make_config
from scrubjay.memory.contract.nested import named, part_of

_ACTOR, _CRITIC = "actor/", "critic/"


@dataclass(frozen=True)
class TeamPolicyConfig:
    """What a team's policy is built from, its spaces aside. Raises ValueError on an impossible setting."""

    memory: MemoryConfig = dataclasses.field(default_factory=lambda: make_config("gru"))
    """The memory of each agent's stream; every layer has its width."""
    graph_rounds: int = 1
    """How often agents hear their neighbours within a step; 0: never."""
    graph_heads: int = 4
    """Attention heads, of the graph and of the critic; they divide the memory's width."""
    critic: CriticKind = "attention"
    """How the critic sees the team: by attention over the living, by their mean (pooled), or not at all
    (local)."""
    shared: bool = True
    """Whether one actor serves all agents; otherwise each has its own."""
    joint: bool = False
    """Whether each actor also models what all others do, as consensus needs; only with `shared=False`."""

    def __post_init__(self) -> None:
        if self.graph_rounds < 0:
            raise ValueError(f"graph_rounds={self.graph_rounds}: must not be negative")
        if self.critic not in get_args(CriticKind):
            raise ValueError(f"critic={self.critic!r}: choose from {', '.join(get_args(CriticKind))}")
        if self.joint and self.shared:
            raise ValueError(
                "joint=True models all others' actions in each agent's own actor: set shared=False"
            )

    def build(self, spaces: Spaces) -> TeamPolicy:
        """Return a new policy; raises TypeError on a space that is not supported, or if there is no team."""
        if spaces.num_agents is None:
            raise TypeError("one agent alone needs a PolicyConfig, not a TeamPolicyConfig")
        return TeamPolicy(spaces.observation, spaces.action, spaces.num_agents, self)


class TeamPolicyStep(NamedTuple):
    """What a team did in every row, and what it remembers afterwards."""

    action: Tensor
    """Zero-based indices or unbounded numbers, `[rows, agents, ...]`."""
    log_prob: Float[Tensor, "rows agents"]
    value: Float[Tensor, "rows agents"]
    state: State


class TeamActor(nn.Module):
    """A `TeamNetwork` and a head for actions; a joint actor has one head for each agent of the team."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        config: TeamPolicyConfig,
        heads: int,
    ) -> None:
        super().__init__()
        self.network = TeamNetwork(observation_space, config.memory, config.graph_rounds, config.graph_heads)
        self.heads = nn.ModuleList(make_action_head(action_space, config.memory.dim) for _ in range(heads))

    def own(self, features: Float[Tensor, "*leading dim"], agent: int) -> Distribution:
        """Return what `agent`, whose features these are, would do."""
        return self.heads[agent if len(self.heads) > 1 else 0](features)

    def everybody(self, features: Float[Tensor, "*leading dim"]) -> Distribution:
        """Return what the owner of the features thinks that everybody would do, `[*leading, agents]`."""
        return stack_agents([head(features) for head in self.heads])

    def to_env(self, actions: Tensor) -> np.ndarray:
        """Return actions as the environment wants them."""
        return cast("CategoricalHead | GaussianHead", self.heads[0]).to_env(actions)


class TeamPolicy(nn.Module):
    """Acts and judges for teams of `num_agents`, whose observation and action spaces are those of one agent.

    Actor and critic share no parameter. Unless `shared=False`, parameters do not depend on `num_agents`; they
    never depend on the padded sizes of sets. With `shared=False` agent m's distribution depends on actor m
    alone: where agents hear each other, it computes the others' nodes by itself. States are
    `[rows, agents, ...]`, of one stream per agent in the actors and one in the critic. Agents that are not
    alive influence nobody, and what is returned for them is finite and means nothing.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        num_agents: int,
        config: TeamPolicyConfig | None = None,
    ) -> None:
        super().__init__()
        if num_agents < 1:
            raise ValueError(f"num_agents={num_agents}: a team needs at least 1")
        self.config = config = config if config is not None else TeamPolicyConfig()
        self.observation_space = observation_space
        self.action_space = action_space
        self.num_agents = num_agents
        heads = num_agents if config.joint else 1
        self.actors = nn.ModuleList(
            TeamActor(observation_space, action_space, config, heads)
            for _ in range(1 if config.shared else num_agents)
        )
        self.critic = TeamCritic(
            observation_space, config.memory, config.graph_rounds, config.graph_heads, config.critic
        )

    def save_pretrained(self, directory: Path | str, origin: Origin | None = None) -> None:
        """Write weights (safetensors), config.json and a model card to a folder, as `Policy` does."""
        spaces = Spaces(self.observation_space, self.action_space, self.num_agents)
        pretrained.save(self, self.config, spaces, directory, origin)

    @classmethod
    def from_pretrained(cls, directory: Path | str) -> Self:
        """Return the team that `save_pretrained` wrote to a folder; raises as `Policy.from_pretrained`."""
        return pretrained.load(cls, TeamPolicyConfig, directory)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.critic.network.memory.device

    def actor_parameters(self, agent: int | None = None) -> list[nn.Parameter]:
        """Return the parameters of all actors, or of the one that acts for `agent`."""
        actor = self.actors if agent is None or self.config.shared else self.actors[agent]
        return list(actor.parameters())

    def critic_parameters(self) -> list[nn.Parameter]:
        """Return the critic's parameters."""
        return list(self.critic.parameters())

    @property
    def critic_remembers(self) -> bool:
        """Whether a value depends on more than the present."""
        return bool(self.critic.network.initial_state(1))

    @torch.no_grad()
    def initial_state(self, rows: int) -> State:
        """Return all memories' states at the birth of an episode, `[rows, agents, ...]`."""
        if self.config.shared:
            actor = self._actors[0].network.initial_state(rows, self.num_agents)
        else:
            actor = _side_by_side([actor.network.initial_state(rows) for actor in self._actors])
        return {
            **named(actor, prefix=_ACTOR),
            **named(self.critic.network.initial_state(rows, self.num_agents), prefix=_CRITIC),
        }

    @torch.no_grad()
    def step(
        self,
        observation: Observation,
        alive: Bool[Tensor, "rows agents"],
        state: State,
        start: Bool[Tensor, "rows"] | None = None,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> TeamPolicyStep:
        """Act once in every row and judge.

        Args:
            observation: Leaves `[rows, agents, ...]`.
            alive: Who acts; what is chosen for others means nothing.
            state: What actors and critic remember.
            start: Marks rows whose episode begins; None if none does.
            generator: Draws the actions; None for torch's own.
            deterministic: Take the likeliest actions instead.
        """
        leaves, living = _visible(observation, alive)
        distribution, actor = self._distribution(leaves, living, state, start)
        action = distribution.mode() if deterministic else distribution.sample(generator)
        return self._judged(leaves, living, state, start, distribution, action, actor)

    @torch.no_grad()
    def watched(
        self, observation: Observation, alive: Bool[Tensor, "rows agents"], state: State
    ) -> tuple[TeamPolicyStep, list[AgentLook]]:
        """Return `step`'s likeliest actions, and what each agent heard and recalled to choose its own."""
        leaves, living = _visible(observation, alive)
        looks: list[AgentLook] = []
        distribution, actor = self._distribution(leaves, living, state, None, looks)
        action = distribution.mode()
        return self._judged(leaves, living, state, None, distribution, action, actor), looks

    @torch.no_grad()
    def choose(
        self,
        observation: Observation,
        alive: Bool[Tensor, "rows agents"],
        state: State,
        start: Bool[Tensor, "rows"] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Float[Tensor, "rows agents"], State]:
        """Return actions, log-probabilities and the state as `step` does, the critic left where it was."""
        leaves, living = _visible(observation, alive)
        distribution, actor = self._distribution(leaves, living, state, start)
        action = distribution.sample(generator)
        return action, distribution.log_prob(action), {**state, **named(actor, prefix=_ACTOR)}

    @torch.no_grad()
    def value(
        self,
        observation: Observation,
        alive: Bool[Tensor, "rows agents"],
        state: State,
        start: Bool[Tensor, "rows"] | None = None,
    ) -> Float[Tensor, "rows agents"]:
        """Return the values of one observation per agent, of which nothing is remembered."""
        leaves, living = _visible(observation, alive)
        features, _ = self.critic.network.step(leaves, living, part_of(state, prefix=_CRITIC), start)
        return self.critic(features, living)

    def distribution(self, segment: TeamSegment, agent: int | None = None) -> Distribution:
        """Return what the actors would do in a segment, with gradients, over `[batch, time, agents]`.

        Given `agent`, that agent's own, over `[batch, time]`; under `joint` what its actor thinks of
        everybody, over `[batch, time, agents]`. Gradients end at the segment's border.
        """
        leaves, living = _visible(segment.observations, segment.alive)
        state = detach_state(part_of(segment.state, prefix=_ACTOR))
        if self.config.shared:
            (actor,) = self._actors
            features, _ = actor.network(leaves, living, state, segment.starts)
            everybody = actor.own(features, 0)
            return everybody if agent is None else everybody.agent(agent)

        def features_of(one: int) -> Tensor:
            return self._actors[one].network(leaves, living, _stream(state, one), segment.starts, one)[0]

        if agent is None:
            return stack_agents([actor.own(features_of(one), one) for one, actor in enumerate(self._actors)])
        actor = self._actors[agent]
        return (
            actor.everybody(features_of(agent)) if self.config.joint else actor.own(features_of(agent), agent)
        )

    def values(self, segment: TeamSegment) -> Float[Tensor, "batch time agents"]:
        """Return the critic's values of a segment, with gradients that end at the segment's border."""
        leaves, living = _visible(segment.observations, segment.alive)
        state = detach_state(part_of(segment.state, prefix=_CRITIC))
        features, _ = self.critic.network(leaves, living, state, segment.starts)
        return self.critic(features, living)

    def act(
        self,
        observation: Any,
        alive: Any,
        state: State | None = None,
        start: Any = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, State]:
        """Return actions for the environment, and the state to hand back with the next observations.

        Takes arrays of one team, with `alive` of `[agents]`, or of rows of teams, with `[rows, agents]`;
        `state=None` begins an episode in every row, `start` in the marked ones.
        """
        alive = torch.as_tensor(alive, dtype=torch.bool, device=self.device)
        leaves = to_leaves(to_tensors(self.observation_space, observation, self.device))
        single = alive.ndim == 1
        if single:
            alive, leaves = alive[None], {key: leaf[None] for key, leaf in leaves.items()}
        if state is None:
            state = self.initial_state(len(alive))
        if start is not None:
            start = torch.as_tensor(start, dtype=torch.bool, device=self.device).reshape(len(alive))
        step = self.step(from_leaves(leaves), alive, state, start, deterministic=deterministic)
        actions = self.env_actions(step.action)
        return (actions[0] if single else actions), step.state

    def env_actions(self, actions: Tensor) -> np.ndarray:
        """Return sampled actions as the environment wants them: in bounds, right dtype."""
        return self._actors[0].to_env(actions)

    def _distribution(
        self,
        leaves: dict[str, Tensor],
        alive: Tensor | None,
        state: State,
        start: Tensor | None,
        looks: list[AgentLook] | None = None,
    ) -> tuple[Distribution, State]:
        """Return what the actors would do and remember; `looks` is given what they heard and recalled."""

        def lived(actor: TeamActor, state: State, agent: int | None) -> tuple[Tensor, State]:
            if looks is None:
                return actor.network.step(leaves, alive, state, start, agent)
            features, state, seen = actor.network.watched(leaves, alive, state, agent)
            looks.extend(seen)
            return features, state

        state = part_of(state, prefix=_ACTOR)
        if self.config.shared:
            (actor,) = self._actors
            features, state = lived(actor, state, None)
            return actor.own(features, 0), state
        distributions, states = [], []
        for agent, actor in enumerate(self._actors):
            features, after = lived(actor, _stream(state, agent), agent)
            distributions.append(actor.own(features, agent))
            states.append(after)
        return stack_agents(distributions), _side_by_side(states)

    def _judged(
        self,
        leaves: dict[str, Tensor],
        alive: Tensor | None,
        state: State,
        start: Tensor | None,
        distribution: Distribution,
        action: Tensor,
        actor: State,
    ) -> TeamPolicyStep:
        """Return a step of these actions, and what the critic says of it."""
        features, critic = self.critic.network.step(leaves, alive, part_of(state, prefix=_CRITIC), start)
        after = {**named(actor, prefix=_ACTOR), **named(critic, prefix=_CRITIC)}
        return TeamPolicyStep(action, distribution.log_prob(action), self.critic(features, alive), after)

    @property
    def _actors(self) -> list[TeamActor]:
        return cast("list[TeamActor]", list(self.actors))


def _visible(observation: Observation, alive: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return what the living see, and who lives, None for all; what others see may be NaN and is blanked."""
    leaves = to_leaves(observation)
    if alive.all():
        return leaves, None
    return {
        key: leaf.masked_fill(~alive.view(*alive.shape, *[1] * (leaf.ndim - alive.ndim)), 0)
        if leaf.is_floating_point()
        else leaf
        for key, leaf in leaves.items()
    }, alive


def _stream(state: State, agent: int) -> State:
    return {key: value[:, agent] for key, value in state.items()}


def _side_by_side(states: list[State]) -> State:
    return {key: torch.stack([state[key] for state in states], dim=1) for key in states[0]}
