"""`scrubjay train --init-from` and `scrubjay resume --total-steps`, as a user types them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from scrubjay.experiments import Run, resume
from scrubjay.experiments.runs.checkpoint import load_weights

WORDS = (
    *("--env.num-envs", "4", "--segment-length", "8", "--eval-episodes", "2", "--device", "cpu", "--quiet"),
    *("--memory", "gru", "--memory.dim", "16", "--total-steps", "64"),
)


@pytest.fixture
def copy(finished_run, tmp_path) -> Path:
    """A directory of a finished run of 192 steps, to be extended."""
    return shutil.copytree(finished_run.path, tmp_path / "extended")


@pytest.mark.parametrize("total", [0, 1, 192])
def test_a_total_that_is_done_already_names_both_numbers_and_changes_nothing(total, copy, here):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    code, out, err = here("resume", copy, "--total-steps", total)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"total_steps={total}: 192 steps are done already" in err
    with pytest.raises(ValueError, match=f"total_steps={total}: 192 steps"):
        resume(copy, total_steps=total)
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}


def test_every_verb_tells_of_the_new_end(copy, here, tmp_path):
    (copy / "longer.json").write_text('{"4": 0.5}')  # what a report kept of the weights before
    code, out, _ = here("resume", copy, "--total-steps", 256, "--quiet")
    assert code == 0
    assert "done: return" in out
    assert not (copy / "longer.json").exists()
    assert "at step 256" in here("eval", copy, "--episodes", 2)[1]
    assert here("plot", copy, "--out", "curve.png")[0] == 0
    assert "is finished" in here("resume", copy)[1]


def test_no_flag_sets_what_a_run_records_of_itself(refused):
    for flag in ("--extensions", "--init-step"):
        told = refused("train", "tmaze", flag, "3")
        assert f"unknown option '{flag}'" in told
        assert f"did you mean '{flag}'" not in told


def test_at_the_command_line_in_another_corridor(here, tmp_path, assert_equal):
    assert here("train", "tmaze", *WORDS, "--set", "corridor_length=4", "--run-dir", "first")[0] == 0
    words = ["--set", "corridor_length=9", "--init-from", "first", "--run-dir", "second", "--seed", 3]
    code, out, err = here("train", "tmaze", *WORDS, *words)
    assert (code, err) == (0, "")
    assert "weights of first at step 64" in out
    second, first = Run.load(tmp_path / "second"), Run.load(tmp_path / "first")
    assert_equal(load_file(second.path / "initial.safetensors"), load_weights(first.checkpoint))
    code, out, err = here("train", "tmaze", *WORDS, "--init-from", "second", "--run-dir", "third")
    assert (code, err) == (0, "")
    assert "initial.safetensors" in {file.name for file in (tmp_path / "third").iterdir()}
    assert "--init-from RUN" in here("train", "--help")[1]
    assert "--init-from" in here("train", "tmaze", "--help")[1]
