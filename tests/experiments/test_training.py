"""Training from Python: who is called meanwhile, and what cannot begin."""

from __future__ import annotations

import shutil

import pytest

from scrubjay.experiments import Run, resume, train
from scrubjay.experiments.runs.directory import lock
from scrubjay.experiments.training import CannotBeginError


def test_every_update_is_told_with_its_row(tiny, tmp_path):
    told = []
    run = train(tiny(), tmp_path / "run", on_update=lambda step, row: told.append({**row, "step": step}))
    assert len(told) > 1
    assert told == run.metrics()


def test_what_a_listener_raises_ends_the_training_and_it_can_go_on(tiny, tmp_path):
    def listen(step, row):
        raise RuntimeError("no more disk")

    with pytest.raises(RuntimeError, match="no more disk"):
        train(tiny(), tmp_path / "run", on_update=listen)
    assert resume(tmp_path / "run").finished


def test_a_run_in_use_is_not_trained_twice(tiny, tmp_path):
    def listen(step, row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny(), tmp_path / "run", on_update=listen)
    with lock(tmp_path / "run"), pytest.raises(CannotBeginError, match="run"):
        resume(tmp_path / "run")
    assert resume(tmp_path / "run").finished


@pytest.mark.parametrize("name", ["environment.json", "metrics.jsonl"])
def test_what_the_curve_is_drawn_from_is_read_before_anything_is_trained(name, finished_run, tmp_path):
    copy = shutil.copytree(finished_run.path, tmp_path / "run")
    (copy / name).write_text("[3.5]\n" * 9999)
    with pytest.raises(CannotBeginError, match=name):
        resume(copy, total_steps=384)
    assert Run.load(copy).step == 192
    assert Run.load(copy).finished
