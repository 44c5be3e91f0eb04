"""Folders of `scrubjay compare`: trust, runs of earlier commands, and commands at the same time."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

from scrubjay.experiments import Run
from scrubjay.experiments.files import own_folder, release_folders
from scrubjay.experiments.viz import curves

MODULE = """
import gymnasium
def make(): return gymnasium.make("scrubjay.envs:scrubjay/RepeatPrevious-v0", k=1)
"""
WORDS = ["--memories", "none", "--recipes", "ppo", "--seeds", "0", "--out", "out"]
FLAGS = ["--env", "mine:make", "--total-steps", "1024", "--eval-episodes", "2", "--env.num-envs", "4"]


@pytest.mark.slow
def test_an_environment_of_ones_own_is_trained_in_processes_and_found_only_by_name(here, tmp_path):
    (tmp_path / "mine.py").write_text(MODULE)
    code, _, err = here("compare", *WORDS, "--", *FLAGS)
    assert code == 0, err
    path = tmp_path / "out" / "ppo-none-s0"
    assert Run.load(path).is_finished
    assert json.loads((path / "environment.json").read_text())["num_agents"] is None
    assert here("compare", *WORDS, "--", *FLAGS)[0] == 0


@pytest.mark.parametrize(
    "words", [["--seeds", "0", "1", "0"], ["--search-seeds", "7", "7"], ["--memories", "gru", "gru"]]
)
def test_what_is_named_twice_is_refused(words, usage_error):
    """A repeated seed would narrow the interval, and two processes would write to the same folder."""
    output = usage_error("compare", "--recipes", "recall-demo", *words, "--search", "ppo.epochs=1,2")
    assert f"{' '.join(words)}: give each value once" in output


TINY = ["--total-steps", "512", "--env.num-envs", "4", "--segment-length", "8", "--eval-episodes", "3"]


@pytest.fixture
def names(trained_here, monkeypatch):
    """Return a list of the runs that have a curve in the folder `out`."""
    names = []
    plot_runs = curves.plot_runs

    def plot(runs, out, *arguments):
        if out.parent.name == "out":
            names.extend(run.path.name for run in runs)
        return plot_runs(runs, out, *arguments)

    monkeypatch.setattr(curves, "plot_runs", plot)
    return names


@pytest.fixture
def compare(here, names):
    """Return a function that compares memories in `out`; it returns code, runs with a curve, errors."""

    def run(memories, seeds="0", flags=(), recipes="recall-demo"):
        names.clear()
        options = ["--memories", *memories.split(), "--recipes", *recipes.split(), "--seeds", *seeds.split()]
        code, _, err = here("compare", *options, "--out", "out", "--", *TINY, *flags)
        return code, set(names), err

    return run


def read_scores(folder):
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    return {(row["task"], row["memory"], row["seed"], json.dumps(row["test"])): row["score"] for row in rows}


def read_cells(command):
    """Return the runs that a command of the table trains."""
    cells = set()
    for part in command.split(" && "):
        words = shlex.split(part)[2:]
        words = words[: words.index("--")]
        starts = [place for place, word in enumerate(words) if word.startswith("--")]
        ends = [*starts[1:], len(words)]
        values = {words[a]: words[a + 1 : b] for a, b in zip(starts, ends, strict=True)}
        assert values["--out"] == ["out"]
        cells |= {
            f"{recipe}-{memory}-s{seed}"
            for recipe in values["--recipes"]
            for memory in values["--memories"]
            for seed in values["--seeds"]
        }
    return cells


def read_command(folder):
    return (folder / "table.md").read_text().split("`")[1]


@pytest.mark.slow
def test_a_comparison_with_fewer_memories_keeps_the_others(compare, tmp_path):
    assert compare("none gru")[0] == 0
    scores, command = read_scores(tmp_path / "out"), read_command(tmp_path / "out")
    assert {memory for _, memory, _, _ in scores} == {"none", "gru"}
    code, names, err = compare("gru")
    assert (code, err) == (0, "")
    assert read_scores(tmp_path / "out") == scores
    everything = {"recall-demo-none-s0", "recall-demo-gru-s0"}
    assert names == read_cells(command) == everything
    again = read_command(tmp_path / "out")
    assert "&&" not in again
    assert read_cells(again) == everything
    # Another recipe and another seed: the commands in the table train all runs and no others.
    code, names, err = compare("gru", "1", recipes="tmaze-demo")
    assert (code, err) == (0, "")
    everything.add("tmaze-demo-gru-s1")
    assert names == read_cells(read_command(tmp_path / "out")) == everything
    assert read_scores(tmp_path / "out").items() > scores.items()


@pytest.mark.slow
def test_a_folder_with_other_settings_is_refused(compare, tmp_path):
    assert compare("none")[0] == 0
    files = {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    for recipe in ("recall-demo", "tmaze-demo"):
        code, _, err = compare("gru", flags=["--ppo.gamma", "0.5"], recipes=recipe)
        assert (code, err.count("\n")) == (2, 1)
        assert "out/recall-demo-none-s0 belongs to another comparison; choose another --out" in err
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == files
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == ["recall-demo-none-s0"]


@pytest.mark.slow
def test_an_unfinished_run_is_not_trained_but_named(compare, tmp_path):
    assert compare("none gru")[0] == 0
    (tmp_path / "out" / "recall-demo-none-s0" / "result.json").unlink()
    code, names, err = compare("gru")
    assert (code, names, err) == (0, {"recall-demo-gru-s0"}, "")
    assert not (tmp_path / "out" / "recall-demo-none-s0" / "result.json").exists()
    table = (tmp_path / "out" / "table.md").read_text()
    assert "Left out, since training has not finished: recall-demo-none-s0." in table
    assert read_cells(read_command(tmp_path / "out")) == {"recall-demo-gru-s0"}


def test_a_demo_of_another_memory_keeps_the_first(here, names, tmp_path):
    words = ["demo", "--total-steps", "512", "--out", "out"]
    assert here(*words, "--memory", "gru")[0] == 0
    names.clear()
    assert here(*words, "--memory", "lstm")[0] == 0
    assert set(names) == {"none-s0", "gru-s0", "lstm-s0"}
    code, _, err = here("demo", "--total-steps", "768", "--out", "out", "--memory", "gru", "--seed", "1")
    assert code == 2
    assert "out/gru-s0 belongs to another comparison" in err
    assert not (tmp_path / "out" / "gru-s1").exists()


OWNER = """
import sys, pathlib
from scrubjay.experiments.files import own_folder
own_folder(pathlib.Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()
"""


def test_of_two_commands_in_one_folder_the_second_is_refused(here, tmp_path):
    out = tmp_path / "out"
    text = tmp_path / "facts.jsonl"
    assert here("memory", "facts", text, "--facts", "60", "--questions", "2")[0] == 0
    commands = (
        ["compare", "--memories", "none", "--recipes", "recall-demo", "--seeds", "0"],
        [
            "compare",
            "--memories",
            "none",
            "--recipes",
            "recall-demo",
            "--seeds",
            "0",
            "--search",
            "ppo.gamma=0.9,0.8",
        ],
        ["demo", "--memory", "gru"],
        ["sweep", "recall-demo", "--param", "seed=0,1"],
        ["memory", "bench", text],
    )
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        try:
            for command in commands:
                code, output, err = here(*command, "--out", "out")
                assert (code, output) == (2, ""), command
                assert err == (
                    "scrubjay: out is in use by another command; wait for it, stop it, or choose another "
                    "--out\n"
                )
            assert [path.name for path in out.iterdir()] == [".lock"]
        finally:
            owner.kill()
    own_folder(out)  # the system has released the lock of the process
    own_folder(out)  # one process may own a folder for several steps
    release_folders()
