"""Robustness of neural memories to outliers: some tokens have values with a far larger norm.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.quality.outliers --out runs/outliers

The neural memories of Titans and Miras are tested at initialization, without the surrounding layer. A
sequence of pairs of random unit keys and random values is stored in one pass, with one full step of gradient
descent per chunk. The values of some pairs are scaled up; these pairs are the outliers. Then the memory is
read with the keys of all other pairs. The recall of a pair is correct if the output has a higher cosine with
the value of this pair than with any other value of the sequence. In a complete layer a norm precedes the
memory and removes the length of its input, so outliers can only arise from learned weights. Nothing is
trained, and there are no settings besides the options. Prints a table; all scores are in `scores.jsonl`.
Options: `--help`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from scrubjay.experiments.measurements import Records, markdown, version
from scrubjay.experiments.quality.probe import prepare_out, run_probe, write_report
from scrubjay.experiments.statistics import format_spread
from scrubjay.kernels import Gates, NeuralState, neural_memory, neural_recall
from scrubjay.memory import make_config
from scrubjay.memory.titans.neural import NeuralMemory, NeuralMemoryConfig

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "titans": ("titans", {}),
    "yaad": ("yaad", {}),
    "yaad, by coordinate": ("yaad", {"measure": "coordinate"}),
    "moneta": ("moneta", {}),
    "memora": ("memora", {}),
}
_SCORES = {"memory": str, "times": float, "seed": int, "right": float}


@dataclass(frozen=True, kw_only=True)
class OutliersBench:
    """Options of the benchmark."""

    times: tuple[float, ...] = (1, 3, 10, 100, 1000)
    """Scale factors of the outliers' values; 1 means no outliers."""
    share: float = 0.125
    """Fraction of pairs that are outliers."""
    pairs: int = 48
    """Pairs per sequence, a multiple of `chunk_size`."""
    chunk_size: int = 16
    """Pairs per step of gradient descent."""
    width: int = 64
    """Width of keys and values."""
    rows: int = 64
    """Sequences per seed."""
    seeds: tuple[int, ...] = (3, 4, 5)
    """Random seeds of the pairs and the initial weights."""
    out: Path = Path("runs/outliers")
    """Output directory of the table and the scores."""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"share={self.share}: must be at least 0 and below 1")
        if self.chunk_size < 1 or self.pairs < 1 or self.pairs % self.chunk_size:
            raise ValueError(
                f"pairs={self.pairs}: must be a positive multiple of chunk_size={self.chunk_size}"
            )


def make_memory_config(bench: OutliersBench, method: str) -> NeuralMemoryConfig:
    """Return the configuration of a memory with one head of the keys' width."""
    name, fields = METHODS[method]
    sizes = {"dim": bench.width, "num_heads": 1, "chunk_size": bench.chunk_size}
    config = make_config(name, **sizes, **fields)
    assert isinstance(config, NeuralMemoryConfig)
    return config


@torch.no_grad()
def recall_accuracy(bench: OutliersBench, config: NeuralMemoryConfig, times: float, seed: int) -> float:
    """Return the fraction of non-outlier pairs whose value the memory recalls."""
    torch.manual_seed(seed)
    memory = NeuralMemory(config)
    shape = (bench.rows, bench.pairs, 1)
    key = normalize(torch.randn(*shape, bench.width), dim=-1)
    value = torch.randn(*shape, bench.width)
    outlier = torch.rand(shape) < bench.share
    targets = torch.where(outlier[..., None], times * value, value)
    step = torch.full(shape, 1 / bench.chunk_size)
    # No decay and no momentum; the error threshold is the expected norm of a value.
    gates = Gates(step, torch.full_like(step, -torch.inf), torch.zeros_like(step))
    threshold = torch.full_like(step, bench.width**0.5) if "threshold" in config.gates else None
    initial_delta = memory.initial_state(bench.rows, torch.float32, torch.device("cpu"))["delta"]
    weights, learning = list(memory.weights), config.learning
    _, _, after = neural_memory(
        key,
        key,
        targets,
        gates,
        weights,
        NeuralState(initial_delta, initial_delta, initial_delta),
        chunk_size=bench.chunk_size,
        learning=learning,
        threshold=threshold,
    )
    outputs = neural_recall(key, weights, after.anchor, learning=learning)[:, :, 0]
    alike = normalize(outputs, dim=-1) @ normalize(value[:, :, 0], dim=-1).mT
    right = alike.argmax(dim=-1) == torch.arange(bench.pairs)
    return right[~outlier[..., 0]].float().mean().item()


def run(bench: OutliersBench, command: str) -> Path:
    """Run the missing measurements, write the table, and return its path.

    Raises ValueError if the directory holds results of other settings.
    """
    prepare_out(bench)
    records = Records(bench.out / "scores.jsonl", _SCORES)
    for method in METHODS:
        config = make_memory_config(bench, method)
        for times in bench.times:
            for seed in bench.seeds:
                key = {"memory": method, "times": float(times), "seed": seed}
                if not records.find(**key):
                    right = recall_accuracy(bench, config, times, seed)
                    records.append(key | {"right": right, "command": command, "commit": version()})
    rows = []
    for method in METHODS:
        scores = (
            [row["right"] for row in records.find(memory=method, times=float(times))] for times in bench.times
        )
        rows.append([method, *map(format_spread, scores)])
    text = (
        f"Fraction of non-outlier pairs whose value is recalled, interquartile mean over {len(bench.seeds)} "
        f"seeds with minimum and maximum; {bench.rows} sequences of {bench.pairs} pairs of width "
        f"{bench.width}, in chunks of {bench.chunk_size}; the values of {bench.share:.1%} of pairs are "
        f"scaled by the column's factor. Chance is {1 / bench.pairs:.3f}."
    )
    columns = ["memory", *(f"{times:g}" for times in bench.times)]
    return write_report(bench.out / "outliers.md", command, text, markdown(columns, rows))


if __name__ == "__main__":
    sys.exit(run_probe("outliers", OutliersBench, __doc__, run))
