"""`scrubjay train --init-from` and `resume --total-steps`, and directories that already hold files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from scrubjay.experiments import Run, resume
from scrubjay.experiments.runs.checkpoint import load_weights

from ..cli.fork_runner import run

WORDS = (
    *("--env.num-envs", "4", "--segment-length", "8", "--eval-episodes", "2", "--device", "cpu", "--quiet"),
    *("--memory", "gru", "--memory.dim", "16", "--total-steps", "64"),
)


@pytest.fixture
def copy(finished_run, tmp_path) -> Path:
    """Directory of a finished run of 192 steps, to be extended."""
    return shutil.copytree(finished_run.path, tmp_path / "extended")


@pytest.mark.parametrize("total", [0, 1, 192])
def test_a_total_that_is_done_already_names_both_numbers_and_changes_nothing(total, copy, here):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    code, out, err = here("resume", copy, "--total-steps", total)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"total_steps={total}: the run has completed 192 steps" in err
    with pytest.raises(ValueError, match=f"total_steps={total}: the run has completed 192 steps"):
        resume(copy, total_steps=total)
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}


def test_every_verb_tells_of_the_new_end(copy, here, tmp_path):
    (copy / "longer.json").write_text('{"4": 0.5}')  # a report's scores of the previous weights
    code, out, _ = here("resume", copy, "--total-steps", 256, "--quiet")
    assert code == 0
    assert "done: return" in out
    assert not (copy / "longer.json").exists()
    assert "at step 256" in here("eval", copy, "--episodes", 2)[1]
    assert here("plot", copy, "--out", "curve.png")[0] == 0
    assert "is finished" in here("resume", copy)[1]


def test_a_run_that_came_to_nan_says_so_at_its_end(here):
    words = ["train", "tmaze-demo", *WORDS, "--learner.learning-rate", "1e30"]
    code, out, err = here(*words, "--run-dir", "lost")
    assert code == 0, err
    assert out.rstrip().endswith("LOST: its losses are not finite")
    assert "LOST" not in here("train", "tmaze-demo", *WORDS, "--run-dir", "well")[1]


def test_no_flag_sets_what_a_run_records_of_itself(usage_error):
    for flag in ("--extensions", "--init-step"):
        message = usage_error("train", "tmaze-demo", flag, "3")
        assert f"unknown option '{flag}'" in message
        assert f"did you mean '{flag}'" not in message


def test_at_the_command_line_in_another_corridor(here, tmp_path, assert_equal):
    assert here("train", "tmaze-demo", *WORDS, "--set", "corridor_length=4", "--run-dir", "first")[0] == 0
    words = ["--set", "corridor_length=9", "--init-from", "first", "--run-dir", "second", "--seed", 3]
    code, out, err = here("train", "tmaze-demo", *WORDS, *words)
    assert (code, err) == (0, "")
    assert "weights of first at step 64" in out
    second, first = Run.load(tmp_path / "second"), Run.load(tmp_path / "first")
    assert_equal(load_file(second.path / "initial.safetensors"), load_weights(first.checkpoint))
    code, out, err = here("train", "tmaze-demo", *WORDS, "--init-from", "second", "--run-dir", "third")
    assert (code, err) == (0, "")
    assert "initial.safetensors" in {file.name for file in (tmp_path / "third").iterdir()}
    assert "--init-from RUN" in here("train", "--help")[1]
    assert "--init-from" in here("train", "tmaze-demo", "--help")[1]


ACTING = {"--memory", "--learner", "--env", "--set"}
TRAIN = {"--run-dir", "--config", "--quiet", "--engine", "--total-steps"}


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (("train", "tmaze"), {*ACTING, *TRAIN, "--wrap", "--learner.gamma"}),
        (("train", "tmaze", "--memory", "stack"), {"--memory.parts", "--policy.memory.parts.0.dim"}),
        (("train", "team"), {*ACTING, *TRAIN, "--method", "--learner.mode"}),
        (("train", "mqar"), {"--memory", *TRAIN, "--suite.length"}),
        (("train", "ballet-probe"), {"--memory", *TRAIN}),
        (("sweep", "tmaze"), {*ACTING, "--wrap", "--param", "--early-stopping", "--total-steps"}),
        (("launch", "team"), {*ACTING, "--method", "--address", "--detach", "--total-steps"}),
    ],
    ids=lambda value: " ".join(sorted(value)) if isinstance(value, set) else " ".join(value),
)
def test_the_help_of_a_recipe_lists_all_options(words, flags, here):
    code, out, err = here(*words, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: scrubjay {words[0]} {words[1]} ")
    assert flags <= set(re.findall(r"(?m)^\W+(--[\w.-]+)", out))


def test_the_help_of_a_recipe_lists_no_option_that_it_refuses(here):
    assert not {"--env", "--set", "--wrap", "--method"} & set(here("train", "mqar", "--help")[1].split())
    assert "--wrap" not in here("train", "team", "--help")[1].split()
    assert "--method" not in here("train", "tmaze", "--help")[1].split()


TINY = ["--total-steps", "64", "--env.num-envs", "4", "--segment-length", "8", "--eval-episodes", "2"]


@pytest.fixture
def stranger(finished_run, tmp_path):
    """Unfinished run from an untrusted source."""
    path = shutil.copytree(finished_run.path, tmp_path / "run")
    (path / "result.json").unlink()
    return path


@pytest.mark.parametrize("left", ["checkpoints", "metrics.jsonl", "result.json"])
def test_training_begins_in_no_directory_that_holds_what_another_left(left, stranger, tmp_path):
    """Otherwise it would continue from untrusted weights, or take another run's result as its own."""
    if left == "result.json":
        (stranger / left).write_text('{"success": 1}')
    for path in list(stranger.iterdir()):
        if path.name not in (left, ".lock"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    result = run(["train", "tmaze-demo", "--run-dir", "run", *TINY], tmp_path, seconds=30)
    assert result.code == 2
    assert f"run holds {left} of a run but no config.json" in result.err
    assert sorted(path.name for path in stranger.iterdir()) == sorted({left, ".lock"})


def test_what_a_killed_beginning_left_is_made_anew(here, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("environment.json", "initial.safetensors"):
        (tmp_path / "run" / name).write_text("a stranger's")
    assert here("train", "tmaze-demo", *WORDS, "--run-dir", "run")[0] == 0
    run: Any = Run.load(tmp_path / "run")
    assert run.facts == run.config.env.facts()
    assert not (tmp_path / "run" / "initial.safetensors").exists()


def test_nor_where_a_run_is(stranger, tmp_path):
    fields = json.loads((stranger / "config.json").read_text())
    fields["env"]["id"] = "evilmod:Foo"
    (stranger / "config.json").write_text(json.dumps(fields))
    (tmp_path / "evilmod.py").write_text("import pathlib; pathlib.Path('harm').touch()")
    before = {path: path.read_bytes() for path in stranger.rglob("*.json*")}
    for more in ([], ["--trust"]):
        result = run(["train", "tmaze-demo", "--run-dir", "run", *more], tmp_path, seconds=30)
        assert result.code == 2
        assert "already holds a run" in result.err or "--trust requires --config" in result.err
    assert not (tmp_path / "harm").exists()
    assert {path: path.read_bytes() for path in stranger.rglob("*.json*")} == before
