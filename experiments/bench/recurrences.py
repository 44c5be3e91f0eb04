"""What linear memory costs on a CPU: a segment against causal attention, a step against a GRU cell.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.recurrences

All contestants take turns in one process on one thread, float32, from the same queries, keys and values;
times are the processor's, the least of all rounds, and a ratio below 1 is less than the peer's. Attention is
torch's `scaled_dot_product_attention`, the cell `torch.nn.GRUCell` of the same width. Options: `--help`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

from scrubjay.kernels import linear_memory, linear_memory_step

WAYS: dict[str, dict[str, Any]] = {
    "delta, a decay a head": {"rule": "delta"},
    "delta, a decay a channel": {"rule": "delta", "channel": True},
    "delta, a start in a hundred steps": {"rule": "delta", "starts": 0.01},
    "hebbian, a decay a head": {"rule": "hebbian"},
}


@dataclass(frozen=True)
class RecurrencesBench:
    """Sizes of the measurement."""

    lengths: tuple[int, ...] = (512, 2048, 8192)
    """Tokens of a segment of one row."""
    heads: int = 4
    """Heads."""
    width: int = 64
    """Width of a head."""
    rows: tuple[int, ...] = (1, 64, 256)
    """Rows of a step."""
    rounds: int = 5
    """Turns that count."""


def main(bench: RecurrencesBench) -> None:
    """Measure and print the tables."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{bench.heads} heads of {bench.width}; torch {torch.__version__}\n")
    segments = {
        f"{length} tokens{how}": _least(_segment_ways(bench, length, how != ""), bench.rounds)
        for length in bench.lengths
        for how in ("", ", forward and backward")
    }
    steps = {f"{rows} rows": _least(_step_ways(bench, rows), bench.rounds) for rows in bench.rows}
    for peer, table in (("attention", segments), ("GRU cell", steps)):
        print(f"| against {peer} | {' | '.join(table)} |\n|---" + "|---" * len(table) + "|")
        for name in next(iter(table.values())):
            cells = [
                f"{1e3 * least[name]:.2f} ms, {least[name] / least[peer]:.2f}x" for least in table.values()
            ]
            print(f"| {name} | {' | '.join(cells)} |")
        print()


def _segment_ways(bench: RecurrencesBench, length: int, grad: bool) -> dict[str, Callable[[], object]]:
    sizes = (1, length, bench.heads, bench.width)
    query, key, value = (torch.randn(sizes) for _ in range(3))
    key, step, state = normalize(key, dim=-1), torch.rand(sizes[:3]), torch.zeros(1, *sizes[2:], bench.width)

    def ours(rule: Any, channel: bool = False, starts: float = 0.0) -> Callable[[], object]:
        decay = -0.1 * torch.rand(sizes if channel else sizes[:3])
        start = torch.rand(1, length) < starts
        leaves = [x.requires_grad_(grad) for x in (query, key, value, decay, step, state)]
        return lambda: _run(lambda: linear_memory(*leaves, rule=rule, start=start)[0], value, grad)  # pyright: ignore[reportCallIssue]

    def theirs() -> Tensor:
        asked, keys, values = (x.transpose(1, 2) for x in (query, key, value))
        read = scaled_dot_product_attention(asked, keys, values, is_causal=True)
        return read.transpose(1, 2)

    return {"attention": lambda: _run(theirs, value, grad)} | {n: ours(**way) for n, way in WAYS.items()}


def _step_ways(bench: RecurrencesBench, rows: int) -> dict[str, Callable[[], object]]:
    sizes, dim = (rows, bench.heads, bench.width), bench.heads * bench.width
    query, key, value = (normalize(torch.randn(sizes), dim=-1) for _ in range(3))
    decay, step, state = -torch.rand(sizes[:2]), torch.rand(sizes[:2]), torch.zeros(*sizes, bench.width)
    cell, x = torch.nn.GRUCell(dim, dim).requires_grad_(False), torch.randn(rows, dim)

    def ours(out: Tensor | None) -> Callable[[], object]:
        return lambda: linear_memory_step(query, key, value, decay, step, state, rule="delta", out=out)

    return {"GRU cell": lambda: cell(x, x), "delta, in place": ours(state), "delta, a new state": ours(None)}


def _run(run: Callable[[], Tensor], along: Tensor, grad: bool) -> None:
    y = run()
    if grad:
        y.backward(along.detach())


def _least(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the least seconds of the processor that each took; the first round warms up."""
    least = dict.fromkeys(ways, float("inf"))
    for trial in range(rounds + 1):
        for name, run in ways.items():
            began = time.process_time()
            run()
            if trial:
                least[name] = min(least[name], time.process_time() - began)
    return least


if __name__ == "__main__":
    main(tyro.cli(RecurrencesBench, description=__doc__))
