"""Speed of the kernels' CPU paths against full attention, other implementations and the memory bandwidth.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.kernels

All methods take turns on one CPU thread in float32, on the fast path of torch's products
(`use_fast_products`). Prints medians as tables. Full attention is torch's `scaled_dot_product_attention` over
the whole history, in torch's memory layout. The read of HCAM is compared with the class HTMAttention of the
PyPI package htm-pytorch. A floor is the time to read the required bytes once, at the bandwidth of a sum over
256 MB. Options: `--help`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
import tyro
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from scrubjay.experiments.bench import (
    build_htm_attention,
    describe_products,
    run_backward,
    run_forward,
    time_in_turns,
    use_fast_products,
)
from scrubjay.kernels import attend_chosen, choose_chunks, chunk_retrieval, sink_attention
from scrubjay.memory.parts.hierarchy import ReadWeights, hierarchical_attention
from scrubjay.memory.parts.layers import sinusoids


@dataclass(frozen=True)
class KernelsBench:
    """Options of the benchmark."""

    histories: tuple[int, ...] = (4096, 16384, 65536, 262144)
    """Numbers of stored keys, for the comparison with full attention."""
    queries: tuple[int, ...] = (1, 16, 64, 256, 1024, 4096)
    """Numbers of queries per batch row, for the comparison with full attention."""
    most_pairs: int = 1 << 26
    """Largest number of query-key pairs for which full attention is timed."""
    heads: int = 8
    """Number of query heads, and of key heads in the comparison with full attention."""
    width: int = 64
    """Width of a head."""
    chunk: int = 128
    """Steps per chunk."""
    top_k: int = 4
    """Selected chunks per query."""
    rows: tuple[int, ...] = (1, 8, 64, 256)
    """Batch sizes at which a decode step is timed. Each time is compared with that of reading the keys and
    values from RAM."""
    repeats: int = 15
    """Timed passes of each method. `least_seconds` can raise this number and `seconds` can lower it."""
    least_seconds: float = 0.5
    """Minimum duration of a comparison in seconds."""
    seconds: float = 8.0
    """Time limit of a comparison in seconds. Three passes of each method are always timed."""
    seed: int = 0
    """Seed of the inputs."""


def main(bench: KernelsBench) -> None:
    """Run the benchmark and print its tables."""
    torch.set_num_threads(1)
    torch.manual_seed(bench.seed)
    print(
        f"{bench.heads} heads of width {bench.width}, k={bench.top_k} chunks of C={bench.chunk}, float32, 1 "
        "thread; "
        f"medians in milliseconds; torch {torch.__version__}, {os.cpu_count()} CPUs; "
        f"{describe_products()}"
    )
    for table in (_full_attention, _other_reads, _bandwidth, _halves, _sinks):
        print()
        for line in table(bench):
            print(line, flush=True)


def _full_attention(bench: KernelsBench) -> Iterator[str]:
    """Time joint chunk retrieval (one softmax over the selected chunks) against full attention."""
    for backward in (False, True):
        yield (
            "Milliseconds of full attention over the history / of chunk_retrieval (joint) with selection, "
            f"{'forward and backward' if backward else 'forward'}, batch size 1:\n"
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
    yield (
        f"The same, forward, with {bench.histories[0]:,} keys, batch size 8 and 1 query per batch row: "
        f"{_against_full(bench, 8, 1, bench.histories[0], False)}"
    )


def _against_full(bench: KernelsBench, rows: int, queries: int, history: int, backward: bool) -> str:
    shape = (rows, history // bench.chunk, bench.chunk, bench.heads, bench.width)
    query = torch.randn(rows, queries, bench.heads, bench.width, requires_grad=backward)
    keys, values = (torch.randn(shape, requires_grad=backward) for _ in "kv")
    summaries, valid = keys.detach().mean(dim=2), torch.full((rows, queries), shape[1])
    flat = [t.detach().flatten(1, 2) for t in (keys, values)]

    def ours() -> Tensor:
        return chunk_retrieval(query, keys, values, summaries, valid, top_k=bench.top_k, combine="joint")

    own, full = _time_in_turns(bench, backward, ours, _attention(query.detach(), *flat))
    return f"{full:.2f} / {own:.2f} = **{full / own:.1f}x**"


def _attention(
    query: Tensor, keys: Tensor, values: Tensor, *, mask: Callable[[], Tensor | None] = lambda: None
) -> Callable[[], Tensor]:
    """Return a function that runs torch's attention on tensors of shape `[rows, steps, heads, width]`."""
    q, k, v = (t.transpose(1, 2).contiguous().requires_grad_() for t in (query, keys, values))
    return lambda: scaled_dot_product_attention(q, k, v, attn_mask=mask())


