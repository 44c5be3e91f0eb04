"""Architecture of a team's actors and critics: encoder, graph attention, per-agent memory, central critic."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, cast

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.agents.rl.encoders.observation import ADJACENCY, EntityEncoder
from scrubjay.agents.rl.observations import leaf_spaces
from scrubjay.agents.teams.graph import GraphAttention
from scrubjay.memory import MemoryConfig, State
from scrubjay.memory.contract.base import Recall

IDENTITY = "identity"
"""Name of the leaf for the index of the agent, in networks that know it."""


class AgentTrace(NamedTuple):
    """Graph attention and memory recall of one agent in a step, for visualization."""

    graph_weights: Float[Tensor, "rows rounds agents"] | None
    """Attention weights of the agent over all agents, itself included, averaged over heads. None without
    graph rounds."""
    graph_change: Float[Tensor, " rows"]
    """Norm of the change of the agent's features by all graph rounds together, divided by the norm of the
    features before the first round. 0 without graph rounds."""
    recall: Recall | None
    """Contents that the memory recalls; None if the memory does not report them."""


class TeamNetwork(nn.Module):
    """Network with an observation encoder, rounds of graph attention and one memory stream per agent.

    All agents share the parameters, which do not depend on the number of agents. If `identities` is set, it
    is the number of agents, and the index of the agent is a further input. Without it, agents with equal
    observations and states act alike.
    """

    def __init__(
        self,
        space: spaces.Space,
        memory: MemoryConfig,
        graph_rounds: int,
        graph_heads: int,
        identities: int | None = None,
    ) -> None:
        super().__init__()
        self.identities = identities
        if identities is not None:
            space = _add_identity(space, identities)
        self.encoder = EntityEncoder(space, memory.dim)
        rounds = nn.ModuleList(GraphAttention(memory.dim, graph_heads) for _ in range(graph_rounds))
        self.rounds = cast("list[GraphAttention]", rounds)
        self.memory = memory.build()

    def forward(
        self,
        leaves: dict[str, Tensor],
        alive: Bool[Tensor, "batch time agents"] | None,
        state: State,
        start: Bool[Tensor, "batch time"],
        agent: int | None = None,
    ) -> tuple[Float[Tensor, "batch time *agents dim"], State]:
        """Return the features of every agent in a segment, and the memory states after the segment.

        The axes of `leaves` are `[batch, time, agents, ...]`. The axes of memory states are
        `[batch, agents, ...]`. `alive=None` means that all agents are alive. If `agent` is set, the results
        belong to this agent only, without an axis for agents. Without graph rounds these results depend only
        on this agent's observations.
        """
        nodes = self._nodes(leaves, alive, agent, axis=2)
        if agent is not None:
            return self.memory(nodes, state, start)
        agents = nodes.shape[2]
        outputs, state = self.memory(
            nodes.transpose(1, 2).flatten(0, 1), _fold(state), start.repeat_interleave(agents, dim=0)
        )
        return outputs.unflatten(0, (-1, agents)).transpose(1, 2), _unfold(state, agents)

    def step(
        self,
        leaves: dict[str, Tensor],
        alive: Bool[Tensor, "rows agents"] | None,
        state: State,
        start: Bool[Tensor, "rows"] | None = None,
        agent: int | None = None,
        traces: list[AgentTrace] | None = None,
    ) -> tuple[Float[Tensor, "rows *agents dim"], State]:
        """Return the features of every agent in one step, and the memory states after this step.

        The axes of `leaves` and of memory states are `[rows, agents, ...]`. If `agent` is set, the results
        belong to this agent only, without an axis for agents. The trace of each agent, or of `agent` only,
        is appended to `traces`.
        """
        weights, change = [], None
        if traces is None:
            nodes = self._nodes(leaves, alive, agent, axis=1)
        else:
            nodes, weights, change = self._trace_rounds(leaves, alive)
            nodes = nodes if agent is None else nodes[:, agent]
        agents = range(nodes.shape[1]) if agent is None else [agent]
        if agent is None:
            nodes, state = nodes.flatten(0, 1), _fold(state)
        if start is not None:
            state = self.memory.reset_state(state, start.repeat_interleave(len(agents), dim=0))
        if traces is not None and change is not None:
            recall = self.memory.recall(nodes, state)
            traces += [
                AgentTrace(
                    torch.stack([of_round[:, one] for of_round in weights], dim=1) if weights else None,
                    change[:, one],
                    None if recall is None else recall.select_rows(slice(position, None, len(agents))),
                )
                for position, one in enumerate(agents)
            ]
        features, state = self.memory.step(nodes, state)
        if agent is None:
            return features.unflatten(0, (-1, len(agents))), _unfold(state, len(agents))
        return features, state

    def _trace_rounds(
        self, leaves: dict[str, Tensor], alive: Tensor | None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return the nodes, the attention weights of each graph round, and the change of the nodes."""
        features, hears = self._encode(leaves, 2), build_hearing_mask(leaves.get(ADJACENCY), alive)
        nodes, round_weights = features, []
        for attend in self.rounds:
            nodes, weights = attend.forward_with_weights(nodes, hears)
            round_weights.append(weights.mean(dim=-3))
        change = (nodes - features).norm(dim=-1) / features.norm(dim=-1).clamp(min=1e-12)
        return nodes, round_weights, change

    def initial_state(self, rows: int, agents: int | None = None) -> State:
        """Return memory states at episode start, `[rows, agents, ...]`, or `[rows, ...]` without `agents`."""
        if agents is None:
            return self.memory.initial_state(rows)
        return _unfold(self.memory.initial_state(rows * agents), agents)

    def _nodes(self, leaves: dict[str, Tensor], alive: Tensor | None, agent: int | None, axis: int) -> Tensor:
        """Encode the leaves and apply graph attention; the result is the input of the memory.

        `axis` is the axis of agents in the leaves. If `agent` is set, the result belongs to this agent only,
        without an axis for agents.
        """
        if agent is not None and not self.rounds:
            return self._encode({key: leaf.select(axis, agent) for key, leaf in leaves.items()}, axis, agent)
        nodes = self._encode(leaves, axis + 1)
        if self.rounds:
            hears = build_hearing_mask(leaves.get(ADJACENCY), alive)
            for attend in self.rounds:
                nodes = attend(nodes, hears)
        return nodes if agent is None else nodes.select(axis, agent)

    def _encode(self, leaves: dict[str, Tensor], leading: int, agent: int | None = None) -> Tensor:
        """Encode leaves with `leading` axes, the last of which are the agents if `agent` is None."""
        if self.identities is not None:
            leaves = _with_identity(leaves, leading, agent, self.identities)
        if leading == 1:
            return self.encoder(leaves)
        shape = next(iter(leaves.values())).shape[:leading]
        flat = {key: leaf.flatten(0, leading - 1) for key, leaf in leaves.items()}
        return self.encoder(flat).unflatten(0, shape)


