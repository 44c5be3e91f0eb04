"""One run of the scoreboard in its own process: a contender on a task with a seed.

`python -P -m scrubjay.experiments.scoreboard.cell FOLDER CELL` writes the row into `FOLDER/row.json`. `CELL`
is the JSON text of a cell and its settings. A run of Scrubjay continues from its checkpoint; RecurrentPPO
starts again.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium

from scrubjay.agents.rl.rollout import Actor, PolicyActor
from scrubjay.experiments.files import own_folder, parse_object, read_object, write_atomically
from scrubjay.experiments.launch.parallel import prepare
from scrubjay.experiments.measurements import processor, version
from scrubjay.experiments.progress import GracefulInterrupt
from scrubjay.experiments.runs.config import derive_seed
from scrubjay.experiments.runs.evaluation import evaluate_actor
from scrubjay.experiments.runs.metrics import read_last_row
from scrubjay.experiments.runs.reinforcement import TrainConfig
from scrubjay.experiments.scoreboard.contenders import (
    PEER_LEARNING_RATE,
    PEERS,
    SHARED,
    Settings,
    make_train_config,
)
from scrubjay.experiments.scoreboard.protocol import TASKS
from scrubjay.experiments.scoreboard.recurrent_ppo import RecurrentPPOActor, make_arguments, train_peer
from scrubjay.experiments.training import run_training

ROW = "row.json"
_CPU_SECONDS = "cpu.json"
_WRITE_SECONDS = 2.0
"""CPU seconds between two writes of the CPU seconds."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """Run of the scoreboard."""

    task: str
    contender: str
    seed: int

    @property
    def folder_name(self) -> str:
        """Name of the run's folder."""
        return f"{self.task}-{self.contender}-s{self.seed}"


class CPUClock:
    """CPU seconds of a run: user and system time of all its processes so far, except repeated work.

    The time of earlier processes is read from a file if their work is continued.
    """

    def __init__(self, file: Path, is_continued: bool) -> None:
        self._file = file
        self._before = read_object(file)["seconds"] if is_continued and file.exists() else 0.0
        self._last_write = 0.0

    @property
    def seconds(self) -> float:
        """CPU seconds so far."""
        return self._before + time.process_time()

    def save(self) -> None:
        """Write the seconds, at most every few seconds."""
        if time.process_time() - self._last_write >= _WRITE_SECONDS:
            self._last_write = time.process_time()
            write_atomically(self._file, json.dumps({"seconds": self.seconds}) + "\n")


def run_cell(cell: Cell, settings: Settings, folder: Path) -> dict[str, Any]:
    """Train and evaluate a contender on a task, continuing earlier work in the folder; return its row."""
    task, is_peer = TASKS[cell.task], cell.contender in PEERS
    config = make_train_config(task, "lstm" if is_peer else cell.contender, cell.seed, settings)
    clock = CPUClock(folder / _CPU_SECONDS, is_continued=not is_peer)
    train = _train_peer if is_peer else _train_scrubjay
    actor, training_score, learner = train(cell, settings, config, folder, clock)
    seed = derive_seed(cell.seed, "evaluation")
    scores = evaluate_actor(actor, config.env, settings.episodes, seed).summary()
    return {
        **dataclasses.asdict(cell),
        "status": "finished",
        "error": "",
        "steps": config.planned_steps,
        "score": scores["episodic_return"],
        "scores": scores,
        "training_score": None if math.isnan(training_score) else training_score,
        "cpu_seconds": clock.seconds,
        "settings": dataclasses.asdict(settings),
        "learner": learner,
        "versions": find_versions(task.package),
        "processor": processor(),
    }


def _train_scrubjay(
    cell: Cell, settings: Settings, config: TrainConfig, folder: Path, clock: CPUClock
) -> tuple[Actor, float, dict[str, Any]]:
    """Train a memory; return its actor, the mean return of the last episodes, and its learner."""
    run = prepare(config, folder / "run")
    watch = _watch_parent()

    def on_update(step: int, row: dict[str, float]) -> None:
        watch()
        clock.save()

    run_training(run, on_update=on_update)
    row = read_last_row(run.path / "metrics.jsonl") or {}
    actor = PolicyActor(run.policy.eval(), deterministic=not settings.stochastic)
    return actor, row.get("charts/episodic_return", math.nan), dataclasses.asdict(config.learner)


def _train_peer(
    cell: Cell, settings: Settings, config: TrainConfig, folder: Path, clock: CPUClock
) -> tuple[Actor, float, dict[str, Any]]:
    """Train RecurrentPPO; return its actor, the mean return of the last episodes, and its settings."""
    with_defaults = cell.contender == "recurrent_ppo_defaults"
    arguments = make_arguments(config, with_defaults)
    if not with_defaults:
        arguments["learning_rate"] = PEER_LEARNING_RATE
    names = {"learning_rate": "learning_rate", "entropy_coefficient": "ent_coef"}
    arguments |= {names[name]: value for name, value in settings.overrides(*SHARED).items()}
    model, training_score = train_peer(config, arguments, _watch_parent())
    return RecurrentPPOActor(model, not settings.stochastic), training_score, arguments


def _watch_parent() -> Callable[[], None]:
    """Return a function that asks this process to stop if its parent has ended.

    Otherwise the run would go on after a kill of the scoreboard, beside the next scoreboard in the folder.
    """
    parent = os.getppid()

    def check() -> None:
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return check


def find_versions(package: str = "") -> dict[str, str]:
    """Return the versions of Scrubjay, torch, gymnasium, sb3-contrib, and the package of a task."""
    names = ["torch", "gymnasium", "sb3-contrib"]
    if match := re.match(r"([\w-]+)(?:\[(\w+)\])?", package):
        names.append(match[2] or match[1])
    versions = {"scrubjay": version().removeprefix("scrubjay ")}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def main(words: list[str]) -> int:
    """Run the cell and write its row; return the exit code."""
    folder, fields = Path(words[0]), parse_object(words[1], "the cell")
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    own_folder(folder)
    try:
        row = run_cell(Cell(**fields["cell"]), Settings(**fields["settings"]), folder)
    except GracefulInterrupt as stop:
        return stop.exit_code
    write_atomically(folder / ROW, json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
