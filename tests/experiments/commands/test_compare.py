"""Trust in processes that `scrubjay compare` starts: they may create only the environments that it names."""

from __future__ import annotations

import json

import pytest

from scrubjay.experiments import Run

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
    output = usage_error("compare", "--recipes", "tmaze-demo", *words, "--search", "ppo.epochs=1,2")
    assert f"{' '.join(words)}: give each value once" in output
