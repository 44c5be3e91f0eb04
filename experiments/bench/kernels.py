"""How fast the kernels' CPU paths are: against full attention, other reads, and the memory's own bandwidth.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.kernels

Contestants take turns on one CPU thread, float32; prints medians as tables. Full attention is torch's
`scaled_dot_product_attention` over the whole history in its own layout, and HTMAttention is the read of the
PyPI package htm-pytorch. A floor is the bytes a read must touch, once each, over the bandwidth of summing 256
MB. Options: `--help`.
"""

from __future__ import annotations

import functools
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from scrubjay.kernels import attend_chosen, choose_chunks, chunk_retrieval, sink_attention
from scrubjay.memory.parts.hierarchy import ReadWeights, hierarchical_attention


@dataclass(frozen=True)
class KernelsBench:
    """Sizes of the measurement."""

    histories: tuple[int, ...] = (4096, 16384, 65536, 262144)
    """Keys in store, for the comparison with full attention."""
    queries: tuple[int, ...] = (1, 16, 64, 256, 1024, 4096)
    """Queries of a row, for the same."""
    most_pairs: int = 1 << 26
    """Pairs of query and key up to which full attention is waited for."""
    heads: int = 8
    """Query heads, and as many key heads where full attention is the peer."""
    width: int = 64
    """Width of a head."""
    chunk: int = 128
    """Steps per chunk."""
    top_k: int = 4
    """Chunks kept."""
    rows: tuple[int, ...] = (1, 8, 64, 256)
    """Rows of a decode step, for the comparison with the bandwidth."""
    repeats: int = 15
    """Timed passes of each, more where they are short, fewer where they are long."""
    least_seconds: float = 0.5
    """Time a contest lasts at least."""
    seconds: float = 8.0
    """Time after which a contest stops, once each has run three times."""
    seed: int = 0
    """Seed of the inputs."""


def main(bench: KernelsBench) -> None:
    """Measure and print the tables."""
    torch.set_num_threads(1)
    torch.manual_seed(bench.seed)
    print(
        f"{bench.heads} heads of width {bench.width}, k={bench.top_k} chunks of C={bench.chunk}, float32, 1 "
        "thread; "
        f"medians in milliseconds; torch {torch.__version__}, {os.cpu_count()} CPUs"
    )
    for table in (_full_attention, _other_reads, _bandwidth, _halves, _sinks):
        print()
        for line in table(bench):
            print(line, flush=True)


def _full_attention(bench: KernelsBench) -> Iterator[str]:
    """Chunk retrieval of one softmax over the kept chunks against attention to everything."""
    for backward in (False, True):
        yield (
            "Full attention over the history / chunk_retrieval (joint), selection included, "
            f"{'forward and backward' if backward else 'forward'}, one row:\n"
        )
        yield f"| keys / queries | {' | '.join(f'{queries:,}' for queries in bench.queries)} |"
        yield "|---" * (1 + len(bench.queries)) + "|"
        for history in bench.histories:
            cells = [
                _against_full(bench, 1, queries, history, backward)
                if queries * history <= bench.most_pairs
                else "-"
                for queries in bench.queries
            ]
            yield f"| {history:,} | {' | '.join(cells)} |"
        yield ""
    yield f"The same of one query in each of 8 rows: {_against_full(bench, 8, 1, bench.histories[0], False)}"


