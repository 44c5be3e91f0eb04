"""Stopped and killed runs: their resumed result equals that of an uninterrupted run, bit for bit."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scrubjay.agents import PPOConfig
from scrubjay.experiments import EnvConfig, Run, resume, train
from scrubjay.experiments.progress import loss_warnings
from scrubjay.experiments.runs.engine import LocalEngine

UPDATES = 120


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def long_enough_to_kill(tiny: Callable, **fields: object):
    return tiny(total_steps=UPDATES * 32, checkpoint_seconds=0.1, **fields)


def wait_for_step(process: subprocess.Popen[str], run: Run, step: int) -> None:
    """Wait until there is a checkpoint at or after `step` and a row of metrics newer than it."""
    while process.poll() is None:
        rows = run.metrics()
        if run.step >= step and rows and rows[-1]["step"] > run.step:
            return
        time.sleep(0.005)
    raise AssertionError(f"ended too early: {process.communicate()}")


def tear(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny: Callable) -> Run:
    """Return a run that is not interrupted."""
    return train(long_enough_to_kill(tiny, memory="lstm"), tmp_path_factory.mktemp("runs") / "reference")


@pytest.mark.slow
def test_killed_and_torn_and_resumed_equals_never_stopped(reference, start, tmp_path, assert_same):
    config = reference.config
    run = Run.create(config, tmp_path / "killed")
    for step in (1, 1200):
        process = start("resume", run.path, "--quiet")
        wait_for_step(process, run, step)
        process.kill()
        process.wait()
        assert process.returncode == -signal.SIGKILL
        assert not run.is_finished
    newest = run.latest
    assert newest is not None
    tear(newest)
    assert run.latest != newest
    resume(run.path)
    assert_same(run, reference)


@pytest.mark.slow
def test_ctrl_c_finishes_the_update_and_says_how_to_go_on(reference, start, tmp_path, assert_same):
    config = reference.config
    run = Run.create(config, tmp_path / "stopped")
    process = start("resume", run.path)
    wait_for_step(process, run, 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert f"scrubjay resume {run.path}" in out
    assert "Traceback" not in err
    assert run.step == run.metrics()[-1]["step"] < UPDATES * 32
    resume(run.path)
    assert_same(run, reference)


def test_a_kill_before_the_first_checkpoint_starts_over(tiny, tmp_path, assert_same):
    config = tiny()
    reference = train(config, tmp_path / "reference")
    run = Run.create(config, tmp_path / "killed")
    with LocalEngine(config, run.path) as engine:
        engine.update()
    assert len(run.metrics()) == 1
    resume(run.path)
    assert_same(run, reference)


def test_a_diverged_run_is_stopped_and_resumed_like_any_other(tiny, tmp_path, record):
    """Non-finite weights are not saved as a checkpoint; the checkpoint before them stays."""
    config = tiny(learner=PPOConfig(learning_rate=1e30, num_minibatches=1))
    reference = train(config, tmp_path / "reference")
    assert loss_warnings(reference.metrics()[-1])
    run = Run.create(config, tmp_path / "stopped")
    with LocalEngine(config, run.path) as engine:
        while not loss_warnings(engine.update()):
            engine.save()
        engine.save()
    resume(run.path)
    assert record(run) == record(reference)
    assert {**run.result, "seconds": 0} == {**reference.result, "seconds": 0}


def test_tensorboard_shows_no_step_twice_after_resume(tiny, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run.create(tiny(), tmp_path / "run")
    # TensorBoard reads files in the order of the second in their names; a resumed run has a later one.
    now = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() - 60)
        with LocalEngine(tiny(), run.path) as engine:
            engine.update()
            engine.save()
            engine.update()  # lost, as no checkpoint follows
    resume(run.path)
    events = EventAccumulator(str(run.path))
    events.Reload()
    steps = [event.step for event in events.Scalars("losses/policy_loss")]
    assert steps == [row["step"] for row in run.metrics()]


def test_environments_without_state_resume_with_fresh_episodes_and_say_so(tiny, tmp_path, caplog):
    config = tiny(env=EnvConfig("CartPole-v1", num_envs=4))
    run = Run.create(config, tmp_path / "run")
    with LocalEngine(config, run.path) as engine:
        engine.update()
        engine.save()
    with caplog.at_level(logging.WARNING):
        resume(run.path)
    assert "CartPole-v1" in caplog.text
    assert "new episodes" in caplog.text
    assert run.is_finished
    assert [row["step"] for row in run.metrics()] == [32 * update for update in range(1, 7)]


def test_a_finished_run_is_left_alone(finished_run):
    before = {path: path.stat().st_mtime_ns for path in finished_run.path.rglob("*")}
    resume(finished_run.path)
    assert before == {path: path.stat().st_mtime_ns for path in finished_run.path.rglob("*")}


def test_no_run_is_overwritten(finished_run, tiny):
    with pytest.raises(ValueError, match=f"scrubjay resume {finished_run.path}"):
        train(tiny(), finished_run.path)


def test_another_seed_gives_another_run(tiny, tmp_path, finished_run, record):
    other = train(dataclasses.replace(tiny(), seed=1), tmp_path / "other")
    assert record(other) != record(finished_run)