def _add_identity(space: spaces.Space, identities: int) -> spaces.Dict:
    leaves = leaf_spaces(space)
    if IDENTITY in leaves:
        raise ValueError(
            f"identity=True adds a leaf {IDENTITY!r}, but the observations already have one; rename that one "
            "or set identity=False"
        )
    return spaces.Dict({**leaves, IDENTITY: spaces.Discrete(identities)})


def _with_identity(
    leaves: dict[str, Tensor], leading: int, agent: int | None, identities: int
) -> dict[str, Tensor]:
    """Return the leaves and the index of `agent`, or of each agent of the last of the `leading` axes."""
    first = next(iter(leaves.values()))
    shape = first.shape[:leading]
    if agent is None and shape[-1] != identities:
        raise ValueError(
            f"the policy has the identities of {identities} agents, and the team has {shape[-1]}; train with "
            "identity=False for teams of other sizes"
        )
    index = torch.arange(identities, device=first.device) if agent is None else first.new_tensor(agent)
    return {**leaves, IDENTITY: index.to(torch.int64).expand(shape)}


def build_hearing_mask(
    adjacency: Tensor | None, alive: Bool[Tensor, "*leading agents"] | None
) -> Bool[Tensor, "*leading agents agents"] | None:
    """Return the attention mask `[..., i, j]`, True if agent i hears agent j; None if all agents hear all.

    An agent hears itself and, if it is alive, its living neighbors. Raises ValueError if `adjacency` does not
    have one bit per agent of the team.
    """
    hears = None
    if adjacency is not None:
        if adjacency.shape[-1] != adjacency.shape[-2]:
            raise ValueError(
                f"{ADJACENCY!r} has {adjacency.shape[-1]} bits in a team of {adjacency.shape[-2]} agents; "
                "expected one bit for each agent, including the observing agent"
            )
        hears = adjacency > 0
    if alive is not None:
        both = alive[..., :, None] & alive[..., None, :]
        hears = both if hears is None else hears & both
    if hears is None:
        return None
    return hears | torch.eye(hears.shape[-1], dtype=torch.bool, device=hears.device)


