"""Runs that were never trained: a config, and a result that is made up."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from scrubjay.experiments import Run
from scrubjay.experiments.kinds.sequence import SequenceTaskConfig
from scrubjay.experiments.tasks.suites import MQAR
from scrubjay.memory import make_config

CONFIG = SequenceTaskConfig(
    recipe="tiny-mqar",
    suite=MQAR(vocab_size=20, length=16, num_items=4),
    eval_items=(2,),
    eval_longer=(2,),
)


def finished(path: Path, config: Any, **result: Any) -> Run:
    """Return a run with that result."""
    run = Run.create(config, path)
    (run.path / "result.json").write_text(json.dumps({"step": 100, "seconds": 4.0, **result}))
    row = {"step": 100, "charts/success": 0.5, "charts/episodic_return": 0.5}
    (run.path / "metrics.jsonl").write_text(f"{json.dumps({**row, 'step': 50})}\n{json.dumps(row)}\n")
    return run


def answered(folder: Path, memory: str, seed: int, right: dict[tuple[int, int], int], state: int) -> Run:
    """Return a run that answered so many questions of ten, by things to remember and length."""
    count, span = CONFIG.axes
    tests = [
        {count: items, span: length, "right": hits, "asked": 10} for (items, length), hits in right.items()
    ]
    config = dataclasses.replace(CONFIG, memory=make_config(memory, dim=8), seed=seed)
    success = right[CONFIG.trained] / 10
    return finished(
        folder / f"{memory}-{seed}", config, tests=tests, success=success, parameters=1234, state_bytes=state
    )
