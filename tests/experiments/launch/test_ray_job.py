"""`scrubjay launch` against a real head node with its dashboard."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
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


def launch(folder: Path, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return run(folder, "launch", *words, **variables)


def run(folder: Path, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scrubjay", *map(str, words)],
        cwd=folder,
        env=ENVIRONMENT | variables,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """Folder with modules that a job can import."""
    return tmp_path_factory.mktemp("modules")


@contextlib.contextmanager
def start_head(port: int, **variables: str) -> Iterator[str]:
    """Start a head node whose PATH has other Python interpreters; yield its dashboard's address."""
    dashboard = free_port()
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short, since paths of sockets are limited
    for name in ("python", "python3"):
        (Path(folder) / name).write_text("#!/bin/sh\necho not the one that has Ray\nexit 3\n")
        (Path(folder) / name).chmod(0o755)
    ports = [f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0"]
    options = ["--include-dashboard=true", "--num-cpus=2", f"--temp-dir={folder}", "--disable-usage-stats"]
    process = subprocess.Popen(
        [f"{BIN}/ray", "start", "--head", "--block", *ports, "--dashboard-host=127.0.0.1", *options],
        env=ENVIRONMENT | variables | {"PATH": f"{folder}:/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 600
    while True:
        try:
            urllib.request.urlopen(address, timeout=60)
            break
        except OSError:
            assert time.monotonic() < deadline, "the dashboard never answered"
            time.sleep(0.5)
    try:
        yield address
    finally:
        process.terminate()
        process.wait(timeout=600)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def head(modules):
    paths = [str(modules), os.environ.get("PYTHONPATH", "")]
    with start_head(0, PYTHONPATH=os.pathsep.join(paths)) as address:
        yield address


@pytest.mark.slow
@pytest.mark.timeout(1800)
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
    # Errors that only the cluster can detect are reported by the job, with its exit code.
    many = launch(
        tmp_path, "tmaze-demo", "--address", head, "--num-env-runners", 3, "--run-dir", tmp_path / "many"
    )
    assert many.returncode == 2
    assert "the cluster has 2" in many.stdout
    detached_job = launch(tmp_path, "--resume", run_dir, "--address", head, "--detach")
    assert detached_job.returncode == 0
    assert f"stop: ray job stop --address {head} raysubmit_" in detached_job.stdout


@pytest.mark.matrix
@pytest.mark.timeout(1800)
def test_a_head_that_asks_for_a_token_is_told_of_in_one_line(tmp_path):
    token = secrets.token_hex(32)
    (tmp_path / "token").write_text(token)
    here, port = {"HOME": str(tmp_path)}, free_port()
    token_variables = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    with start_head(port, RAY_AUTH_MODE="token", **token_variables, **here) as address:
        for variables, message in (
            ({}, "asks for a token, and there is none here: copy ~/.ray/auth_token of its head"),
            (
                {"RAY_AUTH_TOKEN": token[::-1]},
                "it refuses the token of RAY_AUTH_TOKEN: copy ~/.ray/auth_token",
            ),
            ({"RAY_AUTH_TOKEN_PATH": "nowhere"}, "RAY_AUTH_TOKEN_PATH names no file: copy ~/.ray/auth_token"),
            (
                {"RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": "disabled"},
                "the token of RAY_AUTH_TOKEN is not sent: set RAY_AUTH_MODE=token",
            ),
        ):
            failed_job = launch(tmp_path, "tmaze-demo", "--address", address, **here, **variables)
            assert (failed_job.returncode, failed_job.stdout) == (2, ""), variables
            assert failed_job.stderr.startswith(f"scrubjay: could not start a job at {address}: it ")
            assert message in failed_job.stderr
            assert failed_job.stderr.count("\n") == 1
            assert token not in failed_job.stderr
        # With the token a job starts, with the head node's interpreter; it has no run to resume.
        second_job = launch(
            tmp_path, "--resume", tmp_path / "run", "--address", address, **here, **token_variables
        )
        assert second_job.returncode == 2, second_job.stdout + second_job.stderr
        assert f"scrubjay: no run at {tmp_path / 'run'}" in second_job.stdout
        # Joining without a job gives the same error, after Ray's warnings.
        words = ["tmaze-demo", "--engine", "ray", "--address", f"127.0.0.1:{port}", "--run-dir", "run"]
        joined_run = run(tmp_path, "train", *words, **here)
        assert joined_run.returncode == 2
        assert "perhaps it asks for a token, and there is none here" in joined_run.stderr.splitlines()[-1]
        mode = run(tmp_path, "train", *words, **here, RAY_AUTH_MODE="token")
        assert (mode.returncode, mode.stderr.count("\n")) == (2, 1)
        assert "it asks for a token, and there is none here" in mode.stderr


EVIL = """
import pathlib
pathlib.Path(__file__).with_name("harm").touch()
def Foo(*args, **kwargs): raise ValueError("made")
"""


@pytest.mark.matrix
@pytest.mark.timeout(1800)
def test_a_strangers_run_is_resumed_by_a_job_only_with_trust(head, modules, finished_run, tmp_path):
    (modules / "evilmod.py").write_text(EVIL)
    run = shutil.copytree(finished_run.path, tmp_path / "run")
    (run / "result.json").unlink()
    fields = json.loads((run / "config.json").read_text())
    fields["env"]["id"], fields["total_steps"] = "evilmod:Foo", 2 * fields["total_steps"]
    (run / "config.json").write_text(json.dumps(fields))
    words = ["--resume", run, "--address", head, "--num-env-runners", 1, "--quiet"]
    failed_job = launch(tmp_path, *words)
    assert failed_job.returncode == 2, failed_job.stdout + failed_job.stderr
    assert "add --trust" in failed_job.stdout
    assert not (modules / "harm").exists()
    trusted = launch(tmp_path, *words, "--trust")
    assert trusted.returncode == 2, trusted.stdout + trusted.stderr
    assert "made" in trusted.stdout
    assert (modules / "harm").exists()


@pytest.mark.matrix
@pytest.mark.timeout(1800)
def test_a_job_trains_a_run_further_and_begins_another_with_its_weights(head, tmp_path):
    sizes = ["--env.num-envs", 4, "--segment-length", 8, "--eval-episodes", 1, "--quiet"]
    first, second = tmp_path / "first", tmp_path / "second"
    first_job = launch(
        tmp_path, "tmaze-demo", "--address", head, "--run-dir", first, "--total-steps", 64, *sizes
    )
    assert first_job.returncode == 0, first_job.stdout + first_job.stderr
    further = launch(tmp_path, "--resume", first, "--address", head, "--total-steps", 128)
    assert further.returncode == 0, further.stdout + further.stderr
    assert Run.load(first).result["step"] == 128
    words = ["--run-dir", second, "--total-steps", 64, "--init-from", first]
    second_job = launch(tmp_path, "tmaze-demo", "--address", head, *words, *sizes)
    assert second_job.returncode == 0, second_job.stdout + second_job.stderr
    assert f"weights of {first} at step 128" in second_job.stdout
    assert Run.load(second).result["step"] == 64


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tmaze-demo"], "launch needs --address http://HEAD:8265"),
        (["--address", "http://127.0.0.1:1"], "launch needs a recipe, or --resume DIR"),
        (
            ["tmaze", "--address", "http://127.0.0.1:1"],
            "no dashboard at http://127.0.0.1:1: <urlopen error [Errno 111] Connection refused>",
        ),
        (["tmaze", "--address", "127.0.0.1:1"], "write the address as http://HEAD:8265"),
        (["tmaze", "--address", "http://127.0.0.1:1", "--num-env-runners", "65"], "num_env_runners=65"),
        (["tmaze-demmo", "--address", "http://127.0.0.1:1"], "did you mean 'tmaze-demo'"),
        (
            ["tmaze", "--engine", "local", "--address", "http://127.0.0.1:1"],
            "launch always uses --engine ray",
        ),
        (["--resume", "x", "--run-dir", "y", "--address", "http://127.0.0.1:1"], "omit --run-dir"),
        (["--resume", "x", "--address", "http://127.0.0.1:1", "--seed", "3"], "unexpected argument '--seed'"),
        (
            ["--resume", "x", "--address", "http://127.0.0.1:1", "--total-steps", "ten"],
            "--total-steps 'ten'",
        ),
        (
            ["--resume", "x", "--address", "http://127.0.0.1:1", "--total-steps"],
            "--total-steps needs a value",
        ),
    ],
)
def test_wrong_flags_are_one_line(words, message, usage_error):
    assert message in usage_error("launch", *words)


def test_a_server_that_never_answers_is_not_waited_for(usage_error, monkeypatch):
    monkeypatch.setattr("scrubjay.experiments.launch.ray_job._REACH_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"http://127.0.0.1:{mute.getsockname()[1]}"
        assert "no dashboard at" in usage_error("launch", "tmaze", "--address", address)
