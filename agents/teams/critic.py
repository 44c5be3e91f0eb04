"""Centralized critic of a team: one value per agent from the observations of all agents."""

from __future__ import annotations

import math
from typing import Literal

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.agents.teams.network import TeamNetwork, build_hearing_mask
from scrubjay.memory import MemoryConfig

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
    ) -> None:
        super().__init__()
        dim = memory.dim
        self.kind = critic_type
        self.network = TeamNetwork(space, memory, graph_rounds, graph_heads)
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
