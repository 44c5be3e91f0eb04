"""Scores of a comparison as JSON lines, for custom plots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scrubjay.experiments.experiment_types.supervised import SupervisedConfig
from scrubjay.experiments.recipes.registry import longer_range
from scrubjay.experiments.run import Run
from scrubjay.experiments.runs.directory import write_atomically
from scrubjay.experiments.runs.provenance import version


def write_scores(
    runs: Sequence[Run], longer: Mapping[Path, Mapping[int, float]], out: Path, command: str
) -> Path:
    """Write scores.jsonl with task, memory, seed, test, score, return, steps, command and commit per line.

    `longer` maps the path of each run to its scores on longer tasks: a dict from the value of the task's
    length setting to the score.
    """
    provenance = {"command": command, "commit": version()}
    lines = [json.dumps({**row, **provenance}) + "\n" for run in runs for row in _rows(run, longer[run.path])]
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
    setting = longer_range(config.recipe)
    for value, score in longer.items():
        assert setting is not None  # otherwise there are no scores
        yield {**about, "test": {setting[0]: value}, "measure": measure, "score": score}
    if isinstance(config, SupervisedConfig):
        for (count, span), score in config.accuracies(result).items():
            test = dict(zip(config.axes, (count, span), strict=True))
            yield {**about, "test": test, "measure": "success", "score": score}
