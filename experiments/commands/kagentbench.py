"""`scrubjay kagentbench`: the score of KAgentBench for predictions in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from scrubjay.experiments.language.scores import WEIGHTS, join, score
from scrubjay.experiments.runs import reading
from scrubjay.experiments.runs.progress import Lines
from scrubjay.experiments.words.arguments import parse
from scrubjay.experiments.words.terminal import bad_input, table


@dataclass(frozen=True)
class KAgentBenchOptions:
    """Score predictions on KAgentBench. Bring its data: huggingface.co/datasets/kwaikeg/KAgentBench."""

    file: Positional[Path]
    """benchmark_eval.jsonl: records with id, type, golden_result_list, funcs, memory_last_task."""
    predictions: Positional[Path | None] = None
    """Records with id and model_predict; default: the file holds them too."""
    json: bool = False
    """Print one JSON object."""


def run(words: Sequence[str]) -> int:
    """`scrubjay kagentbench FILE [PREDICTIONS]`."""
    options = parse(KAgentBenchOptions, words, "scrubjay kagentbench")
    with bad_input():
        return run_kagentbench(options)


def run_kagentbench(options: KAgentBenchOptions) -> int:
    """Score and print; return the exit code. Raises ValueError or OSError on files that do not fit."""
    records = list(_read(options.file))
    if options.predictions is not None:
        records = join(records, list(_read(options.predictions)))
    lines = Lines()
    result = score(records, lambda done: lines(lambda: f"scored {done:,} of {len(records):,}"))
    if options.json:
        percent = {name: 100 * value for name, value in result.scores.items()}
        print(json.dumps({"scores": percent, "queries": result.counts, "overall": _percent(result.overall)}))
        return 0
    rows = [("ability", "queries", "weight", "score")]
    for name, weight in WEIGHTS.items():
        count = str(result.counts.get(name, 0))
        rows.append((name, count, f"{weight:.2f}", _shown(result.scores.get(name))))
    print(table([*rows, ("overall", str(len(records)), "1.00", _shown(result.overall))]))
    return 0


def _read(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(reading.read_text(path).split("\n"), 1):
        if line.strip():
            record = reading.parse(line, f"{path}, line {number}")
            if not isinstance(record, dict) or not isinstance(record.get("id"), str | int):
                raise ValueError(
                    f"{path}, line {number} is no record: it needs an id, a text or a whole number"
                )
            yield record


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
