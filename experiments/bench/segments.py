"""Cost of a segment of HCAM as the history grows, against a GRU, htm-pytorch's read and full attention.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.segments

Each method processes a segment of new steps after a history of 1k to 65k steps. The methods take turns on
one CPU thread, on the fast path of torch's products (`use_fast_products`). HCAM stores M chunks of C steps
and reads k of them, and torch's nn.GRU of the same width stores a vector. Full causal attention caches keys
and values of the whole history. It has the same projections and feed-forward layer as one HCAM block.
HCAM's read alone is compared with HTMAttention of the PyPI package htm-pytorch, with the same M, C, k and
width. The read is also timed over all chunks of a growing history. Prints medians as tables. Options:
`--help`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.experiments.bench import (
    build_htm_attention,
    describe_products,
    format_ratios,
    time_passes,
    use_fast_products,
)
from scrubjay.memory import State
from scrubjay.memory.hcam import HCAM, HCAMConfig
from scrubjay.memory.parts.window import resolve_heads


@dataclass(frozen=True)
class SegmentsBench:
    """Options of the benchmark."""

    batch: int = 8
    """Batch size."""
    time: int = 128
    """Steps of the new segment."""
    dim: int = 64
    """Model width (features per step)."""
    histories: tuple[int, ...] = (1024, 4096, 16384, 65536)
    """Steps of the history before the segment."""
    memory: HCAMConfig = field(default_factory=HCAMConfig)
    """Config of HCAM. The benchmark's `dim` replaces the width in this config."""
    start_rate: float = 0.02
    """Fraction of the segment's steps that start a new episode, for HCAM with resets."""
    repeats: int = 15
    """Timed passes of each method."""
    seed: int = 0
    """Seed of inputs and weights."""


class FullAttention(nn.Module):
    """One block of causal attention over the whole history, with a feed-forward layer like HCAM's."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )

    def forward(self, x: Tensor, past_keys: Tensor, past_values: Tensor) -> Tensor:
        """Attend to the history `[batch, heads, time, d]` and causally to the segment."""
        normalized = self.norm(x)
        query, key, value = (
            projection(normalized).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        history, length = past_keys.shape[2], x.shape[1]
        mask = torch.ones(length, history + length, dtype=torch.bool).tril(history)
        read = functional.scaled_dot_product_attention(
            query, torch.cat([past_keys, key], 2), torch.cat([past_values, value], 2), attn_mask=mask
        )
        x = x + self.out(read.transpose(1, 2).flatten(2))
        return x + self.feed_forward(x)


def main(bench: SegmentsBench) -> None:
    """Run the benchmark and print its tables."""
    torch.set_num_threads(1)
    torch.manual_seed(bench.seed)
    config = dataclasses.replace(bench.memory, dim=bench.dim)
    hcam = config.build()
    print(
        f"batch size {bench.batch}, {bench.time} new steps, width {bench.dim}, M={config.num_chunks} chunks "
        f"of C={config.chunk_size}, k={config.top_k}, float32, 1 thread; medians of {bench.repeats}; "
        f"torch {torch.__version__}, {os.cpu_count()} CPUs; {describe_products()}\n"
    )
    _segments(bench, hcam)
    print()
    _reads(bench, config, hcam)
    print()
    _growing_reads(bench, config)


def _segments(bench: SegmentsBench, hcam: HCAM) -> None:
    print("Milliseconds per segment, forward / forward and backward:\n")
    print("| history | hcam | hcam, 2 % starts | nn.GRU | full attention | full attention / hcam |")
    print("|---|---|---|---|---|---|")
    heads = resolve_heads(bench.dim, bench.memory.num_heads)
    gru, full = nn.GRU(bench.dim, bench.dim, batch_first=True), FullAttention(bench.dim, heads)
    start = torch.rand(bench.batch, bench.time) < bench.start_rate
    for history in bench.histories:
        with torch.no_grad():
            state = hcam.initial_state(bench.batch)
            for _ in range(history // bench.time):
                _, state = hcam(torch.randn(bench.batch, bench.time, bench.dim), state)
        past = torch.randn(2, bench.batch, full.num_heads, history, bench.dim // full.num_heads)
        x = torch.randn(bench.batch, bench.time, bench.dim, requires_grad=True)
        methods: dict[str, Callable[[], Tensor]] = {
            "hcam": lambda x=x, state=state: hcam(x, state)[0],
            "starts": lambda x=x, state=state: hcam(x, state, start)[0],
            "gru": lambda x=x: gru(x)[0],
            "full": partial(full, x, *past),
        }
        cost = time_passes(methods, bench.repeats)
        cells = [f"{forward:.1f} / {both:.1f}" for forward, both in cost.values()]
        print(f"| {history:,} | {' | '.join(cells)} | {format_ratios(cost['full'], cost['hcam'])} |")


def _reads(bench: SegmentsBench, config: HCAMConfig, hcam: HCAM) -> None:
    heads = resolve_heads(bench.dim, config.num_heads)
    theirs = build_htm_attention(bench.dim, heads, config.top_k, config.chunk_size)
    contents = torch.randn(bench.batch, config.num_chunks, config.chunk_size, bench.dim)
    state = _full_state(hcam, contents)
    print("Milliseconds per read of the same M chunks, forward / forward and backward:\n")
    print("| queries | hcam's read | htm-pytorch | htm-pytorch / hcam |")
    print("|---|---|---|---|")
    for queries in (1, bench.time):
        x = torch.randn(bench.batch, queries, bench.dim, requires_grad=True)
        methods = {"ours": partial(hcam.read, x, state), "theirs": partial(theirs, x, contents.flatten(1, 2))}
        cost = time_passes(methods, bench.repeats)
        cells = [f"{forward:.2f} / {both:.2f}" for forward, both in cost.values()]
        ratio = format_ratios(cost["theirs"], cost["ours"])
        print(f"| {queries} per batch row | {' | '.join(cells)} | {ratio} |")


def _full_state(hcam: HCAM, contents: Tensor) -> State:
    """Return a state with these chunks `[batch, chunks, steps, width]`, all complete."""
    return hcam.initial_state(len(contents)) | {
        "contents_0": contents,
        "summaries_0": contents.mean(2),
        "time": torch.full((len(contents),), contents.shape[1] * contents.shape[2]),
    }


def _growing_reads(bench: SegmentsBench, config: HCAMConfig) -> None:
    """Time a read over all chunks of a growing history."""
    print(f"Milliseconds per read of all chunks of a history, {bench.time} queries, batch size 1:\n")
    print("| history | forward / forward and backward | as a multiple of the shortest history |")
    print("|---|---|---|")
    x = torch.randn(1, bench.time, bench.dim, requires_grad=True)
    methods: dict[str, Callable[[], Tensor]] = {}
    for history in bench.histories:
        chunks = history // config.chunk_size
        hcam = dataclasses.replace(config, num_chunks=chunks).build()
        state = _full_state(hcam, torch.randn(1, chunks, config.chunk_size, bench.dim))
        methods[f"{history:,}"] = partial(hcam.read, x, state)
    cost = time_passes(methods, bench.repeats)
    first = next(iter(cost.values()))
    for name, own in cost.items():
        print(f"| {name} | {own[0]:.2f} / {own[1]:.2f} | {format_ratios(own, first)} |")


if __name__ == "__main__":
    options = tyro.cli(SegmentsBench, description=__doc__)
    use_fast_products()
    main(options)
