"""The scoreboard: rows of all runs, crashed runs, and the continuation after Ctrl-C and after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from scrubjay.experiments.files import read_lines
from scrubjay.experiments.scoreboard import grid
from scrubjay.experiments.scoreboard.__main__ import main

WORDS = ["--tasks", "cartpole", "--steps", "1024", "--episodes", "3", "--num-envs", "4", "--jobs", "2"]


def read_rows(out):
    return [dict(row) for row in read_lines(out / "rows.jsonl")]


def without_times(row):
    return {name: value for name, value in row.items() if name not in ("cpu_seconds", "versions")}


def test_options_are_checked(tmp_path, capsys):
    out = ["--out", str(tmp_path / "board")]
    assert main([*out, "--tasks", "cart"]) == 2
    assert "unknown task 'cart'; choose from repeat-first" in capsys.readouterr().err
    assert main([*out, "--tasks", "cartpole", "--contenders", "lstn"]) == 2
    assert "unknown contender 'lstn'" in capsys.readouterr().err
    assert main([*out, *WORDS, "--jobs", "0"]) == 2
    assert "jobs=0" in capsys.readouterr().err
    assert main([*out, "--tasks", "cartpole", "--burn-in-segments", "1"]) == 2
    assert "RecurrentPPO has no burn_in_segments" in capsys.readouterr().err
    assert main([*out, "--report"]) == 2
    assert "has no rows" in capsys.readouterr().err
    assert not (tmp_path / "board" / "rows.jsonl").exists()


def test_a_process_that_ends_without_a_row_is_a_crashed_run(tmp_path, monkeypatch, capsys):
    """The children fail at once here: the module of a run is replaced by one that does not exist."""
    start_module = grid.start_module
    monkeypatch.setattr(grid, "start_module", lambda words, log: start_module(["there_is_none"], log))
    words = ["--out", str(tmp_path), *WORDS, "--contenders", "none", "--seeds", "0"]
    assert main(words) == 0
    (row,) = read_rows(tmp_path)
    assert (row["status"], row["score"], row["steps"]) == ("failed", None, 1024)
    assert "there_is_none" in row["error"]
    assert "Runs that crashed" in (tmp_path / "report.md").read_text()
    monkeypatch.undo()
    assert main(words) == 0  # the row stays
    assert read_rows(tmp_path) == [row]


@pytest.mark.matrix
@pytest.mark.requires("sb3_contrib")
def test_all_contenders_have_complete_rows_and_other_settings_are_refused(tmp_path, capsys):
    peers = ["recurrent_ppo", "recurrent_ppo_defaults"]
    words = ["--out", str(tmp_path), *WORDS, "--contenders", "gru", *peers]
    assert main([*words, "--seeds", "0"]) == 0
    assert main([*words, "--seeds", "0", "1"]) == 0  # further seeds join
    rows = read_rows(tmp_path)
    names = [(row["contender"], row["seed"]) for row in rows]
    assert sorted(names) == sorted((name, seed) for name in ("gru", *peers) for seed in (0, 1))
    for row in rows:
        assert row["scores"]["episodes"] == 3
        assert row["score"] == row["scores"]["episodic_return"] > 0
        assert row["training_score"] > 0
        assert row["cpu_seconds"] > 0
        assert row["learner"]["gamma"] == 0.99
        assert {"scrubjay", "torch", "gymnasium"} <= row["versions"].keys()
        assert row["processor"]
    assert (tmp_path / "report.md").read_text().startswith("# Scoreboard")
    assert main([*words, "--steps", "2048"]) == 2
    assert "steps=1024, now 2048" in capsys.readouterr().err


STEPS = "8192"
BOARD = [*WORDS, "--tasks", "tmaze", "--steps", STEPS, "--contenders", "gru", "--seeds", "0"]
"""A board whose only task can continue exactly, since its environment saves its state."""


@pytest.fixture(scope="module")
def reference_rows(tmp_path_factory):
    out = tmp_path_factory.mktemp("board")
    assert main(["--out", str(out), *BOARD]) == 0
    return read_rows(out)


def wait_for(condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, id="Ctrl-C", marks=pytest.mark.matrix),
        pytest.param(signal.SIGKILL, id="kill"),
    ],
)
def test_the_same_command_continues(tmp_path, number, reference_rows):
    """The row equals that of an undisturbed scoreboard, except for the CPU seconds."""
    command = [sys.executable, "-P", "-m", "scrubjay.experiments.scoreboard", "--out", str(tmp_path), *BOARD]
    folder = tmp_path / "tmaze-gru-s0"
    metrics = folder / "run" / "metrics.jsonl"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as board:
        wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 3)
        os.kill(board.pid, number)
        board.communicate()
    assert board.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    if number == signal.SIGKILL:
        wait_for(lambda: not is_locked(folder))  # the run notices it and stops
    assert not read_rows(tmp_path)
    assert not (folder / "row.json").exists()
    assert main(["--out", str(tmp_path), *BOARD]) == 0
    assert [without_times(row) for row in read_rows(tmp_path)] == list(map(without_times, reference_rows))


def is_locked(folder):
    import fcntl

    with (folder / ".lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
