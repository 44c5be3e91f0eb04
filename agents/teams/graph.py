"""Multi-head graph attention on the communication graph of a team."""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

DENSE_NODES = 32
"""Maximum number of nodes for dense attention; larger graphs use sparse edges."""


class GraphAttention(nn.Module):
    """Residual graph attention of each node over its neighbors and itself.

    Implements GATv2 (Brody et al. 2021, arXiv 2105.14491, equation 7) on layer-normalized node features x. In
    each head the score of neighbor j for node i is a . LeakyReLU(W_l x_j + W_r x_i), with learned a, W_l and
    W_r. A learned scale of the output starts at 0.01.

    A graph of up to `DENSE_NODES` nodes is computed over all pairs of nodes. A larger graph is computed over
    its edges, by torch_geometric's `GATv2Conv` with the same parameters. Both computations can be
    differentiated any number of times. Raises ValueError if `heads` does not divide the width.
    """

    def __init__(self, dim: int, heads: int = 4) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"graph_heads={heads}: must divide the memory's width, {dim}")
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.source, self.target = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.score = nn.Parameter(torch.empty(heads, dim // heads))
        self.bias = nn.Parameter(torch.zeros(dim))
        # Small at first: with a scale of 1, the features of neighbors are so similar that UAVs learn to fly
        # together, and do not unlearn it.
        self.scale = nn.Parameter(torch.full((dim,), 0.01))
        for weight in (self.source.weight, self.target.weight, self.score):
            nn.init.xavier_uniform_(weight)

    def forward(
        self, nodes: Float[Tensor, "*leading nodes dim"], hears: Bool[Tensor, "*leading nodes nodes"] | None
    ) -> Float[Tensor, "*leading nodes dim"]:
        """Return the updated nodes.

        `hears[..., i, j]` is True if node i receives the features of node j. It must be True for i = j.
        None means that every node receives the features of all nodes.
        """
        path = self.dense if nodes.shape[-2] <= DENSE_NODES else self.sparse
        return nodes + self.scale * nn.functional.silu(path(self.norm(nodes), hears))

    def forward_with_weights(
        self, nodes: Float[Tensor, "*leading nodes dim"], hears: Bool[Tensor, "*leading nodes nodes"] | None
    ) -> tuple[Float[Tensor, "*leading nodes dim"], Float[Tensor, "*leading heads nodes nodes"]]:
        """Return the updated nodes as `forward` does, and the attention weights of all pairs of nodes."""
        output, weights = self._attend(self.norm(nodes), hears)
        return nodes + self.scale * nn.functional.silu(output), weights

    def dense(self, nodes: Tensor, hears: Tensor | None) -> Tensor:
        """Return the attention output, computed over all pairs of nodes."""
        return self._attend(nodes, hears)[0]

    def _attend(self, nodes: Tensor, hears: Tensor | None) -> tuple[Tensor, Tensor]:
        source, target = self._sides(nodes)
        weights = self._weights(source, target, hears)
        return (weights @ source).transpose(-2, -3).flatten(-2) + self.bias, weights

    def _sides(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Return source and target projections of `nodes`, `[..., heads, nodes, head width]`."""
        source, target = (
            linear(nodes).unflatten(-1, self.score.shape).transpose(-2, -3)
            for linear in (self.source, self.target)
        )
        return source, target

    def _weights(self, source: Tensor, target: Tensor, hears: Tensor | None) -> Tensor:
        pairs = nn.functional.leaky_relu(target.unsqueeze(-2) + source.unsqueeze(-3), 0.2)
        scores = torch.einsum("...hijd,hd->...hij", pairs, self.score)
        if hears is not None:
            scores = scores.masked_fill(~hears.unsqueeze(-3), float("-inf"))
        return scores.softmax(dim=-1)

    def sparse(self, nodes: Tensor, hears: Tensor | None) -> Tensor:
        """Return the attention output, computed over the edges of the graph."""
        flat = nodes.flatten(0, -3)
        graphs, size, dim = flat.shape
        if hears is None:
            hears = flat.new_ones(graphs, size, size, dtype=torch.bool)
        graph, target, source = hears.reshape(graphs, size, size).nonzero(as_tuple=True)
        edges = torch.stack([graph * size + source, graph * size + target])
        parameters = {
            "lin_l.weight": self.source.weight,
            "lin_l.bias": self.source.bias,
            "lin_r.weight": self.target.weight,
            "lin_r.bias": self.target.bias,
            "att": self.score[None],
            "bias": self.bias,
        }
        convolution = _convolution(dim, self.heads)
        return torch.func.functional_call(convolution, parameters, (flat.reshape(-1, dim), edges)).view_as(
            nodes
        )


@functools.cache
def _convolution(dim: int, heads: int) -> Any:
    # Imported here, because the import takes seconds and few graphs are so large. On the meta device, since
    # only its code is used.
    from torch_geometric.nn import GATv2Conv

    return GATv2Conv(dim, dim // heads, heads, add_self_loops=False).to("meta")
