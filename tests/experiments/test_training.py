"""Training from Python: callbacks after each update, and runs that cannot start."""

from __future__ import annotations

import shutil

import pytest

from scrubjay.experiments import Run, resume, train
from scrubjay.experiments.files import lock
from scrubjay.experiments.training import TrainingStartError


def test_every_update_is_reported_with_its_row(tiny, tmp_path):
    rows = []
    run = train(tiny(), tmp_path / "run", on_update=lambda step, row: rows.append({**row, "step": step}))
    assert len(rows) > 1
    assert rows == run.metrics()


def test_an_error_in_a_callback_ends_training_which_can_be_resumed(tiny, tmp_path):
    def listen(step, row):
        raise RuntimeError("no more disk")

    with pytest.raises(RuntimeError, match="no more disk"):
        train(tiny(), tmp_path / "run", on_update=listen)
    assert resume(tmp_path / "run").is_finished


def test_a_run_in_use_is_not_trained_twice(tiny, tmp_path):
    def listen(step, row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny(), tmp_path / "run", on_update=listen)
    with lock(tmp_path / "run"), pytest.raises(TrainingStartError, match="run"):
        resume(tmp_path / "run")
    assert resume(tmp_path / "run").is_finished


@pytest.mark.parametrize("name", ["environment.json", "metrics.jsonl"])
def test_files_for_the_curve_are_validated_before_training(name, finished_run, tmp_path):
    copy = shutil.copytree(finished_run.path, tmp_path / "run")
    (copy / name).write_text("[3.5]\n" * 9999)
    with pytest.raises(TrainingStartError, match=name):
        resume(copy, total_steps=384)
    assert Run.load(copy).step == 192
    assert Run.load(copy).is_finished
