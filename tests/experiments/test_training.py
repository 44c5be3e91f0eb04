"""Training from Python: callbacks after each update, and runs that cannot start."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from scrubjay.experiments import EnvConfig, Run, progress, resume, train, training
from scrubjay.experiments.files import lock
from scrubjay.experiments.runs.status import write_status
from scrubjay.experiments.training import TrainingStartError, run_training


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


LAMP = """
import gymnasium

class Lamp(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Discrete(2)
    last_step = 100

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return 0, {}

    def step(self, action):
        self.time += 1
        Lamp.last_step -= 1
        if Lamp.last_step == 0:
            raise OSError("the bulb\\nbroke")
        return 0, float(action), self.time == 4, False, {"is_success": bool(action)}
"""


@pytest.fixture
def lamp(tmp_path, monkeypatch):
    """Config of an environment whose code fails at its 100th step; each episode has 4 steps."""
    (tmp_path / "lamp.py").write_text(LAMP)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield EnvConfig("lamp:Lamp", num_envs=2)
    sys.modules.pop("lamp", None)


def test_a_run_that_failed_says_so_until_it_is_resumed(tiny, tmp_path, lamp):
    with pytest.raises(Exception, match="the bulb"):
        train(tiny(env=lamp, total_steps=160), tmp_path / "run")
    run = Run.load(tmp_path / "run")
    assert (run.status, run.is_finished) == ("failed", False)
    fields = json.loads((run.path / "result.json").read_text())
    assert fields["status"] == "failed"
    assert 0 < fields["step"] < 160
    assert "the bulb broke" in fields["error"]
    with pytest.raises(ValueError, match=r"is not finished \(failed\); resume with: scrubjay resume"):
        _ = run.result
    result = resume(run.path).result
    assert run.status == "finished"
    assert "status" not in result
    assert 0 <= result["success"] <= 1


def test_a_run_that_was_stopped_early_is_not_finished_and_continues_exactly(tiny, tmp_path, assert_same):
    class StopError(Exception):
        """Stop of a search."""

    def stop(step, row):
        if step >= 96:
            raise StopError

    with pytest.raises(StopError):
        train(tiny(checkpoint_seconds=0), tmp_path / "run", on_update=stop)
    run = Run.load(tmp_path / "run")
    assert run.status == "unfinished"
    write_status(run.path, "stopped early", 96)
    assert (run.status, run.is_finished, run.step) == ("stopped early", False, 96)
    with pytest.raises(ValueError, match=r"is not finished \(stopped early\)"):
        _ = run.result
    with pytest.raises(StopError):
        run_training(run, on_update=stop)
    assert run.status == "unfinished", "the old status does not outlast the training that continues it"
    write_status(run.path, "stopped early", 96)
    assert_same(resume(run.path), train(tiny(checkpoint_seconds=0), tmp_path / "whole"))


def test_a_status_replaces_no_result(finished_run, tmp_path):
    copy = shutil.copytree(finished_run.path, tmp_path / "run")
    write_status(copy, "stopped early", 8)
    assert Run.load(copy).result == finished_run.result


@pytest.mark.parametrize("status", ['"won"', "3", "[]", "{}", "null"])
def test_a_status_that_does_not_exist_is_damage(status, finished_run, tmp_path):
    copy = shutil.copytree(finished_run.path, tmp_path / "run")
    (copy / "result.json").write_text(f'{{"status": {status}}}')
    with pytest.raises(ValueError, match=r"result\.json is damaged: status="):
        _ = Run.load(copy).result


def test_a_run_in_use_is_not_trained_twice(tiny, tmp_path):
    def listen(step, row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny(), tmp_path / "run", on_update=listen)
    with lock(tmp_path / "run"), pytest.raises(TrainingStartError, match="run"):
        resume(tmp_path / "run")
    assert resume(tmp_path / "run").is_finished


def test_a_run_that_another_process_has_extended_is_loaded_again(tiny, tmp_path):
    """Otherwise the old process would evaluate the run in the middle of its new steps."""
    train(tiny(), tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    old = Run.load(tmp_path / "run")

    def listen(step, row):
        if step >= 224:
            raise KeyboardInterrupt

    longer = Run.load(tmp_path / "run").with_total_steps(384)
    with pytest.raises(KeyboardInterrupt):
        run_training(longer, on_update=listen)
    for run in (old, old.with_total_steps(320)):
        with pytest.raises(TrainingStartError, match="was extended by another process since it was loaded"):
            run_training(run)
    assert longer.status == "unfinished"
    assert resume(tmp_path / "run").result["step"] == 384


def test_a_run_that_another_process_has_finished_is_left_alone(tiny, tmp_path):
    old = Run.create(tiny(), tmp_path / "run")
    resume(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in old.path.rglob("*") if path.is_file()}
    run_training(old)
    after = {path: path.stat().st_mtime_ns for path in old.path.rglob("*") if path.is_file()}
    changes = {path.name for path in after if after[path] != before.get(path)}
    assert {name for name in changes if "tfevents" not in name} <= {".lock"}


def test_a_long_evaluation_is_shown_in_place_of_the_metrics(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "LINE_SECONDS", -1.0)
    monkeypatch.setattr(progress, "PLAIN_SECONDS", -1.0)
    train(tiny(eval_every=64, eval_every_episodes=3), tmp_path / "run", progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny gru s0  32/192  success ")
    notes = [line for line in lines if line.startswith("tiny gru s0  64/192  evaluation: ")]
    counts = [int(line.split("evaluation: ")[1].split()[0]) for line in notes]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 3)


@pytest.mark.parametrize("name", ["environment.json", "metrics.jsonl"])
def test_files_for_the_curve_are_validated_before_training(name, finished_run, tmp_path):
    copy = shutil.copytree(finished_run.path, tmp_path / "run")
    (copy / name).write_text("[3.5]\n" * 9999)
    with pytest.raises(TrainingStartError, match=name):
        resume(copy, total_steps=384)
    assert Run.load(copy).step == 192
    assert Run.load(copy).is_finished