def _other_reads(bench: KernelsBench) -> Iterator[str]:
    """Time HCAM's read against htm-pytorch's, and chunk retrieval against its reference."""
    dim, chunks, chunk = bench.width, 32, 16
    contents = torch.randn(8, chunks, chunk, dim)
    summaries = contents.mean(dim=2)
    theirs = build_htm_attention(dim, 4, bench.top_k, chunk)
    weights = ReadWeights(*(torch.randn(dim, dim) * dim**-0.5 for _ in range(6)))
    positions = sinusoids(torch.arange(chunk), dim).flip(0).float()
    yield (
        f"Milliseconds of a hierarchical read of {chunks} chunks of {chunk} steps of width {dim}, with "
        "projections, batch size 8:\n"
    )
    yield "| queries per batch row | Scrubjay | htm-pytorch | reference in Python loops |"
    yield "|---|---|---|---|"
    for queries in (1, 128):
        x, per_head = torch.randn(8, queries, dim), torch.randn(8, queries, 4, dim)
        ours = partial(
            hierarchical_attention,
            x,
            summaries,
            contents,
            None,
            weights,
            positions,
            top_k=bench.top_k,
            num_heads=4,
        )
        definition: Any = partial(
            chunk_retrieval,
            per_head,
            contents[:, :, :, None],
            contents[:, :, :, None],
            summaries[:, :, None],
            torch.full((8, queries), chunks),
            top_k=bench.top_k,
            summary_query=per_head[:, :, :1],
            implementation="reference",
        )
        own, their = _time_in_turns(bench, False, ours, partial(theirs, x, contents.flatten(1, 2)))
        plain = _time_in_turns(bench, False, definition)[0]
        yield (
            f"| {queries} | {own:.2f} | {their:.2f} = **{their / own:.1f}x** | {plain:.1f} = "
            f"{plain / own:.0f}x |"
        )


def _bandwidth(bench: KernelsBench) -> Iterator[str]:
    """Time a decode step against the minimum duration at the memory bandwidth, and profile the step."""
    large = torch.randn(1 << 26)
    bandwidth = large.numel() * 4 / (_time_in_turns(bench, False, large.sum)[0] / 1e3)
    del large
    chunks = 128
    yield (
        f"Milliseconds of a decode step over {chunks} chunks (hierarchical), also as a multiple of the "
        f"floor, the time to read the bytes at {bandwidth / 1e9:.0f} GB/s:\n"
    )
    yield "| batch size | MB read | floor | 1 head | 4 heads with one selection | longest ops with 4 heads |"
    yield "|---|---|---|---|---|---|"
    for rows in bench.rows:
        keys, values, summaries = _draw_chunks(rows, chunks, bench.chunk, bench.width)
        floor = 4 * rows * bench.width * (chunks + 2 * bench.top_k * bench.chunk) / bandwidth * 1e3
        reads = [
            _retrieval(bench, torch.randn(rows, 1, heads, bench.width), keys, values, summaries)
            for heads in (1, 4)
        ]
        cells = [f"{ms:.2f} = **{ms / floor:.1f}x**" for ms in _time_in_turns(bench, False, *reads)]
        yield (
            f"| {rows} | {floor * bandwidth / 1e9:.1f} | {floor:.2f} | {' | '.join(cells)} | "
            f"{_hot_spots(reads[1])} |"
        )


