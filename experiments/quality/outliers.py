"""Whether values of some tokens that are far too long drown what a neural memory learned of all others.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.quality.outliers --out runs/outliers

The neural memories of Titans and Miras as they are born, without the layer around them: a row of pairs of
random keys of length 1 and random values of the keys' width is learned in one pass, each chunk by one whole
step of gradient descent. Some pairs' values are many times as long as others. Asked for every other key, a
memory is right if what it recalls points to that key's value more than to any other of its row. Inside a
layer a norm in front of the memory takes the length of its input away: there an outlier can only come of what
is learned. Nothing here is trained, and nothing was chosen but the sizes below. Prints a table; every score
is in `scores.jsonl`. Options: `--help`.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from scrubjay.experiments.quality.probe import run_probe
from scrubjay.experiments.runs.directory import write_atomically
from scrubjay.experiments.runs.provenance import version
from scrubjay.experiments.runs.records import Records, header, markdown, settle
from scrubjay.experiments.runs.statistics import spread_in_words
from scrubjay.kernels import Gates, NeuralState, neural_memory, neural_recall
from scrubjay.memory import make_config
from scrubjay.memory.titans.neural import NeuralMemory, NeuralMemoryConfig

CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "titans": ("titans", {}),
    "yaad": ("yaad", {}),
    "yaad, by coordinate": ("yaad", {"measure": "coordinate"}),
    "moneta": ("moneta", {}),
    "memora": ("memora", {}),
}
_SCORES = {"memory": str, "times": float, "seed": int, "right": float}


@dataclass(frozen=True, kw_only=True)
class OutliersBench:
    """Sizes of the measurement."""

    times: tuple[float, ...] = (1, 3, 10, 100, 1000)
    """How many times as long an outlier's value is; at 1 there is none."""
    share: float = 0.125
    """Of pairs that are outliers."""
    pairs: int = 48
    """Of a row, a multiple of `chunk_size`."""
    chunk_size: int = 16
    """Pairs that make one step together."""
    width: int = 64
    """Of keys and values."""
    rows: int = 64
    """Of a seed."""
    seeds: tuple[int, ...] = (3, 4, 5)
    """Of pairs and of the weights that memories are born with."""
    out: Path = Path("runs/outliers")
    """Directory of the table and the scores."""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"share={self.share}: at least 0 and below 1, or no pair is left to ask for")
        if self.chunk_size < 1 or self.pairs < 1 or self.pairs % self.chunk_size:
            raise ValueError(f"pairs={self.pairs} is no multiple of chunk_size={self.chunk_size}")


def config_of(bench: OutliersBench, contestant: str) -> NeuralMemoryConfig:
    """Return the memory of one head as wide as keys are."""
    name, fields = CONTESTANTS[contestant]
    sizes = {"dim": bench.width, "num_heads": 1, "chunk_size": bench.chunk_size}
    config = make_config(name, **sizes, **fields)
    assert isinstance(config, NeuralMemoryConfig)
    return config


@torch.no_grad()
def share_right(bench: OutliersBench, config: NeuralMemoryConfig, times: float, seed: int) -> float:
    """Return the share of pairs that are no outliers whose value a memory recalls."""
    torch.manual_seed(seed)
    memory = NeuralMemory(config)
    shape = (bench.rows, bench.pairs, 1)
    key = normalize(torch.randn(*shape, bench.width), dim=-1)
    value = torch.randn(*shape, bench.width)
    outlier = torch.rand(shape) < bench.share
    given = torch.where(outlier[..., None], times * value, value)
    step = torch.full(shape, 1 / bench.chunk_size)
    # All that is kept fades by nothing, nothing is repeated, and errors are as long as a value is.
    gates = Gates(step, torch.full_like(step, -torch.inf), torch.zeros_like(step))
    threshold = torch.full_like(step, bench.width**0.5) if "threshold" in config.gates else None
    born = memory.initial_state(bench.rows, torch.float32, torch.device("cpu"))["delta"]
    weights, learning = list(memory.weights), config.learning
    _, _, after = neural_memory(
        key,
        key,
        given,
        gates,
        weights,
        NeuralState(born, born, born),
        chunk_size=bench.chunk_size,
        learning=learning,
        threshold=threshold,
    )
    recalled = neural_recall(key, weights, after.anchor, learning=learning)[:, :, 0]
    alike = normalize(recalled, dim=-1) @ normalize(value[:, :, 0], dim=-1).mT
    right = alike.argmax(dim=-1) == torch.arange(bench.pairs)
    return right[~outlier[..., 0]].float().mean().item()


def run(bench: OutliersBench, command: str) -> Path:
    """Measure what is missing, and return the table's file.

    Raises ValueError if the directory holds results of other settings.
    """
    settle(bench.out, {k: v for k, v in dataclasses.asdict(bench).items() if k != "out"})
    records = Records(bench.out / "scores.jsonl", _SCORES)
    for contestant in CONTESTANTS:
        config = config_of(bench, contestant)
        for times in bench.times:
            for seed in bench.seeds:
                asked = {"memory": contestant, "times": float(times), "seed": seed}
                if not records.find(**asked):
                    right = share_right(bench, config, times, seed)
                    records.append(asked | {"right": right, "command": command, "commit": version()})
    path = bench.out / "outliers.md"
    write_atomically(path, _report(bench, records, command))
    return path


def _report(bench: OutliersBench, records: Records, command: str) -> str:
    rows = []
    for contestant in CONTESTANTS:
        found = (
            [row["right"] for row in records.find(memory=contestant, times=float(times))]
            for times in bench.times
        )
        rows.append([contestant, *map(spread_in_words, found)])
    text = (
        f"Pairs that are no outliers whose value is recalled, interquartile mean over {len(bench.seeds)} "
        f"seeds with the least and the most; {bench.rows} rows of {bench.pairs} pairs of width "
        f"{bench.width}, in chunks of {bench.chunk_size}; of {bench.share:.1%} of pairs the value is as many "
        f"times as long as the column says. Chance is {1 / bench.pairs:.3f}."
    )
    columns = ["memory", *(f"{times:g}" for times in bench.times)]
    return "\n\n".join([header(command), text, markdown(columns, rows)]) + "\n"


def main() -> int:
    """Measure and print; return the exit code."""
    return run_probe("outliers", OutliersBench, __doc__, run)


if __name__ == "__main__":
    sys.exit(main())
