"""One run of the scoreboard: its row, its CPU seconds and its versions."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from scrubjay.experiments import Run
from scrubjay.experiments.files import release_folders
from scrubjay.experiments.scoreboard.cell import Cell, CPUClock, find_versions, main
from scrubjay.experiments.scoreboard.contenders import PEER_LEARNING_RATE


def test_a_row_has_the_scores_of_the_run_in_its_folder(tmp_path):
    cell = {"task": "tmaze", "contender": "gru", "seed": 7}
    settings = {"steps": 512, "episodes": 5, "num_envs": 8, "learning_rate": 2e-3}
    assert main([str(tmp_path), json.dumps({"cell": cell, "settings": settings})]) == 0
    release_folders()
    row = json.loads((tmp_path / "row.json").read_text())
    run: Any = Run.load(tmp_path / "run")
    assert run.is_finished
    assert (row["task"], row["contender"], row["seed"], row["steps"]) == ("tmaze", "gru", 7, 512)
    assert row["training_score"] == run.metrics()[-1]["charts/episodic_return"]
    assert row["score"] == row["scores"]["episodic_return"]
    assert row["scores"]["episodes"] == 5
    assert row["learner"]["learning_rate"] == run.config.learner.learning_rate == 2e-3
    assert Cell(**cell).folder_name == "tmaze-gru-s7"


@pytest.mark.requires("sb3_contrib")
@pytest.mark.parametrize(
    ("contender", "settings", "rate"),
    [
        ("recurrent_ppo", {}, PEER_LEARNING_RATE),
        ("recurrent_ppo", {"learning_rate": 2e-3}, 2e-3),
        ("recurrent_ppo_defaults", {}, None),
    ],
)
def test_recurrent_ppo_has_the_rate_of_its_own_search(contender, settings, rate, tmp_path):
    fields = {
        "cell": {"task": "cartpole", "contender": contender, "seed": 7},
        "settings": {"steps": 64, "episodes": 2, "num_envs": 8, "segment_length": 8, **settings},
    }
    assert main([str(tmp_path), json.dumps(fields)]) == 0
    release_folders()
    assert json.loads((tmp_path / "row.json").read_text())["learner"].get("learning_rate") == rate


def test_seconds_of_continued_work_are_added(tmp_path):
    file = tmp_path / "cpu.json"
    file.write_text('{"seconds": 1000}\n')
    assert 1000 < CPUClock(file, is_continued=True).seconds < 1000 + time.process_time() + 1
    assert CPUClock(file, is_continued=False).seconds < 1000 + time.process_time()
    clock = CPUClock(file, is_continued=True)
    clock._last_write = -1e9
    clock.save()
    assert 1000 < json.loads(file.read_text())["seconds"] <= clock.seconds


def test_versions_name_the_package_of_the_task():
    assert {"scrubjay", "torch", "gymnasium", "pytest"} <= find_versions("pytest>=8").keys()
    assert "not-there" not in find_versions("not-there>=1")
