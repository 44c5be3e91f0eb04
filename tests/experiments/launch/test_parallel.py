"""Parallel training: the estimate of the remaining time, and runs with other settings."""

import json

import pytest

from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.launch import parallel
from scrubjay.experiments.launch.parallel import _Estimate, prepare
from scrubjay.experiments.runs.run import Run


def test_the_remaining_time_counts_all_runs_and_only_the_steps_trained_now(tiny, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(parallel.time, "monotonic", lambda: clock[0])
    runs = [Run.create(tiny(seed=seed), tmp_path / str(seed)) for seed in range(2)]
    total = sum(run.config.planned_steps for run in runs)
    (runs[0].path / "metrics.jsonl").write_text(json.dumps({"step": 32}) + "\n")
    estimate = _Estimate(runs)
    assert estimate.describe() == ""
    clock[0] = 8.0
    estimate.steps[runs[1].path] = 16  # two steps a second
    assert estimate.describe() == f"ETA {(total - 48) / 2:,.0f} s"


def test_differing_settings_are_named(tiny, tmp_path):
    Run.create(tiny(), tmp_path / "run")
    with pytest.raises(UsageError, match=r"other settings: seed is 3 here and 0 there; use the same"):
        prepare(tiny(seed=3), tmp_path / "run")
