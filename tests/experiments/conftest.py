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
from scrubjay.experiments.cli import main
from scrubjay.experiments.launching import parallel
from scrubjay.experiments.runs.checkpoint import load_weights
from scrubjay.experiments.runs.metrics import is_timing
from scrubjay.memory import make_config


def make_tiny(memory: str = "gru", **fields: Any) -> TrainConfig:
    """6 updates on a maze of 4 cells: well under a second."""
    settings: dict[str, Any] = {
        "recipe": "tiny",
        "env": EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 4}, num_envs=4),
        "policy": PolicyConfig(memory=make_config(memory, dim=16)),
        "ppo": PPOConfig(epochs=1, num_minibatches=2),
        "total_steps": 192,
        "segment_length": 8,
        "device": "cpu",
        "eval_episodes": 5,
    }
    return TrainConfig(**{**settings, **fields})


@pytest.fixture(scope="session")
def tiny() -> Callable[..., TrainConfig]:
    return make_tiny


def _record(run: Run) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if not is_timing(name)} for row in run.metrics()]


@pytest.fixture
def record() -> Callable[[Run], list[dict[str, float]]]:
    """Return a run's rows without what depends on the machine's speed."""
    return _record


@pytest.fixture
def assert_same() -> Callable[[Run, Run], None]:
    """Assert that two finished runs are one, bit for bit."""

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

    Four CPUs, whatever the machine has: the tests are about processes, not about speed.
    """
    import ray  # not for every test of this folder

    folder = tmp_path_factory.mktemp("modules")
    source = pytestconfig.rootpath / "src"  # workers run what is tested, not what is installed
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
    """Start the real command in an empty directory, with no cluster of this process's to join."""

    def popen(*words: object) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return subprocess.Popen(
            [sys.executable, "-m", "scrubjay.experiments.cli", *map(str, words)],
            cwd=tmp_path,
            env={**environment, "OMP_NUM_THREADS": "1", "COLUMNS": "60"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return popen


@pytest.fixture
def scrubjay(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., tuple[int, str, str]]:
    """Run the real command to its end; returns its exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        process = start(*words)
        out, err = process.communicate()
        return process.returncode, out, err

    return run


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """As `scrubjay`, without the seconds that a process takes: main in this one, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run the words in this process, in an empty directory; return the one line that refuses them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # Unless told, launch may switch tokens on for its whole process, and this one goes on to start clusters.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")

    def run(*words: object) -> str:
        assert main([str(word) for word in words]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
        return err

    return run


@pytest.fixture
def trained_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train here what a comparison trains, one after the other; processes of runs are the demo's to test."""

    def run_here(runs: Sequence[Run], jobs: int) -> None:
        for run in runs:
            if not run.finished:
                resume(run.path)

    monkeypatch.setattr(parallel, "run_in_processes", run_here)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One trained run whose record and checkpoints no test changes."""
    return train(make_tiny(), tmp_path_factory.mktemp("runs") / "finished")
