"""Cost of Titans' neural memory against causal attention of the same width and PyPI's titans-pytorch.

    pip install titans-pytorch
    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.titans

All modules map [batch, tokens, width] to the same shape with projections of query, key, value and output. The
row "the whole layer" is a complete `titans` memory, which also has norms and a feed-forward part. The modules
take turns in one process on one CPU thread, on the fast path of torch's products (`use_fast_products`).
Attention is torch's scaled_dot_product_attention. Peak memory is the increase during one forward and backward
pass; each module is measured in a new process. Prints tables. Options: `--help`.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.experiments.bench import (
    Name,
    describe_products,
    format_ratios,
    measure_seconds,
    run_backward,
    run_forward,
    run_in_new_process,
    use_fast_products,
)
from scrubjay.memory.parts.grid import ChunkGrid
from scrubjay.memory.titans.lmm import TitansConfig
from scrubjay.memory.titans.neural import NeuralMemory

WIDEST_HEAD = 64
ENGINE: Any = {"convolution": 1, "output_gate": False}


@dataclass(frozen=True)
class TitansBench:
    """Options of the benchmark."""

    batch: int = 2
    """Batch size of the first table."""
    tokens: int = 2048
    """Sequence length in the first table, in tokens."""
    dim: int = 256
    """Model width in the first table."""
    dims: tuple[int, ...] = (64, 256, 512)
    """Model widths to measure at the lengths of `lengths`, with batch size 1."""
    lengths: tuple[int, ...] = (2048, 8192, 32768, 65536)
    """Sequence lengths to measure in the second table, in tokens."""
    largest: int = 2**23
    """Maximum of the product of length and width in the table of sequence lengths. Larger sizes are left out,
    because attention takes minutes."""
    chunks: tuple[int, ...] = (16, 64)
    """Chunk sizes in the table of sequence lengths."""
    rows: tuple[int, ...] = (1, 16, 256)
    """Batch sizes of a step of one token."""
    pieces: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Numbers of episodes in a segment, for the table of the cost of resets."""
    repeats: int = 7
    """Timed passes of each module; fewer if they take more than `patience` seconds."""
    patience: float = 4.0
    """Total seconds after which no further pass of a module is timed."""
    seed: int = 0
    """Seed of inputs and weights."""


