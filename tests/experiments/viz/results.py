"""Runs with synthetic results, without training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from scrubjay.experiments import Run
from scrubjay.experiments.runs.sequence import SequenceTaskConfig
from scrubjay.experiments.tasks.sequences import MQAR
from scrubjay.memory import make_config

CONFIG = SequenceTaskConfig(
    recipe="tiny-mqar",
    suite=MQAR(vocab_size=20, length=16, num_items=4),
    eval_items=(2,),
    eval_longer=(2,),
)


def create_finished_run(path: Path, config: Any, **result: Any) -> Run:
    """Create a run with this result."""
    run = Run.create(config, path)
    (run.path / "result.json").write_text(json.dumps({"step": 100, "seconds": 4.0, **result}))
    row = {"step": 100, "charts/success": 0.5, "charts/episodic_return": 0.5}
    (run.path / "metrics.jsonl").write_text(f"{json.dumps({**row, 'step': 50})}\n{json.dumps(row)}\n")
    return run


def create_answer_run(
    folder: Path, memory: str, seed: int, right: dict[tuple[int, int], int], state: int
) -> Run:
    """Create a run with the number of right answers out of ten by number of items and length."""
    count, span = CONFIG.axes
    tests = [
        {count: items, span: length, "right": hits, "asked": 10} for (items, length), hits in right.items()
    ]
    config = dataclasses.replace(CONFIG, memory=make_config(memory, dim=8), seed=seed)
    success = right[CONFIG.train_sizes] / 10
    return create_finished_run(
        folder / f"{memory}-{seed}", config, tests=tests, success=success, parameters=1234, state_bytes=state
    )
