"""Cost of linear memory on a CPU: a segment against causal attention, a step against a GRU cell.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.recurrences

All methods take turns in one process on one thread, in float32, with the same queries, keys and values, on
the fast path of torch's products (`use_fast_products`). Times are CPU times, the minimum of all rounds. A
ratio below 1 is faster than the baseline. Attention is torch's `scaled_dot_product_attention`, and the GRU
cell is `torch.nn.GRUCell` of the same width. Options: `--help`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

from scrubjay.experiments.bench import describe_products, time_in_turns, use_fast_products
from scrubjay.kernels import linear_memory, linear_memory_step

VARIANTS: dict[str, dict[str, Any]] = {
    "delta, decay per head": {"rule": "delta"},
    "delta, decay per channel": {"rule": "delta", "channel": True},
    "delta, 1 % of steps start an episode": {"rule": "delta", "starts": 0.01},
    "hebbian, decay per head": {"rule": "hebbian"},
}


@dataclass(frozen=True)
class RecurrencesBench:
    """Options of the benchmark."""

    lengths: tuple[int, ...] = (512, 2048, 8192)
    """Segment lengths in tokens, at batch size 1."""
    heads: int = 4
    """Number of heads."""
    width: int = 64
    """Width of a head."""
    rows: tuple[int, ...] = (1, 64, 256)
    """Batch sizes of a step."""
    rounds: int = 5
    """Timed rounds after the warm-up."""


def main(bench: RecurrencesBench) -> None:
    """Run the benchmark and print its tables."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{bench.heads} heads of {bench.width}; torch {torch.__version__}; {describe_products()}\n")
    segments = {
        f"{length} tokens{how}": _time_least(_build_segment_methods(bench, length, how != ""), bench.rounds)
        for length in bench.lengths
        for how in ("", ", forward and backward")
    }
    steps = {
        f"batch size {rows}": _time_least(_build_step_methods(bench, rows), bench.rounds)
        for rows in bench.rows
    }
    for peer, table in (("attention", segments), ("GRU cell", steps)):
        print(f"| relative to {peer} | {' | '.join(table)} |\n|---" + "|---" * len(table) + "|")
        for name in next(iter(table.values())):
            cells = [
                f"{1e3 * least[name]:.2f} ms, {least[name] / least[peer]:.2f}x" for least in table.values()
            ]
            print(f"| {name} | {' | '.join(cells)} |")
        print()


def _build_segment_methods(
    bench: RecurrencesBench, length: int, grad: bool
) -> dict[str, Callable[[], object]]:
    sizes = (1, length, bench.heads, bench.width)
    query, key, value = (torch.randn(sizes) for _ in range(3))
    key, step, state = normalize(key, dim=-1), torch.rand(sizes[:3]), torch.zeros(1, *sizes[2:], bench.width)

    def ours(rule: Any, channel: bool = False, starts: float = 0.0) -> Callable[[], object]:
        decay = -0.1 * torch.rand(sizes if channel else sizes[:3])
        start = torch.rand(1, length) < starts
        leaves = [x.requires_grad_(grad) for x in (query, key, value, decay, step, state)]
        return lambda: _run(lambda: linear_memory(*leaves, rule=rule, start=start)[0], value, grad)  # pyright: ignore[reportCallIssue]

    def theirs() -> Tensor:
        queries, keys, values = (x.transpose(1, 2) for x in (query, key, value))
        read = scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return read.transpose(1, 2)

    return {"attention": lambda: _run(theirs, value, grad)} | {
        n: ours(**options) for n, options in VARIANTS.items()
    }


def _build_step_methods(bench: RecurrencesBench, rows: int) -> dict[str, Callable[[], object]]:
    sizes, dim = (rows, bench.heads, bench.width), bench.heads * bench.width
    query, key, value = (normalize(torch.randn(sizes), dim=-1) for _ in range(3))
    decay, step, state = -torch.rand(sizes[:2]), torch.rand(sizes[:2]), torch.zeros(*sizes, bench.width)
    cell, x = torch.nn.GRUCell(dim, dim).requires_grad_(False), torch.randn(rows, dim)

    def ours(out: Tensor | None) -> Callable[[], object]:
        return lambda: linear_memory_step(query, key, value, decay, step, state, rule="delta", out=out)

    return {"GRU cell": lambda: cell(x, x), "delta, in place": ours(state), "delta, new state": ours(None)}


def _run(run: Callable[[], Tensor], along: Tensor, grad: bool) -> None:
    y = run()
    if grad:
        y.backward(along.detach())


def _time_least(methods: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the minimum CPU seconds of each method."""
    return {name: min(seconds) for name, seconds in time_in_turns(methods, rounds).items()}


if __name__ == "__main__":
    options = tyro.cli(RecurrencesBench, description=__doc__)
    use_fast_products()
    main(options)
