"""`scrubjay kagentbench`: score predictions on KAgentBench."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from scrubjay.experiments import files as json_reader
from scrubjay.experiments.cli.arguments import parse
from scrubjay.experiments.cli.terminal import bad_input, table
from scrubjay.experiments.lm.kagentbench import WEIGHTS, join, score
from scrubjay.experiments.progress import ProgressLines


@dataclass(frozen=True)
class KAgentBenchOptions:
    """Score predictions on KAgentBench. Its data are at huggingface.co/datasets/kwaikeg/KAgentBench."""

    file: Positional[Path]
    """Benchmark file benchmark_eval.jsonl: records with id, type, golden_result_list, funcs,
    memory_last_task."""
    predictions: Positional[Path | None] = None
    """Predictions file: records with id and model_predict. Default: use model_predict in the benchmark
    file."""
    json: bool = False
    """Print the scores as one JSON object."""


def run(argv: Sequence[str]) -> int:
    """`scrubjay kagentbench FILE [PREDICTIONS]`."""
    options = parse(KAgentBenchOptions, argv, "scrubjay kagentbench")
    with bad_input():
        return run_kagentbench(options)


def run_kagentbench(options: KAgentBenchOptions) -> int:
    """Print the scores; return the exit code. Raises ValueError or OSError on invalid files."""
    records = list(_read(options.file))
    if options.predictions is not None:
        records = join(records, list(_read(options.predictions)))
    lines = ProgressLines()
    result = score(records, lambda done: lines(lambda: f"scored {done:,} of {len(records):,}"))
    if options.json:
        percent = {name: 100 * value for name, value in result.scores.items()}
        print(json.dumps({"scores": percent, "queries": result.counts, "overall": _percent(result.overall)}))
        return 0
    rows = [("ability", "queries", "weight", "score")]
    for name, weight in WEIGHTS.items():
        count = str(result.counts.get(name, 0))
        rows.append((name, count, f"{weight:.2f}", _format_score(result.scores.get(name))))
    print(table([*rows, ("overall", str(len(records)), "1.00", _format_score(result.overall))]))
    return 0


def _read(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(json_reader.read_text(path).split("\n"), 1):
        if line.strip():
            record = json_reader.parse(line, f"{path}, line {number}")
            if not isinstance(record, dict) or not isinstance(record.get("id"), str | int):
                raise ValueError(
                    f"{path}, line {number}: not a valid record; its id must be a string or an integer"
                )
            yield record


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _format_score(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