class CausalAttention(nn.Module):
    """Causal attention over all tokens, with heads of width 64."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = max(1, dim // WIDEST_HEAD)
        self.project_in, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend from every token to itself and all earlier tokens."""
        query, key, value = self.project_in(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        read = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(read.transpose(1, 2).flatten(2))

    def step(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend from one token to cached keys and values `[batch, heads, time, width]`."""
        query, _, _ = self.project_in(x).unflatten(-1, (3, self.heads, -1)).unbind(1)
        read = functional.scaled_dot_product_attention(query[:, :, None], keys, values)
        return self.out(read.flatten(1))


class NeuralMemoryModule(nn.Module):
    """Neural memory of one `titans` layer. Each call begins with an initial state."""

    def __init__(self, dim: int, chunk_size: int, **fields) -> None:
        super().__init__()
        self.memory = NeuralMemory(TitansConfig(dim=dim, chunk_size=chunk_size, **fields))
        nn.init.normal_(self.memory.weights[-1], std=0.05)

    def forward(self, x: Tensor, start: Tensor | None = None) -> Tensor:
        """Write and read every token."""
        age = torch.zeros(len(x), dtype=torch.int64)
        start = torch.zeros(x.shape[:2], dtype=torch.bool) if start is None else start
        grid = ChunkGrid.from_starts(age, start, self.memory.chunk_size)
        state = self.memory.initial_state(len(x), torch.float32, x.device)
        return self.memory.segment(x, state, grid)[0]


class TitansLayer(nn.Module):
    """Complete `titans` memory with one layer. Each call begins with an initial state."""

    def __init__(self, dim: int, chunk_size: int) -> None:
        super().__init__()
        self.memory = TitansConfig(dim=dim, chunk_size=chunk_size).build()
        for name, weight in self.memory.named_parameters():
            if ".weights." in name:
                nn.init.normal_(weight, std=0.05)

    def forward(self, x: Tensor) -> Tensor:
        """Write and read every token."""
        return self.memory(x, self.memory.initial_state(len(x)))[0]


class TitansPytorchModule(nn.Module):
    """NeuralMemory of titans-pytorch.

    `use_anchors` updates the weights after each chunk, so the next chunk's gradients use the new weights.
    """

    def __init__(self, dim: int, heads: int | None, use_anchors: bool) -> None:
        super().__init__()
        from titans_pytorch import NeuralMemory as Peer  # pyright: ignore[reportMissingImports]

        options: Any = {} if heads is None else {"heads": heads, "dim_head": dim // heads}
        self.memory = Peer(dim=dim, chunk_size=64, batch_size=64 if use_anchors else None, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Write and read every token."""
        return self.memory(x)[0]


def build_modules(dim: int) -> dict[str, Callable[[], Any]]:
    """Return builders of all modules of the first table."""
    return {
        "causal attention": lambda: CausalAttention(dim),
        "depth 1": lambda: NeuralMemoryModule(dim, 64, depth=1, **ENGINE),
        "depth 1, convolution and gate": lambda: NeuralMemoryModule(dim, 64, depth=1),
        "depth 1, the whole layer": lambda: TitansLayer(dim, 64),
        "depth 2, hidden 4x": lambda: NeuralMemoryModule(dim, 64, depth=2, hidden_ratio=4, **ENGINE),
        "depth 2, hidden 4x, convolution and gate": lambda: NeuralMemoryModule(
            dim, 64, depth=2, hidden_ratio=4
        ),
        "titans-pytorch, heads of 64, weights updated per chunk": lambda: TitansPytorchModule(
            dim, dim // WIDEST_HEAD, True
        ),
        "titans-pytorch, default settings": lambda: TitansPytorchModule(dim, None, False),
    }


def main(bench: TitansBench) -> None:
    """Run the benchmark and print its tables."""
    torch.set_num_threads(1)
    torch.manual_seed(bench.seed)
    print(
        f"float32, 1 thread; medians; torch {torch.__version__}, titans-pytorch {version('titans-pytorch')}, "
        f"{os.cpu_count()} CPUs; {describe_products()}\n"
    )
    _side_by_side(bench)
    _lengths(bench)
    _steps(bench)
    _resets(bench)


def _side_by_side(bench: TitansBench) -> None:
    print(
        f"Batch size {bench.batch}, {bench.tokens:,} tokens, width {bench.dim}, heads of {WIDEST_HEAD}, "
        "chunks of 64; "
        "times are forward / forward and backward:\n"
    )
    print("| module | ms | relative to attention | peak memory, MB |")
    print("|---|---|---|---|")
    x = torch.randn(bench.batch, bench.tokens, bench.dim, requires_grad=True)
    modules = {name: build() for name, build in build_modules(bench.dim).items()}
    cost = _time_in_turns({name: partial(m, x) for name, m in modules.items()}, bench)
    base = cost["causal attention"]
    for name, times in cost.items():
        megabytes = run_in_new_process(_peak, name, bench)
        print(f"| {name} | {_pair(times)} | {format_ratios(times, base, 2)} | {megabytes:.0f} |")


def _lengths(bench: TitansBench) -> None:
    print(
        "\nBatch size 1, depth 1 and depth 2 (hidden 2x), convolution and gate; times relative to causal "
        "attention:\n"
    )
    variants = {
        f"depth {depth}, chunks of {chunk}": {"depth": depth, "chunk_size": chunk}
        for chunk in bench.chunks
        for depth in (1, 2)
    }
    print("| width | tokens | causal attention, ms | " + " | ".join(variants) + " |")
    print("|---" * (3 + len(variants)) + "|")
    for dim in bench.dims:
        modules: dict[str, nn.Module] = {"attention": CausalAttention(dim)}
        modules |= {name: NeuralMemoryModule(dim, **fields) for name, fields in variants.items()}
        for length in (length for length in bench.lengths if length * dim <= bench.largest):
            x = torch.randn(1, length, dim, requires_grad=True)
            cost = _time_in_turns({name: partial(m, x) for name, m in modules.items()}, bench)
            base = cost.pop("attention")
            cells = [format_ratios(times, base, 2) for times in cost.values()]
            print(f"| {dim} | {length:,} | {_pair(base)} | {' | '.join(cells)} |", flush=True)


def _steps(bench: TitansBench) -> None:
    print(f"\nOne step, width {bench.dim}, microseconds per batch row:\n")
    names = ["depth 1", "depth 2, hidden 2x", f"attention to {bench.tokens:,} cached tokens"]
    print("| batch size | " + " | ".join(names) + " |")
    print("|---" * (1 + len(names)) + "|")
    attention = CausalAttention(bench.dim)
    with torch.no_grad():
        for rows in bench.rows:
            x = torch.randn(rows, bench.dim)
            runs = {}
            for name, depth in zip(names, (1, 2), strict=False):
                memory = NeuralMemory(TitansConfig(dim=bench.dim, depth=depth))
                state = memory.initial_state(rows, torch.float32, x.device)
                runs[name] = partial(_step, memory, x, state, torch.full((rows,), 5))
            cache = torch.randn(2, rows, attention.heads, bench.tokens, bench.dim // attention.heads)
            runs[names[-1]] = partial(attention.step, x, *cache)
            cost = _time_in_turns(runs, bench, backward=False)
            cells = [f"{forward * 1e6 / rows:.0f}" for forward, _ in cost.values()]
            print(f"| {rows} | {' | '.join(cells)} |", flush=True)


def _step(memory: NeuralMemory, *arguments: Any) -> Tensor:
    return memory.step(*arguments)[0]


def _resets(bench: TitansBench) -> None:
    print(
        f"\nTime by the number of episodes in a segment, relative to one episode; batch size {bench.batch}, "
        f"{bench.tokens:,} tokens, depth 1, chunks of 64, forward / forward and backward:\n"
    )
    print("| episodes | chunks | time |")
    print("|---|---|---|")
    x = torch.randn(bench.batch, bench.tokens, bench.dim, requires_grad=True)
    memory = NeuralMemoryModule(bench.dim, 64, depth=1)
    starts = {}
    for pieces in bench.pieces:
        start = torch.zeros(x.shape[:2], dtype=torch.bool)
        for row in start:
            row[torch.randperm(bench.tokens - 1)[: pieces - 1] + 1] = True
        starts[pieces] = start
    cost = _time_in_turns({n: partial(memory, x, start) for n, start in starts.items()}, bench)
    base = cost[bench.pieces[0]]
    age = torch.zeros(bench.batch, dtype=torch.int64)
    for pieces, start in starts.items():
        chunks = ChunkGrid.from_starts(age, start, 64).num_chunks
        print(f"| {pieces} | {chunks} | {format_ratios(cost[pieces], base, 2)} |")


def _time_in_turns(
    modules_by_name: Mapping[Name, Callable[[], Tensor]], bench: TitansBench, backward: bool = True
) -> dict[Name, tuple[float, float]]:
    """Return two medians per module, in seconds: of a forward pass, and of forward plus backward pass.

    The modules take turns. If `backward` is False, the second pass is skipped and its median is 0.
    """
    times: dict[Name, list[tuple[float, float]]] = {name: [] for name in modules_by_name}
    for trial in range(-1, bench.repeats):
        for name, run in modules_by_name.items():
            if trial >= 0 and sum(map(sum, times[name])) > bench.patience:
                continue
            forward = measure_seconds(partial(run_forward, run))
            both = measure_seconds(partial(run_backward, run)) if backward else 0.0
            # Drop the warm-up pass, unless there is time for one pass only.
            if trial == 0 and times[name][0][0] < bench.patience / 4:
                times[name].clear()
            times[name].append((forward, both))
    return {
        name: (statistics.median(f for f, _ in own), statistics.median(b for _, b in own))
        for name, own in times.items()
    }


def _peak(name: str, bench: TitansBench) -> float:
    """Return the megabytes of memory that one forward and backward pass of a module adds to a new process."""
    torch.set_num_threads(1)
    module = build_modules(bench.dim)[name]()
    # Do not count memory that libraries allocate on their first call.
    module(torch.randn(1, 128, bench.dim, requires_grad=True)).sum().backward()
    x = torch.randn(bench.batch, bench.tokens, bench.dim, requires_grad=True)
    before = _high_water()
    module(x).sum().backward()
    return (_high_water() - before) / 1024


def _high_water() -> int:
    """Return the peak resident memory of this process in kilobytes, from Linux's VmHWM."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def _pair(times: tuple[float, float]) -> str:
    return " / ".join(f"{value * 1e3:.0f}" for value in times)


if __name__ == "__main__":
    options = tyro.cli(TitansBench, description=__doc__)
    use_fast_products()
    main(options)