def _draw_chunks(rows: int, chunks: int, chunk: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys, values and summaries of one key head."""
    keys, values = (torch.randn(rows, chunks, chunk, 1, width) for _ in "kv")
    return keys, values, keys.mean(dim=2)


def _retrieval(
    bench: KernelsBench, query: Tensor, keys: Tensor, values: Tensor, summaries: Tensor
) -> Callable[..., Any]:
    """Return a function that retrieves chunks, with one selection for all heads."""
    valid = torch.full(query.shape[:2], keys.shape[1])
    return partial(
        chunk_retrieval,
        query,
        keys,
        values,
        summaries,
        valid,
        top_k=bench.top_k,
        summary_query=query[:, :, :1],
    )


def _hot_spots(run: Callable[[], Tensor]) -> str:
    names = {"aten::sparse_sampled_addmm": "key products", "aten::_embedding_bag_forward_only": "value sums"}
    with profile(activities=[ProfilerActivity.CPU]) as profiler_result:
        for _ in range(5):
            run()
    events = sorted(profiler_result.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return ", ".join(
        f"{names.get(event.key, event.key.removeprefix('aten::').strip('_'))} "
        f"{100 * event.self_cpu_time_total / total:.0f} %"
        for event in events[:4]
    )


def _halves(bench: KernelsBench) -> Iterator[str]:
    """Time `chunk_retrieval` against its two halves, `choose_chunks` and `attend_chosen`.

    A caller that fetches the chosen chunks between selection and attention needs the two halves.
    """
    yield "Milliseconds over 64 chunks of 16, also as a multiple of chunk_retrieval:\n"
    yield "| batch size | queries | chunk_retrieval | choose_chunks, attend_chosen | chunk_retrieval, lse |"
    yield "|---|---|---|---|---|"
    for rows, queries in ((1, 1), (64, 1), (8, 128)):
        query = torch.randn(rows, queries, bench.heads, bench.width)
        chunks = _draw_chunks(rows, 64, 16, bench.width)
        whole = _retrieval(bench, query, *chunks)
        parts = partial(_retrieve_in_halves, query, *chunks, bench.top_k)
        times = _time_in_turns(bench, False, whole, parts, partial(whole, return_lse=True))
        cells = " | ".join(f"{ms:.2f} = **{ms / times[0]:.2f}x**" for ms in times[1:])
        yield f"| {rows} | {queries} | {times[0]:.2f} | {cells} |"


def _retrieve_in_halves(query: Tensor, keys: Tensor, values: Tensor, summaries: Tensor, top_k: int) -> Tensor:
    valid = torch.full(query.shape[:2], keys.shape[1])
    selection = choose_chunks(valid, summary_query=query[:, :, :1], summaries=summaries, top_k=top_k)
    return attend_chosen(query, keys, values, selection.chunks, selection.scores)


def _sinks(bench: KernelsBench) -> Iterator[str]:
    """Time sink attention over a segment and over a ring buffer against masked full attention."""
    window, sinks, rows = 128, 4, 4
    yield (
        f"Milliseconds of sink_attention, window {window}, {sinks} sinks, batch size {rows}, and of full "
        "attention with a mask (forward / forward and backward):\n"
    )
    yield (
        "| queries | keys | sink_attention, forward | sink_attention, forward and backward "
        "| full attention, fixed mask | full attention, new mask in each call |"
    )
    yield "|---|---|---|---|---|---|"
    for queries in (1, 4, 16, 64, 256, 384, 1024, 4096):
        slots = max(queries, window + sinks)
        inputs = [
            torch.randn(rows, count, bench.heads, bench.width, requires_grad=True)
            for count in (queries, slots, slots)
        ]
        step = torch.arange(slots).expand(rows, slots)
        query_step = step[:, slots - queries :]
        start = torch.zeros_like(query_step)
        build_mask = partial(_sink_mask, query_step, step, start, window, sinks)
        fixed_mask, leaves = build_mask(), [tensor.detach() for tensor in inputs]
        methods = (
            partial(sink_attention, *inputs, query_step, step, start, window=window, num_sinks=sinks),
            _attention(*leaves, mask=lambda mask=fixed_mask: mask),
            _attention(*leaves, mask=build_mask),
        )
        forward, both = _time_in_turns(bench, False, *methods), _time_in_turns(bench, True, *methods)
        columns = [
            f"{forward[peer]:.2f} = **{forward[peer] / forward[0]:.1f}x** / {both[peer]:.2f} = "
            f"**{both[peer] / both[0]:.1f}x**"
            for peer in (1, 2)
        ]
        yield f"| {queries} | {slots} | {forward[0]:.2f} | {both[0]:.2f} | {' | '.join(columns)} |"


def _sink_mask(query_step: Tensor, key_step: Tensor, start: Tensor, window: int, sinks: int) -> Tensor:
    query_step, key_step, start = query_step[..., None], key_step[:, None], start[..., None]
    visible = (key_step < start + sinks) | (key_step > query_step - window)
    return (visible & (key_step >= start) & (key_step <= query_step))[:, None]


def _time_in_turns(bench: KernelsBench, backward: bool, *methods: Callable[[], Any]) -> list[float]:
    """Return the median milliseconds of each method; methods take turns."""
    times = time_in_turns(
        {
            number: partial(run_backward if backward else run_forward, run)
            for number, run in enumerate(methods)
        },
        bench.repeats,
        clock=time.perf_counter,
        least_seconds=bench.least_seconds,
        most_seconds=bench.seconds,
    )
    return [1e3 * median(seconds) for seconds in times.values()]


if __name__ == "__main__":
    options = tyro.cli(KernelsBench, description=__doc__)
    use_fast_products()
    main(options)
