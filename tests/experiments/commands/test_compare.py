"""Processes that `scrubjay compare` starts make what its words name, and read no more than they do."""

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
    assert Run.load(path).finished
    assert json.loads((path / "environment.json").read_text())["num_agents"] is None
    assert here("compare", *WORDS, "--", *FLAGS)[0] == 0