def _against_full(bench: KernelsBench, rows: int, queries: int, history: int, backward: bool) -> str:
    shape = (rows, history // bench.chunk, bench.chunk, bench.heads, bench.width)
    query = torch.randn(rows, queries, bench.heads, bench.width, requires_grad=backward)
    keys, values = (torch.randn(shape, requires_grad=backward) for _ in "kv")
    summaries, valid = keys.detach().mean(dim=2), torch.full((rows, queries), shape[1])
    flat = [t.detach().flatten(1, 2) for t in (keys, values)]

    def ours() -> Tensor:
        return chunk_retrieval(query, keys, values, summaries, valid, top_k=bench.top_k, combine="joint")

    own, full = _contest(bench, backward, ours, _attention(query.detach(), *flat))
    return f"{full:.2f} / {own:.2f} = **{full / own:.1f}x**"


def _attention(
    query: Tensor, keys: Tensor, values: Tensor, *, mask: Callable[[], Tensor | None] = lambda: None
) -> Callable[[], Tensor]:
    """Return torch's attention over `[rows, steps, heads, width]`, in its own layout, ready for gradients."""
    q, k, v = (t.transpose(1, 2).contiguous().requires_grad_() for t in (query, keys, values))
    return lambda: scaled_dot_product_attention(q, k, v, attn_mask=mask())


def _other_reads(bench: KernelsBench) -> Iterator[str]:
    """HCAM's read against htm-pytorch's, and chunk retrieval against its own definition."""
    from htm_pytorch import HTMAttention  # pyright: ignore[reportMissingImports]

    dim, chunks, chunk = bench.width, 32, 16
    contents = torch.randn(8, chunks, chunk, dim)
    summaries = contents.mean(dim=2)
    theirs = HTMAttention(
        dim=dim,
        heads=4,
        dim_head=dim // 4,
        topk_mems=bench.top_k,
        mem_chunk_size=chunk,
        add_pos_enc=True,
    )
    weights = ReadWeights(*(torch.randn(dim, dim) * dim**-0.5 for _ in range(6)))
    yield (
        f"Hierarchical read of {chunks} chunks of {chunk} steps of width {dim}, 8 rows, projections "
        "included:\n"
    )
    yield "| queries a row | ours | htm-pytorch | definition in plain loops |"
    yield "|---|---|---|---|"
    for queries in (1, 128):
        x = torch.randn(8, queries, dim)
        valid = torch.full((8, queries), chunks)
        per_head = torch.randn(8, queries, 4, dim)
        stored = contents[:, :, :, None]

        def ours(x=x) -> Tensor:
            return hierarchical_attention(
                x, summaries, contents, None, weights, top_k=bench.top_k, num_heads=4
            )

        def definition(per_head=per_head, valid=valid, stored=stored) -> Tensor:
            return chunk_retrieval(
                per_head,
                stored,
                stored,
                summaries[:, :, None],
                valid,
                top_k=bench.top_k,
                summary_query=per_head[:, :, :1],
                implementation="reference",
            )

        own, their = _contest(bench, False, ours, lambda x=x: theirs(x, contents.flatten(1, 2)))
        plain = _contest(bench, False, definition)[0]
        yield (
            f"| {queries} | {own:.2f} | {their:.2f} = **{their / own:.1f}x** | {plain:.1f} = "
            f"{plain / own:.0f}x |"
        )


def _bandwidth(bench: KernelsBench) -> Iterator[str]:
    """How far a decode step is from reading its bytes once, and where its time goes."""
    large = torch.randn(1 << 26)
    bandwidth = large.numel() * 4 / (_contest(bench, False, lambda: large.sum())[0] / 1e3)
    del large
    chunks = 128
    yield (
        f"A decode step over {chunks} chunks (hierarchical), against its floor at {bandwidth / 1e9:.0f} "
        "GB/s:\n"
    )
    yield "| rows | MB touched | floor | 1 head | 4 heads of one selection | most of the time of 4 heads |"
    yield "|---|---|---|---|---|---|"
    for rows in bench.rows:
        keys, values = (torch.randn(rows, chunks, bench.chunk, 1, bench.width) for _ in "kv")
        summaries, valid = keys.mean(dim=2), torch.full((rows, 1), chunks)
        touched = 4 * rows * bench.width * (chunks + 2 * bench.top_k * bench.chunk)
        floor = touched / bandwidth * 1e3

        def read(
            heads: int, keys=keys, values=values, summaries=summaries, valid=valid
        ) -> Callable[[], Tensor]:
            query = torch.randn(len(keys), 1, heads, bench.width)
            coarse = query[:, :, :1]
            return lambda: chunk_retrieval(
                query, keys, values, summaries, valid, top_k=bench.top_k, summary_query=coarse
            )

        reads = [read(1), read(4)]
        cells = [f"{ms:.2f} = **{ms / floor:.1f}x**" for ms in _contest(bench, False, *reads)]
        yield f"| {rows} | {touched / 1e6:.1f} | {floor:.2f} | {' | '.join(cells)} | {_hot_spots(reads[1])} |"


def _hot_spots(run: Callable[[], Tensor]) -> str:
    names = {"aten::sparse_sampled_addmm": "key products", "aten::_embedding_bag_forward_only": "value sums"}
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(5):
            run()
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return ", ".join(
        f"{names.get(event.key, event.key.removeprefix('aten::').strip('_'))} "
        f"{100 * event.self_cpu_time_total / total:.0f} %"
        for event in events[:4]
    )


def _halves(bench: KernelsBench) -> Iterator[str]:
    """What it costs to choose and to read in two calls, as who fetches between them must."""
    yield "choose_chunks and attend_chosen one after the other, against chunk_retrieval, 64 chunks of 16:\n"
    yield "| rows | queries | chunk_retrieval | in halves | with lse |"
    yield "|---|---|---|---|---|"
    for rows, queries in ((1, 1), (64, 1), (8, 128)):
        query = torch.randn(rows, queries, bench.heads, bench.width)
        keys, values = (torch.randn(rows, 64, 16, 1, bench.width) for _ in "kv")
        summaries, valid = keys.mean(dim=2), torch.full((rows, queries), 64)
        coarse = query[:, :, :1]

        whole: Any = functools.partial(
            chunk_retrieval, query, keys, values, summaries, valid, top_k=bench.top_k, summary_query=coarse
        )

        def halves(
            query=query, keys=keys, values=values, summaries=summaries, valid=valid, coarse=coarse
        ) -> Tensor:
            chosen = choose_chunks(valid, summary_query=coarse, summaries=summaries, top_k=bench.top_k)
            return attend_chosen(query, keys, values, chosen.chunks, chosen.scores)

        times = _contest(bench, False, whole, halves, lambda whole=whole: whole(return_lse=True)[0])
        cells = " | ".join(f"{ms:.2f} = **{ms / times[0]:.2f}x**" for ms in times[1:])
        yield f"| {rows} | {queries} | {times[0]:.2f} | {cells} |"


def _sinks(bench: KernelsBench) -> Iterator[str]:
    """Sink attention over a segment and over a ring, against full attention with a mask."""
    window, sinks, rows = 128, 4, 4
    yield (
        f"sink_attention, window {window}, {sinks} sinks, {rows} rows, against full attention with a mask:\n"
    )
    yield (
        "| queries | key slots | ours, forward | ours, forward and backward | masked full attention "
        "| its mask made of steps, as ours |"
    )
    yield "|---|---|---|---|---|---|"
    for queries in (1, 4, 16, 64, 256, 384, 1024, 4096):
        slots = max(queries, window + sinks)
        query = torch.randn(rows, queries, bench.heads, bench.width, requires_grad=True)
        keys, values = (torch.randn(rows, slots, bench.heads, bench.width, requires_grad=True) for _ in "kv")
        step = torch.arange(slots).expand(rows, slots)
        asked = step[:, slots - queries :]
        start = torch.zeros_like(asked)

        def made(step=step[:, None], asked=asked[..., None], start=start[..., None]) -> Tensor:
            seen = (step < start + sinks) | (step > asked - window)
            return (seen & (step >= start) & (step <= asked))[:, None]

        def ours(query=query, keys=keys, values=values, asked=asked, step=step, start=start) -> Tensor:
            return sink_attention(query, keys, values, asked, step, start, window=window, num_sinks=sinks)

        held = query.detach(), keys.detach(), values.detach()
        seen = made()
        contestants = (ours, _attention(*held, mask=lambda seen=seen: seen), _attention(*held, mask=made))
        forward, both = _contest(bench, False, *contestants), _contest(bench, True, *contestants)
        columns = [
            f"{forward[peer]:.2f} = **{forward[peer] / forward[0]:.1f}x** / {both[peer]:.2f} = "
            f"**{both[peer] / both[0]:.1f}x**"
            for peer in (1, 2)
        ]
        yield f"| {queries} | {slots} | {forward[0]:.2f} | {both[0]:.2f} | {' | '.join(columns)} |"


def _contest(bench: KernelsBench, backward: bool, *contestants: Callable[[], Tensor]) -> list[float]:
    """Return each contestant's median milliseconds; they take turns."""
    times: list[list[float]] = [[] for _ in contestants]
    began = time.perf_counter()
    for trial in itertools.count(-1):
        spent = time.perf_counter() - began
        if (trial >= bench.repeats and spent > bench.least_seconds) or (trial > 2 and spent > bench.seconds):
            break
        for own, run in zip(times, contestants, strict=True):
            start = time.perf_counter()
            if backward:
                run().sum().backward()
            else:
                with torch.no_grad():
                    run()
            if trial >= 0:
                own.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(own) for own in times]


if __name__ == "__main__":
    main(tyro.cli(KernelsBench, description=__doc__))
