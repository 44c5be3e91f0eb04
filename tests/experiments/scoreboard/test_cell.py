"""One run of the scoreboard: its row, its CPU seconds and its versions."""

from __future__ import annotations

import json
import time
from typing import Any

from scrubjay.experiments import Run
from scrubjay.experiments.files import release_folders
from scrubjay.experiments.scoreboard.cell import Cell, CPUClock, find_versions, main


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
