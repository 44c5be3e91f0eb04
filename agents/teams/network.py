"""What actors and critics of teams have in common: encoder, graph, memory, one stream per agent."""

from __future__ import annotations

from typing import cast

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.agents.rl.encoders.entities import ADJACENCY, EntityEncoder
from scrubjay.agents.teams.graph import GraphAttention
from scrubjay.memory import MemoryConfig, State
from scrubjay.memory.contract.recalled import Recalled


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
        features = self._nodes(leaves, alive, agent, axis=1)
        agents = 1 if agent is not None else features.shape[1]
        if agent is None:
            features, state = features.flatten(0, 1), _fold(state)
        if start is not None:
            state = self.memory.reset_state(state, start.repeat_interleave(agents, dim=0))
        features, state = self.memory.step(features, state)
        if agent is None:
            return features.unflatten(0, (-1, agents)), _unfold(state, agents)
        return features, state

    @torch.no_grad()
    def looked(
        self, leaves: dict[str, Tensor], alive: Bool[Tensor, "rows agents"] | None, state: State, agent: int
    ) -> tuple[list[Float[Tensor, "rows agents"]], Recalled | None]:
        """Return what `step` of `agent` would hear in each round, how much of each, the mean over heads, and
        what its memory would read.
        """
        nodes, hears = self._encode(leaves, 2), hearing(leaves.get(ADJACENCY), alive)
        heard = []
        for attend in self.rounds:
            heard.append(attend.weigh(nodes, hears).mean(dim=-3)[:, agent])
            nodes = attend(nodes, hears)
        return heard, self.memory.recalled(nodes[:, agent], state)

    def initial_state(self, rows: int, agents: int | None = None) -> State:
        """Return newborn states, `[rows, agents, ...]`, or `[rows, ...]` of one agent alone."""
        if agents is None:
            return self.memory.initial_state(rows)
        return _unfold(self.memory.initial_state(rows * agents), agents)

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
