"""Native sparse attention as a memory with a state (NSA, Yuan et al. 2025, arXiv 2502.11089, section 3).

Three streams, each with a gate of its own per head: *compressed*, a softmax over one key and value per
chunk, which a small network makes of its steps; *selected*, a softmax over the steps of the chunks that
these weights, summed over heads, name best, and of the own one; and the *window*. So the compressed stream,
whose weights have gradients, trains what is selected. Of `top_k` chunks, where that is 3 or more, the first
and the last are always two, as in the paper.

Where it differs: the window is the query's own chunk; all streams share keys and values, where the paper's
have their own, so that a state is a third; compressed blocks are the chunks, and do not overlap; positions
are compact (`memory/chosen/chunked.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scrubjay.kernels import attend_chosen, choose_chunks, merge
from scrubjay.kernels.normalisers import softmax_or_zero
from scrubjay.memory.chosen.chunked import (
    ChunkedConfig,
    ChunkedLayer,
    ChunkedMemory,
    Read,
    Stored,
    joined,
    scores_within,
)
from scrubjay.memory.stepping.chunked import CompressedSteps, LayerSteps

_STREAMS = 3


@dataclass(frozen=True)
class NSAConfig(ChunkedConfig):
    """Sizes of `NSA`."""

    def build(self) -> NSA:
        """Return a freshly initialised memory of these sizes."""
        return NSA(self)


class NSA(ChunkedMemory):
    """Layers that read their own chunk, all chunks in a compressed form, and the steps of some.

    State: that of `ChunkedMemory`; a head's summary is a compressed key and, behind it, a compressed value.
    """

    def __init__(self, config: NSAConfig) -> None:
        super().__init__(config, [NSALayer(config) for _ in range(config.num_layers)])
        if config.num_chunks == 1:  # a softmax over one chunk is 1 whatever its key is
            names = [name for name, _ in self.named_parameters() if ".compress_key." in name]
            self.no_gradient = tuple(names)


class NSALayer(ChunkedLayer):
    """Attention by three streams, and feed-forward."""

    combine = "joint"
    summary_ratio = 2

    def __init__(self, config: NSAConfig) -> None:
        super().__init__(config)
        width = config.dim // self.heads
        self.compress_key, self.compress_value = (_Compression(config.chunk_size, width) for _ in range(2))
        self.gate = nn.Linear(config.dim, _STREAMS * self.heads)

    def summarise(
        self, keys: Tensor, values: Tensor, landmarks: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return compressed keys and, behind them, compressed values."""
        return torch.cat([self.compress_key(keys), self.compress_value(values)], dim=-1), None

    def recall(self, x: Tensor, query: Tensor, stored: Stored) -> Tensor:
        """Return what is read of stored chunks alone."""
        compressed, chosen = self.streams(query, stored)
        gates = self._gates(x, query)
        return gates[0] * compressed + gates[1] * chosen[0]

    def mix(self, x: Tensor, own: Read, query: Tensor, stored: Stored) -> Tensor:
        """Return what comes through the gates of all streams."""
        compressed, chosen = self.streams(query, stored)
        gates = self._gates(x, query)
        return gates[0] * compressed + gates[1] * merge([own, chosen]) + gates[2] * own[0]

    def steps_in_place(self) -> type[LayerSteps] | None:
        """Return what takes the steps of such a layer in place, None if nothing does."""
        names = ("tokens", "turned", "mix", "streams", "finish")
        return CompressedSteps if self.keeps(NSALayer, *names) else None

    def streams(self, query: Float[Tensor, "batch time heads width"], stored: Stored) -> tuple[Tensor, Read]:
        """Return what is read of compressed chunks, and of the steps of those they weigh most."""
        far = self.turned(query, self.chunk_size)
        weights, values, chosen = self._chosen(far, stored)
        compressed = torch.einsum("bthm,bmhd->bthd", weights, values)
        read = attend_chosen(far, stored.keys, stored.values, chosen, combine="joint", return_lse=True)
        return compressed, read

    def _chosen(
        self, far: Float[Tensor, "batch time heads width"], stored: Stored
    ) -> tuple[
        Float[Tensor, "batch time heads chunks"],
        Float[Tensor, "batch chunks heads width"],
        Int[Tensor, "batch time 1 K"],
    ]:
        """Return the weights of compressed chunks, their values, and which chunks these weights choose."""
        hidden = ~stored.readable[:, :, None]
        summaries = torch.where(stored.readable.any(1)[:, :, None, None], stored.summaries, 0)
        keys, values = summaries.chunk(2, dim=-1)
        scores = torch.einsum("bthd,bmhd->bthm", far, keys) * far.shape[-1] ** -0.5
        weights = softmax_or_zero(scores.masked_fill(hidden, float("-inf")))
        always = int(self.top_k > 2)
        chosen = choose_chunks(
            stored.readable,
            top_k=self.top_k,
            scores=weights.detach().sum(dim=2, keepdim=True),
            num_sink_chunks=always,
            num_local_chunks=always,
        )
        return weights, values, chosen.chunks

    def weigh(
        self, x: Tensor, query: Tensor, own: Tensor, stored: Stored
    ) -> tuple[Float[Tensor, "batch heads chunk_and_1"], Float[Tensor, "batch heads chunks chunk_size"]]:
        """Return how much comes of each step, in units of all gates; of a compressed chunk alike of each."""
        far = self.turned(query, self.chunk_size)[:, None]
        weights, _, chosen = self._chosen(far, stored)
        count, size = stored.keys.shape[1:3]
        place = chosen.long().remainder(count + 1)[:, 0]  # none is one more
        kept = torch.zeros(len(x), 1, count + 1, dtype=torch.bool, device=x.device)
        kept = kept.scatter_(2, place, True)[..., :count, None].expand(-1, self.heads, -1, -1)
        scores = torch.zeros_like(kept, dtype=far.dtype).masked_fill(~kept, float("-inf"))
        near, selected = joined(own, scores, scores_within(far[:, 0], stored), "joint")
        gates = torch.stack(self._gates(x[:, None], query[:, None]))[:, :, 0]
        compress, select, window = gates / gates.sum(dim=0)
        compressed = weights[:, 0, :, :, None].expand(-1, -1, -1, size) / size
        far = compress[..., None] * compressed + select[..., None] * selected
        return select * near + window * torch.softmax(own, dim=-1), far

    def _gates(self, x: Tensor, like: Tensor) -> list[Tensor]:
        """Return the gates of the streams."""
        gates = torch.sigmoid(self.gate(self.norm(x))).to(like.dtype)
        return list(gates.unflatten(-1, (_STREAMS, self.heads, 1)).unbind(dim=2))


class _Compression(nn.Module):
    """What makes one vector of a chunk's: a code for each place is added, and all pass two layers."""

    def __init__(self, chunk_size: int, width: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(chunk_size, 1, width) * width**-0.5)
        self.layers = nn.Sequential(
            nn.Linear(chunk_size * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(
        self, x: Float[Tensor, "batch chunks chunk_size heads width"]
    ) -> Float[Tensor, "batch chunks heads width"]:
        dtype = self.places.dtype
        x = (x.to(dtype) + self.places).transpose(2, 3).flatten(3)
        return self.layers(x).to(torch.promote_types(dtype, torch.float32))