def _fold(state: State) -> State:
    return {key: value.flatten(0, 1) for key, value in state.items()}


def _unfold(state: State, agents: int) -> State:
    return {key: value.unflatten(0, (-1, agents)) for key, value in state.items()}


CriticType = Literal["attention", "pooled", "local"]


class TeamCritic(nn.Module):
    """Critic that estimates the value of each agent from the agent's features and a summary of the team.

    The features are outputs of `network`. `critic_type` selects the summary: attention over the features of
    all living agents ("attention"), the mean of these features ("pooled"), or no summary ("local").
    """

    def __init__(
        self,
        space: spaces.Space,
        memory: MemoryConfig,
        graph_rounds: int,
        graph_heads: int,
        critic_type: CriticType,
        identities: int | None = None,
    ) -> None:
        super().__init__()
        dim = memory.dim
        self.kind = critic_type
        self.network = TeamNetwork(space, memory, graph_rounds, graph_heads, identities)
        self.attention = TeamAttention(dim, graph_heads) if critic_type == "attention" else None
        hidden, value = nn.Linear(dim if critic_type == "local" else 2 * dim, dim), nn.Linear(dim, 1)
        for layer, gain in ((hidden, math.sqrt(2)), (value, 1.0)):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)
        self.judge = nn.Sequential(hidden, nn.SiLU(), value)

    def forward(
        self, features: Float[Tensor, "*leading agents dim"], alive: Bool[Tensor, "*leading agents"] | None
    ) -> Float[Tensor, "*leading agents"]:
        """Return the value of each agent from the features of the critic's `network`."""
        if self.attention is not None:
            features = torch.cat([features, self.attention(features, alive)], dim=-1)
        elif self.kind == "pooled":
            features = torch.cat([features, _mean(features, alive).expand_as(features)], dim=-1)
        return self.judge(features).squeeze(-1)


class TeamAttention(nn.Module):
    """Scaled dot-product attention of each agent over all living agents, neighbors or not.

    Vaswani et al. 2017, arXiv 1706.03762, equation 1. Raises ValueError if `heads` does not divide the width.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"graph_heads={heads}: must divide the memory's width, {dim}")
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.queries_keys_values = nn.Linear(dim, 3 * dim)

    def forward(
        self, features: Float[Tensor, "*leading agents dim"], alive: Bool[Tensor, "*leading agents"] | None
    ) -> Float[Tensor, "*leading agents dim"]:
        """Return the attention output of each agent; an agent that is not alive attends to itself."""
        parts = self.queries_keys_values(self.norm(features)).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = (part.transpose(-2, -3) for part in parts.unbind(dim=-3))
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        mask = build_hearing_mask(None, alive)
        if mask is not None:
            scores = scores.masked_fill(~mask.unsqueeze(-3), float("-inf"))
        return (scores.softmax(dim=-1) @ values).transpose(-2, -3).flatten(-2)


def _mean(features: Tensor, alive: Tensor | None) -> Tensor:
    if alive is None:
        return features.mean(dim=-2, keepdim=True)
    count = alive.sum(dim=-1)[..., None, None].clamp_min(1)
    return features.masked_fill(~alive[..., None], 0).sum(dim=-2, keepdim=True) / count
