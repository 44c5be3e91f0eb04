from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.experiments import EnvConfig, Run, TrainConfig, resume, train
from scrubjay.experiments.commands.main import main
from scrubjay.experiments.launch import parallel
from scrubjay.experiments.runs.checkpoint import load_weights
from scrubjay.memory import make_config


def make_tiny(memory: str = "gru", **fields: Any) -> TrainConfig:
    """Return a config of 6 updates on a maze of 4 cells, which trains in under a second."""
    settings: dict[str, Any] = {
        "recipe": "tiny",
        "env": EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 4}, num_envs=4),
        "policy": PolicyConfig(memory=make_config(memory, dim=16)),
        "learner": PPOConfig(epochs=1, num_minibatches=2),
        "total_steps": 192,
        "segment_length": 8,
        "device": "cpu",
        "eval_episodes": 5,
    }
    return TrainConfig(**{**settings, **fields})


@pytest.fixture(scope="session")
def tiny() -> Callable[..., TrainConfig]:
    return make_tiny


def is_timing(name: str) -> bool:
    """Return True if a column depends on the machine's speed and differs between runs with the same seed."""
    return name.startswith("time/") or name == "charts/SPS"


def _record(run: Run) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if not is_timing(name)} for row in run.metrics()]


@pytest.fixture
def record() -> Callable[[Run], list[dict[str, float]]]:
    """Return a function from a run to its metrics rows without timing columns."""
    return _record


@pytest.fixture
def assert_same() -> Callable[[Run, Run], None]:
    """Return a function that asserts that two finished runs are equal, bit for bit."""

    def compare(run: Run, reference: Run) -> None:
        assert len(run.metrics()) == len(reference.metrics())
        assert _record(run) == _record(reference)
        assert run.latest is not None
        assert reference.latest is not None
        weights, expected = load_weights(run.latest), load_weights(reference.latest)
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        assert {**run.result, "seconds": 0} == {**reference.result, "seconds": 0}

    return compare


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Path]:
    """Start Ray for a file's tests; return a folder whose modules workers can import.

    The cluster has four CPUs on any machine: the tests check processes, not speed.
    """
    import ray  # slow import, which most tests of this folder do not need

    folder = tmp_path_factory.mktemp("modules")
    source = pytestconfig.rootpath / "src"  # workers import the source tree, not an installed package
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{folder}{os.pathsep}{source}"}},
        )
        yield folder
        ray.shutdown()


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Return a function that starts the real command in an empty directory, without access to the cluster."""

    def popen(*arguments: object) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return subprocess.Popen(
            [sys.executable, "-m", "scrubjay", *map(str, arguments)],
            cwd=tmp_path,
            env={**environment, "OMP_NUM_THREADS": "1", "COLUMNS": "60"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return popen


@pytest.fixture
def scrubjay(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the real command and returns its exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        process = start(*arguments)
        out, err = process.communicate()
        return process.returncode, out, err

    return run


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Like `scrubjay`, but call `main` in this process, which is faster, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(word) for word in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Return a function like `here` for commands that must fail; it returns the one error line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # By default, launch may enable tokens for the whole process, and this process starts clusters later.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")

    def run(*arguments: object) -> str:
        assert main([str(word) for word in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
        return err

    return run


@pytest.fixture
def trained_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the runs of a comparison in this process, one by one; the demo tests parallel processes."""

    def run_here(runs: Sequence[Run], jobs: int) -> None:
        for run in runs:
            if not run.is_finished:
                resume(run.path)

    monkeypatch.setattr(parallel, "run_in_processes", run_here)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a finished run whose files no test may change."""
    return train(make_tiny(), tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="session")
def evaluating() -> TrainConfig:
    """Return a config with an evaluation after every second of 6 updates; its policy changes fast."""
    learner = PPOConfig(learning_rate=0.03, num_minibatches=2)
    return make_tiny(eval_every=60, eval_every_episodes=6, learner=learner)


@pytest.fixture(scope="session")
def evaluated_run(tmp_path_factory: pytest.TempPathFactory, evaluating: TrainConfig) -> Run:
    """Return a finished run with evaluations during training, whose files no test may change."""
    return train(evaluating, tmp_path_factory.mktemp("runs") / "evaluated")
