"""The scores behind a comparison's tables, a line of JSON each, for whoever draws their own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scrubjay.experiments.kinds.supervised import SupervisedConfig
from scrubjay.experiments.recipes.registry import longer_of
from scrubjay.experiments.run import Run
from scrubjay.experiments.runs.directory import write_atomically
from scrubjay.experiments.runs.provenance import version


def write_scores(
    runs: Sequence[Run], longer: Mapping[Path, Mapping[int, float]], out: Path, command: str
) -> Path:
    """Write scores.jsonl: task, memory, seed, test, score, return, steps, command and commit of each.

    `longer` has the scores of each run's policy by the value of what makes its task longer.
    """
    made_by = {"command": command, "commit": version()}
    lines = [json.dumps({**row, **made_by}) + "\n" for run in runs for row in _rows(run, longer[run.path])]
    path = out / "scores.jsonl"
    write_atomically(path, "".join(lines))
    return path


def _rows(run: Run, longer: Mapping[int, float]) -> Iterator[dict[str, Any]]:
    config, result = run.config, run.result
    about = {"task": config.recipe, "memory": config.label, "seed": config.seed, "steps": result["step"]}
    measure = "success" if "success" in result else "episodic_return"
    score = {"measure": measure, "score": result[measure]}
    if "episodic_return" in result:
        score["return"] = result["episodic_return"]
    bounds = {name: result[f"{measure}_{name}"] for name in ("low", "high") if f"{measure}_{name}" in result}
    yield {**about, "test": {}, **score, **bounds}
    setting = longer_of(config.recipe)
    for value, found in longer.items():
        assert setting is not None  # or there were no scores
        yield {**about, "test": {setting[0]: value}, "measure": measure, "score": found}
    if isinstance(config, SupervisedConfig):
        for (count, span), found in config.accuracies(result).items():
            test = dict(zip(config.axes, (count, span), strict=True))
            yield {**about, "test": test, "measure": "success", "score": found}
