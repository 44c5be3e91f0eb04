"""`scrubjay launch` against a real head with its dashboard."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

from scrubjay.experiments import Run

BIN = str(Path(sys.executable).parent)
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "COLUMNS": "100",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scrubjay.experiments.cli", "launch", *map(str, words)],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def head():
    port = free_port()
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # sockets lie in it: a long path is too long
    ports = ["--port=0", f"--dashboard-port={port}", "--dashboard-agent-listen-port=0"]
    options = ["--include-dashboard=true", "--num-cpus=2", f"--temp-dir={folder}", "--disable-usage-stats"]
    process = subprocess.Popen(
        [f"{BIN}/ray", "start", "--head", "--block", *ports, "--dashboard-host=127.0.0.1", *options],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(address, timeout=5)
            break
        except OSError:
            assert time.monotonic() < deadline, "the dashboard never answered"
            time.sleep(0.5)
    yield address
    process.terminate()
    process.wait(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_trains_is_followed_and_its_exit_code_returned(head, tmp_path):
    run_dir = tmp_path / "on the head"
    sizes = ["--total-steps", 4096, "--eval-episodes", 5, "--num-env-runners", 1, "--quiet"]
    done = launch(tmp_path, "tmaze-demo", "--address", head, "--run-dir", run_dir, *sizes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 node, 2 CPUs" in done.stdout
    assert "done: return" in done.stdout
    assert Run.load(run_dir).step == 4096
    again = launch(tmp_path, "--resume", run_dir, "--address", head)
    assert again.returncode == 0
    assert "is finished" in again.stdout
    # What only the cluster can know is told by the job, with its own exit code.
    many = launch(
        tmp_path, "tmaze-demo", "--address", head, "--num-env-runners", 3, "--run-dir", tmp_path / "many"
    )
    assert many.returncode == 2
    assert "the cluster has 2" in many.stdout
    detached = launch(tmp_path, "--resume", run_dir, "--address", head, "--detach")
    assert detached.returncode == 0
    assert f"stop: ray job stop --address {head} raysubmit_" in detached.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_trains_a_run_further_and_begins_another_with_its_weights(head, tmp_path):
    sizes = ["--env.num-envs", 4, "--segment-length", 8, "--eval-episodes", 1, "--quiet"]
    first, second = tmp_path / "first", tmp_path / "second"
    told = launch(tmp_path, "tmaze-demo", "--address", head, "--run-dir", first, "--total-steps", 64, *sizes)
    assert told.returncode == 0, told.stdout + told.stderr
    further = launch(tmp_path, "--resume", first, "--address", head, "--total-steps", 128)
    assert further.returncode == 0, further.stdout + further.stderr
    assert Run.load(first).result["step"] == 128
    words = ["--run-dir", second, "--total-steps", 64, "--init-from", first]
    begun = launch(tmp_path, "tmaze-demo", "--address", head, *words, *sizes)
    assert begun.returncode == 0, begun.stdout + begun.stderr
    assert f"weights of {first} at step 128" in begun.stdout
    assert Run.load(second).result["step"] == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tmaze-demo"], "launch needs --address http://HEAD:8265"),
        (["--address", "http://127.0.0.1:1"], "launch needs a recipe, or --resume DIR"),
        (
            ["tmaze", "--address", "http://127.0.0.1:1"],
            "no dashboard at http://127.0.0.1:1: <urlopen error [Errno 111] Connection refused>",
        ),
        (["tmaze", "--address", "127.0.0.1:1"], "write it as http://HEAD:8265"),
        (["tmaze", "--address", "http://127.0.0.1:1", "--num-env-runners", "65"], "num_env_runners=65"),
        (["tmaze-demmo", "--address", "http://127.0.0.1:1"], "did you mean 'tmaze-demo'"),
        (["tmaze", "--engine", "local", "--address", "http://127.0.0.1:1"], "launch is of --engine ray"),
        (["--resume", "x", "--run-dir", "y", "--address", "http://127.0.0.1:1"], "leave --run-dir away"),
        (["--resume", "x", "--address", "http://127.0.0.1:1", "--seed", "3"], "unexpected argument '--seed'"),
        (["--resume", "x", "--address", "http://127.0.0.1:1", "--total-steps", "ten"], "--total-steps='ten'"),
        (
            ["--resume", "x", "--address", "http://127.0.0.1:1", "--total-steps"],
            "--total-steps needs a value",
        ),
    ],
)
def test_wrong_flags_are_one_line(words, message, refused):
    assert message in refused("launch", *words)


def test_a_server_that_never_answers_is_not_waited_for(refused, monkeypatch):
    monkeypatch.setattr("scrubjay.experiments.launching.launch._REACH_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"http://127.0.0.1:{mute.getsockname()[1]}"
        assert "no dashboard at" in refused("launch", "tmaze", "--address", address)
