"""What actors and critics of teams have in common: encoder, graph, memory, one stream per agent."""

from __future__ import annotations

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.agents.entities import ADJACENCY, EntityEncoder
from scrubjay.agents.graph_attention import GraphAttention
from scrubjay.memory import MemoryConfig, State


class TeamNetwork(nn.Module):
    """Encodes every agent's observation, lets agents hear each other in some rounds, and remembers per agent.

    Parameters are the same for all agents and do not depend on how many there are.
    """

    def __init__(
        self, space: spaces.Space, memory: MemoryConfig, graph_rounds: int, graph_heads: int
    ) -> None:
        super().__init__()
        self.encoder = EntityEncoder(space, memory.dim)
        self.rounds = nn.ModuleList(GraphAttention(memory.dim, graph_heads) for _ in range(graph_rounds))
        self.memory = memory.build()

    def forward(
        self,
        leaves: dict[str, Tensor],
        alive: Bool[Tensor, "batch time agents"] | None,
        state: State,
        start: Bool[Tensor, "batch time"] | None,
        agent: int | None = None,
    ) -> tuple[Float[Tensor, "batch time streams dim"], State]:
        """Return features and memory states of all agents' streams, or of `agent`'s alone.

        Leaves are `[batch, time, agents, ...]`, states `[batch, streams, ...]`; `alive=None` means that all are.
        Without rounds, one agent's features depend on its own observation alone.
        """
        if agent is not None and not self.rounds:
            leaves = {key: leaf[:, :, agent : agent + 1] for key, leaf in leaves.items()}
        leading = next(iter(leaves.values())).shape[:3]
        encoded = self.encoder({key: leaf.flatten(0, 2) for key, leaf in leaves.items()}).unflatten(
            0, leading
        )
        if self.rounds:
            hears = hearing(leaves.get(ADJACENCY), alive)
            for attend in self.rounds:
                encoded = attend(encoded, hears)
            if agent is not None:
                encoded = encoded[:, :, agent : agent + 1]
        batch, time, streams = encoded.shape[:3]
        inputs = encoded.transpose(1, 2).reshape(batch * streams, time, -1)
        if start is not None:
            start = start.repeat_interleave(streams, dim=0)
        outputs, after = self.memory(
            inputs, {key: value.flatten(0, 1) for key, value in state.items()}, start
        )
        features = outputs.unflatten(0, (batch, streams)).transpose(1, 2)
        return features, {key: value.unflatten(0, (batch, streams)) for key, value in after.items()}

    def initial_state(self, rows: int, streams: int) -> State:
        """Return newborn states, `[rows, streams, ...]`."""
        state = self.memory.initial_state(rows * streams)
        return {key: value.unflatten(0, (rows, streams)) for key, value in state.items()}


def hearing(
    adjacency: Tensor | None, alive: Bool[Tensor, "*leading agents"] | None
) -> Bool[Tensor, "*leading agents agents"] | None:
    """Return whom each agent hears: itself, and its living neighbours if it lives. None means everybody hears all.

    Raises ValueError if `adjacency` does not have one bit for each agent of the team.
    """
    hears = None
    if adjacency is not None:
        if adjacency.shape[-1] != adjacency.shape[-2]:
            raise ValueError(
                f"{ADJACENCY!r} has {adjacency.shape[-1]} bits in a team of {adjacency.shape[-2]}; one is needed "
                "for each agent, the observer included"
            )
        hears = adjacency > 0
    if alive is not None:
        both = alive[..., :, None] & alive[..., None, :]
        hears = both if hears is None else hears & both
    if hears is None:
        return None
    return hears | torch.eye(hears.shape[-1], dtype=torch.bool, device=hears.device)
