"""What actors and critics of teams have in common: encoder, graph, memory, one stream per agent."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.agents.rl.encoders.entities import ADJACENCY, EntityEncoder
from scrubjay.agents.teams.graph import GraphAttention
from scrubjay.memory import MemoryConfig, State
from scrubjay.memory.contract.recalled import Recalled


class AgentLook(NamedTuple):
    """What one agent hears and recalls in a step."""

    heard: Float[Tensor, "rows rounds agents"] | None
    """How much of what it hears is of each agent, itself too, the mean over heads; None without rounds."""
    moved: Float[Tensor, " rows"]
    """How far what it heard moved what it makes of its observation, as a share of that one's length."""
    recalled: Recalled | None
    """What its memory reads."""


class TeamNetwork(nn.Module):
    """Encodes every agent's observation, lets agents hear each other in some rounds, and remembers per agent.

    Parameters are the same for all agents and do not depend on how many there are.
    """

    def __init__(
        self, space: spaces.Space, memory: MemoryConfig, graph_rounds: int, graph_heads: int
    ) -> None:
        super().__init__()
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
        """Return every agent's features in a segment, and its memory's state, `[batch, agents, ...]`.

        Leaves are `[batch, time, agents, ...]`; `alive=None` means that all are. Given `agent`, all of this
        is of that agent alone, without an axis for agents; without rounds its own observation is then all
        that counts.
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
    ) -> tuple[Float[Tensor, "rows *agents dim"], State]:
        """Return the same for one step; leaves are `[rows, agents, ...]`."""
        return self._remember(self._nodes(leaves, alive, agent, axis=1), state, start, agent)

    @torch.no_grad()
    def watched(
        self,
        leaves: dict[str, Tensor],
        alive: Bool[Tensor, "rows agents"] | None,
        state: State,
        agent: int | None = None,
    ) -> tuple[Float[Tensor, "rows *agents dim"], State, list[AgentLook]]:
        """Return what `step` does, and what each agent heard and recalled in it, or `agent` alone."""
        alone, hears, heard = self._encode(leaves, 2), hearing(leaves.get(ADJACENCY), alive), []
        nodes, agents = alone, alone.shape[1]
        for attend in self.rounds:
            nodes, weights = attend.watched(nodes, hears)
            heard.append(weights.mean(dim=-3))
        moved = (nodes - alone).norm(dim=-1) / alone.norm(dim=-1).clamp(min=1e-12)
        if agent is None:
            recalled = self.memory.recalled(nodes.flatten(0, 1), _fold(state))
            shown, every = range(agents), agents
        else:
            nodes = nodes[:, agent]
            recalled, shown, every = self.memory.recalled(nodes, state), [agent], 1
        looks = [
            AgentLook(
                torch.stack([weights[:, one] for weights in heard], dim=1) if heard else None,
                moved[:, one],
                None if recalled is None else recalled.of_rows(slice(place, None, every)),
            )
            for place, one in enumerate(shown)
        ]
        return *self._remember(nodes, state, None, agent), looks

    def initial_state(self, rows: int, agents: int | None = None) -> State:
        """Return newborn states, `[rows, agents, ...]`, or `[rows, ...]` of one agent alone."""
        if agents is None:
            return self.memory.initial_state(rows)
        return _unfold(self.memory.initial_state(rows * agents), agents)

    def _remember(
        self, nodes: Tensor, state: State, start: Tensor | None, agent: int | None
    ) -> tuple[Tensor, State]:
        """Return features and states after nodes of one step, `[rows, agents, dim]`, or of one `agent`."""
        agents = 1 if agent is not None else nodes.shape[1]
        if agent is None:
            nodes, state = nodes.flatten(0, 1), _fold(state)
        if start is not None:
            state = self.memory.reset_state(state, start.repeat_interleave(agents, dim=0))
        features, state = self.memory.step(nodes, state)
        if agent is None:
            return features.unflatten(0, (-1, agents)), _unfold(state, agents)
        return features, state

    def _nodes(self, leaves: dict[str, Tensor], alive: Tensor | None, agent: int | None, axis: int) -> Tensor:
        """Return nodes before they remember, for leaves whose agents lie along `axis`."""
        if agent is not None and not self.rounds:
            return self._encode({key: leaf.select(axis, agent) for key, leaf in leaves.items()}, axis)
        nodes = self._encode(leaves, axis + 1)
        if self.rounds:
            hears = hearing(leaves.get(ADJACENCY), alive)
            for attend in self.rounds:
                nodes = attend(nodes, hears)
        return nodes if agent is None else nodes.select(axis, agent)

    def _encode(self, leaves: dict[str, Tensor], leading: int) -> Tensor:
        if leading == 1:
            return self.encoder(leaves)
        shape = next(iter(leaves.values())).shape[:leading]
        flat = {key: leaf.flatten(0, leading - 1) for key, leaf in leaves.items()}
        return self.encoder(flat).unflatten(0, shape)


def hearing(
    adjacency: Tensor | None, alive: Bool[Tensor, "*leading agents"] | None
) -> Bool[Tensor, "*leading agents agents"] | None:
    """Return whom each agent hears: itself, and if it lives, living neighbours. None: everybody hears all.

    Raises ValueError if `adjacency` does not have one bit for each agent of the team.
    """
    hears = None
    if adjacency is not None:
        if adjacency.shape[-1] != adjacency.shape[-2]:
            raise ValueError(
                f"{ADJACENCY!r} has {adjacency.shape[-1]} bits in a team of {adjacency.shape[-2]}; one is "
                "needed for each agent, the observer included"
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
