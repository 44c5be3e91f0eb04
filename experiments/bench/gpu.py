"""Correctness and speed of the Triton kernels on this GPU, against torch and flash-linear-attention.

    make bench-gpu

First the output and gradients of every op are compared with its torch path in float64; an error above the
tolerance ends the run before any timing. Then chunk retrieval (a causal segment, and decode) and sink
attention are timed against torch's `scaled_dot_product_attention`. If flash-linear-attention is installed,
chunk retrieval is also timed against its `parallel_nsa`, which does not select blocks but gets them as an
argument. Neural memory, linear memory and nearest-neighbor search are timed against their own torch paths.
Prints tables with the GPU and the versions. Options: `--help`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

from scrubjay.experiments.bench import format_ratios
from scrubjay.kernels import (
    Gates,
    NeuralState,
    attend_chosen,
    choose_chunks,
    chunk_retrieval,
    linear_memory,
    merge,
    nearest,
    neural_memory,
    sink_attention,
)

# Largest accepted error: root mean square error relative to that of the exact values.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
_NO_DEVICE = "no CUDA device is visible to torch: the Triton kernels cannot be timed here"


@dataclass(frozen=True)
class GPUBench:
    """Options of the benchmark."""

    lengths: tuple[int, ...] = (1024, 4096, 16384, 65536)
    """Segment lengths to measure, in steps."""
    heads: int = 16
    """Query heads."""
    key_heads: int = 1
    """Key heads. flash-linear-attention needs at least 16 query heads per key head."""
    width: int = 128
    """Width of a head."""
    chunk: int = 64
    """Steps per chunk."""
    top_k: int = 16
    """Selected chunks per query."""
    window: int = 1024
    """Window of sink attention."""
    rows: int = 64
    """Batch size of a decode step."""
    embeddings: tuple[int, ...] = (100_000, 1_000_000)
    """Numbers of vectors to search, each of dimension 384."""


def main(bench: GPUBench) -> None:
    """Check and time the kernels and print the tables; exit with status 2 without a GPU."""
    if not torch.cuda.is_available():
        print(_NO_DEVICE, file=sys.stderr)
        raise SystemExit(2)
    import triton

    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    print(
        f"{torch.cuda.get_device_name()}, {versions}, flash-linear-attention "
        f"{_fla_version() or 'not installed'}"
    )
    print(
        "\nErrors against float64, worst of outputs and gradients:\n\n| op | dtype | error |\n|---|---|---|"
    )
    for op, dtype, error in check("cuda", tuple(TOLERANCE)):
        print(f"| {op} | {str(dtype).removeprefix('torch.')} | {error:.1e} |", flush=True)
    for table in (_segments, _decode, _sinks, _memories, _recurrences, _scans):
        print()
        for line in table(bench):
            print(line, flush=True)


def check(device: str, dtypes: tuple[torch.dtype, ...]) -> Iterator[tuple[str, torch.dtype, float]]:
    """Yield the largest error of each op in each dtype. Raises SystemExit on an error above the tolerance."""
    for op, (prepare, *options) in _CASES.items():
        for dtype in dtypes:
            torch.manual_seed(0)
            tensors, run = prepare(device, *options)
            low_precision = {name: tensor.to(dtype) for name, tensor in tensors.items()}
            exact_inputs = {name: tensor.double() for name, tensor in low_precision.items()}
            result = _run_with_gradients(low_precision, run, "triton")
            exact = _run_with_gradients(exact_inputs, run, "torch")
            errors = [_relative_error(ours, right) for ours, right in zip(result, exact, strict=True)]
            error = math.nan if any(map(math.isnan, errors)) else max(errors)
            if not error < TOLERANCE[dtype]:
                raise SystemExit(
                    f"{op} in {dtype}: error {error:.1e}, tolerance {TOLERANCE[dtype]:.0e}; nothing timed"
                )
            yield op, dtype, error
    for dtype in dtypes:
        yield "nearest", dtype, _check_nearest(device, dtype)


def _check_nearest(device: str, dtype: torch.dtype) -> float:
    """Return the relative error of `nearest`, which must compute scores in float32 for every dtype of keys.

    Raises SystemExit if the error exceeds float32's tolerance, or if the returned rows are wrong.
    """
    torch.manual_seed(0)
    query, keys = (torch.randn(count, 40, device=device).to(dtype) for count in (2, 70))
    row_mask, norms = torch.rand(70, device=device) < 0.6, 1 + torch.rand(70, device=device)
    exact = (query.double() @ keys.double().T / norms).masked_fill(~row_mask, -math.inf)
    right = exact.sort(dim=-1, descending=True)
    result = nearest(query, keys, 20, norms=norms, row_mask=row_mask, implementation="triton")
    error = _relative_error(result.scores, right.values[:, :20])
    if not torch.equal(result.rows, right.indices[:, :20]) or not error < TOLERANCE[torch.float32]:
        raise SystemExit(f"nearest in {dtype}: rows are wrong or error {error:.1e} is too big; nothing timed")
    return error


Case = tuple[dict[str, Tensor], Callable[..., Tensor]]
"""Differentiable inputs of an op by name, and a function of them and of `implementation`."""


def _run_with_gradients(
    tensors: dict[str, Tensor], run: Callable[..., Tensor], implementation: str
) -> list[Tensor]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    out = run(**leaves, implementation=implementation)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device)
    total = (out.double().flatten() * weights).sum()
    grads = torch.autograd.grad(total, [*leaves.values()], allow_unused=True, materialize_grads=True)
    return [out.detach(), *grads]


def _relative_error(result: Tensor, exact: Tensor) -> float:
    return float(
        (result.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt().clamp_min(1e-6)
    )


def _retrieval_case(device: str, combine: Any) -> Case:
    # Integers in the summaries and their queries make scores exact, so that all dtypes select equal chunks.
    shapes = {"query": (2, 5, 4, 40), "keys": (2, 6, 7, 2, 40), "values": (2, 6, 7, 2, 40)}
    tensors = {name: torch.randn(shape, device=device) for name, shape in shapes.items()}
    for name, steps in (("summaries", 6), ("summary_query", 5)):
        tensors[name] = torch.randint(-4, 5, (2, steps, 2, 24), device=device).float()
    valid = torch.tensor([[6, 0, 3, 5, 1], [2, 4, 6, 1, 6]], device=device)
    return tensors, functools.partial(chunk_retrieval, valid=valid, top_k=3, combine=combine)


def _halves_case(device: str) -> Case:
    """Return inputs, and a function that merges attention to selected chunks with attention to a window."""
    tensors, _ = _retrieval_case(device, "hierarchical")
    valid = torch.tensor([[6, 0, 3, 5, 6], [2, 6, 6, 1, 4]], device=device)
    step = torch.arange(5, device=device).expand(2, 5)

    def run(query, keys, values, summaries, summary_query, implementation):
        options: Any = {"return_lse": True, "implementation": implementation}
        selection = choose_chunks(
            valid,
            top_k=3,
            summary_query=summary_query,
            summaries=summaries,
            implementation=implementation,
        )
        far = attend_chosen(query, keys, values, selection.chunks, selection.scores, **options)
        window = keys[:, :5, 0], values[:, :5, 0]
        near = sink_attention(query, *window, step, step, torch.zeros_like(step), window=3, **options)
        return merge([far, near])

    return tensors, run


def _sink_case(device: str) -> Case:
    tensors = {
        name: torch.randn(2, 21, heads, 40, device=device)
        for name, heads in (("query", 4), ("keys", 2), ("values", 2))
    }
    step = torch.arange(21, device=device).expand(2, 21)
    steps = {"query_step": step, "key_step": step, "episode_start": torch.where(step < 9, 0, 9)}
    tensors["sink_logit"] = torch.randn(4, device=device)
    return tensors, functools.partial(sink_attention, **steps, window=5, num_sinks=2)


def _memory_case(device: str, depth: int) -> Case:
    tensors, gates, state = _memory(1, 24, 1, 20, 36 if depth == 2 else None, device)

    def run(query, key, value, implementation, **weights):
        dtype = torch.promote_types(query.dtype, torch.float32)
        y, _, after = neural_memory(
            query,
            key,
            value,
            Gates(*(gate.to(dtype) for gate in gates)),
            [*weights.values()],
            NeuralState(*(part.to(dtype) for part in state)),
            chunk_size=12,
            implementation=implementation,
        )
        return torch.cat([y.flatten().to(dtype), *(part.flatten() for part in after)])

    return tensors, run


def _memory(
    rows: int, time: int, heads: int, width: int, hidden: int | None, device: str
) -> tuple[dict[str, Tensor], Gates, NeuralState]:
    """Return random inputs of a neural memory: query, key, value and weights; gates; and an empty state."""
    shape, layers = (
        (rows, time, heads),
        [(width, width)] if hidden is None else [(width, hidden), (hidden, width)],
    )
    tensors = {name: torch.randn(*shape, width, device=device) for name in ("query", "key", "value")}
    for name in ("query", "key"):
        tensors[name] = normalize(tensors[name], dim=-1)
    for number, (a, b) in enumerate(layers):
        tensors[f"weight_{number}"] = torch.randn(heads, a, b, device=device) / a**0.5
    step, *logs = (torch.rand(shape, device=device) for _ in range(3))
    size = sum(a * b for a, b in layers)
    state = NeuralState(*(torch.zeros(rows, heads, size, device=device) for _ in range(3)))
    return tensors, Gates(step * 0.1, *(-log * 0.1 for log in logs)), state


def _memories(bench: GPUBench) -> Iterator[str]:
    """Time neural memory for up to 4,096 steps; for longer segments the torch path takes a minute."""
    yield (
        f"neural_memory, {bench.heads} heads of 64, chunks of 32, bfloat16, ms forward / forward and "
        "backward:\n"
    )
    yield "| T | memory | triton | torch | torch / triton |\n|---|---|---|---|---|"
    for length in (length for length in bench.lengths if length <= 4096):
        for name, hidden in (("a matrix", None), ("hidden 128", 128)):
            tensors, gates, state = _memory(1, length, bench.heads, 64, hidden, "cuda")
            query, key, value, *weights = tensors.values()
            inputs = [x.bfloat16().requires_grad_() for x in (query, key, value)]

            def run(path: Any, inputs: Any = (*inputs, gates, weights, state)) -> Tensor:
                return neural_memory(*inputs, chunk_size=32, implementation=path)[0]

            yield f"| {length:,} | {name} | {_both(run)} |"


def _linear_case(device: str, rule: Any, decay: str) -> Case:
    start = torch.zeros(2, 40, dtype=torch.bool, device=device)
    start[0, 17] = True

    def run(**inputs: Any) -> Tensor:
        y, after = linear_memory(**inputs, rule=rule, chunk_size=16, start=start)
        return torch.cat([y.flatten().to(after.dtype), after.flatten()])

    return _linear(2, 40, 2, 20, decay, device), run


def _linear(rows: int, time: int, heads: int, width: int, decay: str, device: str) -> dict[str, Tensor]:
    """Return random inputs of a linear memory, with an empty state."""
    shape = (rows, time, heads)
    query, key, value = (torch.randn(*shape, width, device=device) for _ in range(3))
    step = torch.rand(shape, device=device)
    return {
        "query": normalize(query, dim=-1),
        "key": normalize(key, dim=-1),
        "value": value,
        "log_decay": -torch.rand((*shape, width) if decay == "channel" else shape, device=device),
        "step": step,
        "state": torch.zeros(rows, heads, width, width, device=device),
    }


_CASES: dict[str, tuple[Any, ...]] = {
    "chunk_retrieval, joint": (_retrieval_case, "joint"),
    "chunk_retrieval, hierarchical": (_retrieval_case, "hierarchical"),
    "choose_chunks, attend_chosen, merge": (_halves_case,),
    "sink_attention": (_sink_case,),
    "neural_memory, a matrix": (_memory_case, 1),
    "neural_memory, two layers": (_memory_case, 2),
    "linear_memory, hebbian": (_linear_case, "hebbian", "head"),
    "linear_memory, delta": (_linear_case, "delta", "head"),
    "linear_memory, delta, decay per channel": (_linear_case, "delta", "channel"),
}
"""Checked ops: the function that makes their inputs on a device, and the options of the function."""


def _recurrences(bench: GPUBench) -> Iterator[str]:
    yield f"linear_memory, {bench.heads} heads of 64, bfloat16, ms forward / forward and backward:\n"
    yield "| T | rule | triton | torch | torch / triton |\n|---|---|---|---|---|"
    for length in bench.lengths:
        for rule, decay in (("hebbian", "head"), ("delta", "head"), ("delta", "channel")):
            *tensors, state = _linear(1, length, bench.heads, 64, decay, "cuda").values()
            inputs: Any = [*(x.bfloat16().requires_grad_() for x in tensors), state]

            def run(path: Any, inputs: Any = inputs, rule: Any = rule) -> Tensor:
                return linear_memory(*inputs, rule=rule, implementation=path)[0]

            yield f"| {length:,} | {rule}, decay per {decay} | {_both(run)} |"


def _scans(bench: GPUBench) -> Iterator[str]:
    """Time the search for the rows nearest to one query, as in a memory bank on a GPU."""
    yield "nearest, the best 10 of the allowed rows of width 384, ms and GB/s of the keys:\n"
    yield "| rows | dtype | allowed | triton | torch | torch / triton |\n|---|---|---|---|---|---|"
    for count in bench.embeddings:
        for dtype in (torch.float32, torch.float16):
            keys = torch.randn(count, 384, device="cuda", dtype=dtype)
            for part in (1.0, 0.1):
                row_mask = torch.rand(count, device="cuda") < part

                def run(path: Any, keys=keys, row_mask=row_mask) -> Tensor:
                    return nearest(keys[:1], keys, 10, row_mask=row_mask, implementation=path).scores

                ours, theirs = (
                    _time(functools.partial(run, path), backward=False)[0] for path in ("triton", "torch")
                )
                speed = keys.numel() * keys.element_size() / ours / 1e6
                yield (
                    f"| {count:,} | {str(dtype).removeprefix('torch.')} | {part:.0%} | {ours:.3f} "
                    f"({speed:,.0f} GB/s) | "
                    f"{theirs:.3f} | {theirs / ours:.1f}x |"
                )


def _segments(bench: GPUBench) -> Iterator[str]:
    """Time a causal segment in which every query attends only to chunks completed before it."""
    yield (
        f"A causal segment, bfloat16, C={bench.chunk}, k={bench.top_k}, ms forward / forward and backward:\n"
    )
    yield "| T | chunk_retrieval (joint) | full attention | full / ours | parallel_nsa | nsa / ours |"
    yield "|---|---|---|---|---|---|"
    for length in bench.lengths:
        query, keys, values = _draw(1, length, bench)
        valid = (torch.arange(length, device="cuda") // bench.chunk)[None]
        ours = _time(_retrieval(bench, query, keys, values, valid))
        theirs = _time(_attention(query, keys, values, causal=True))
        nsa = _nsa(bench, query, keys, values)
        nsa_times = None if nsa is None else _time(nsa)
        cells = ["-", "-"] if nsa_times is None else [_pair(nsa_times), format_ratios(nsa_times, ours)]
        yield (
            f"| {length:,} | {_pair(ours)} | {_pair(theirs)} | {format_ratios(theirs, ours)} | "
            f"{' | '.join(cells)} |"
        )


def _decode(bench: GPUBench) -> Iterator[str]:
    yield (
        f"Decode, {bench.rows} rows, bfloat16, ms:\n\n"
        "| keys | chunk_retrieval (joint) | full attention | full / ours |"
    )
    yield "|---|---|---|---|"
    for length in bench.lengths:
        query, keys, values = _draw(bench.rows, length, bench)
        query, valid = query[:, -1:], torch.full((bench.rows, 1), length // bench.chunk, device="cuda")
        ours = _time(_retrieval(bench, query, keys, values, valid), backward=False)
        theirs = _time(_attention(query, keys, values, causal=False), backward=False)
        yield f"| {length:,} | {ours[0]:.3f} | {theirs[0]:.3f} | {format_ratios(theirs, ours)} |"


def _sinks(bench: GPUBench) -> Iterator[str]:
    yield f"sink_attention, window {bench.window}, 4 sinks, bfloat16, ms forward / forward and backward:\n"
    yield "| T | sink_attention | full attention | full / ours |\n|---|---|---|---|"
    for length in bench.lengths:
        query, keys, values = _draw(1, length, bench)
        step = torch.arange(length, device="cuda")[None]

        def sinks(query=query, keys=keys, values=values, step=step) -> Tensor:
            start = torch.zeros_like(step)
            return sink_attention(query, keys, values, step, step, start, window=bench.window, num_sinks=4)

        ours, theirs = _time(sinks), _time(_attention(query, keys, values, causal=True))
        yield f"| {length:,} | {_pair(ours)} | {_pair(theirs)} | {format_ratios(theirs, ours)} |"


def _retrieval(
    bench: GPUBench, query: Tensor, keys: Tensor, values: Tensor, valid: Tensor
) -> Callable[[], Tensor]:
    chunked_keys, chunked_values = (
        t.detach().unflatten(1, (-1, bench.chunk)).requires_grad_() for t in (keys, values)
    )
    summaries = chunked_keys.detach().mean(dim=2)
    coarse = query[:, :, :: bench.heads // bench.key_heads]  # one selection per key head, as in parallel_nsa
    return lambda: chunk_retrieval(
        query,
        chunked_keys,
        chunked_values,
        summaries,
        valid,
        summary_query=coarse,
        top_k=bench.top_k,
        combine="joint",
    )


def _attention(query: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Callable[[], Tensor]:
    q, k, v = (t.detach().transpose(1, 2).contiguous().requires_grad_() for t in (query, keys, values))
    return lambda: scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)


def _draw(rows: int, length: int, bench: GPUBench) -> tuple[Tensor, Tensor, Tensor]:
    def draw(heads: int) -> Tensor:
        shape = (rows, length, heads, bench.width)
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    return draw(bench.heads), draw(bench.key_heads), draw(bench.key_heads)


def _nsa(bench: GPUBench, query: Tensor, keys: Tensor, values: Tensor) -> Callable[[], Tensor] | None:
    """Return a function that runs `parallel_nsa` on random causal blocks, or None if it is not installed."""
    if _fla_version() is None:
        return None
    from fla.ops.nsa import parallel_nsa  # pyright: ignore[reportMissingImports]

    length = query.shape[1]
    own = torch.arange(length, device="cuda")[None, :, None, None] // bench.chunk
    shape = (1, length, bench.key_heads, bench.top_k)
    blocks = (torch.rand(shape, device="cuda") * (own + 1)).long().sort(dim=-1).values
    gate = torch.ones(1, length, bench.heads, device="cuda", dtype=query.dtype)
    return lambda: parallel_nsa(
        query,
        keys,
        values,
        g_slc=gate,
        block_indices=blocks,
        block_counts=bench.top_k,
        block_size=bench.chunk,
    )


def _fla_version() -> str | None:
    try:
        return importlib.metadata.version("flash-linear-attention")
    except importlib.metadata.PackageNotFoundError:
        return None


def _time(run: Callable[[], Tensor], backward: bool = True) -> tuple[float, float]:
    """Return the median milliseconds of a forward pass, and of a forward and backward pass."""
    from triton.testing import do_bench

    with torch.no_grad():
        forward = do_bench(run, return_mode="median")
    both = do_bench(lambda: run().sum().backward(), return_mode="median") if backward else forward
    return float(forward), float(both)  # pyright: ignore[reportArgumentType]


def _both(run: Callable[[Any], Tensor]) -> str:
    """Return the table cells of the Triton path, the torch path and their ratio."""
    ours, theirs = (_time(functools.partial(run, path)) for path in ("triton", "torch"))
    return f"{_pair(ours)} | {_pair(theirs)} | {format_ratios(theirs, ours)}"


def _pair(times: tuple[float, float]) -> str:
    return f"{times[0]:.2f} / {times[1]:.2f}"


if __name__ == "__main__":
    main(tyro.cli(GPUBench, description=__doc__))
