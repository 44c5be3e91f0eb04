"""Grid of a scoreboard, tasks x contenders x seeds: its options and its runs in processes of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from scrubjay.experiments.cli.failures import check_at_least
from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.files import read_object
from scrubjay.experiments.launch.parallel import LOG, last_line, run_commands, start_module
from scrubjay.experiments.measurements import Records
from scrubjay.experiments.scoreboard.cell import ROW, Cell
from scrubjay.experiments.scoreboard.contenders import CONTENDERS, MEMORIES, OWN, PEERS, Settings
from scrubjay.experiments.scoreboard.protocol import TASKS
from scrubjay.experiments.scoreboard.tasks import SCOREBOARD


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    out: Path = Path("runs/scoreboard")
    """Folder for rows, runs and the report."""
    tasks: tuple[str, ...] = tuple(task.name for task in SCOREBOARD)
    """Tasks; those of the protocol can be named, too."""
    contenders: tuple[str, ...] = (*MEMORIES, PEERS[0])
    """Contenders; comba, rwkv7, mamba2, mamba3, xlstm and deltaproduct can be named, too."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; one run per seed."""
    jobs: int = 2
    """Runs that are trained in parallel."""
    retry: bool = False
    """Run the runs that crashed again."""
    report: bool = False
    """Only write the report of the present rows."""
    settings: Annotated[Settings, arg(name="")] = field(default_factory=Settings)

    def check(self) -> None:
        """Raise ValueError on an invalid option, or if a package is missing."""
        check_at_least(self, 1, "jobs")
        check_at_least(self.settings, 1, "steps", "episodes", "num_envs", "segment_length")
        if set(self.contenders) & set(PEERS) and (own := self.settings.overrides(*OWN)):
            raise ValueError(f"RecurrentPPO has no {' or '.join(own)}; leave it out of the contenders")
        for flag, names, choices in (("task", self.tasks, TASKS), ("contender", self.contenders, CONTENDERS)):
            for name in names:
                if name not in choices:
                    raise ValueError(f"unknown {flag} {name!r}; choose from {', '.join(choices)}")
        if set(self.contenders) & set(PEERS) and importlib.util.find_spec("sb3_contrib") is None:
            raise ValueError("RecurrentPPO needs sb3-contrib: install the extra bench")
        for name in self.tasks:
            try:
                TASKS[name].env(1).facts()
            except ValueError as error:
                raise ValueError(f"task {name}: {error}; `make scoreboard` installs all packages") from error

    def cells(self) -> list[Cell]:
        """Return all runs, those of one seed and task together."""
        names = [(seed, task, own) for seed in self.seeds for task in self.tasks for own in self.contenders]
        return [Cell(task, contender, seed) for seed, task, contender in dict.fromkeys(names)]


def run_cells(options: Options, records: Records) -> None:
    """Run all cells without a row. Raises GracefulInterrupt after Ctrl-C."""
    waiting = []
    for cell in options.cells():
        folder = options.out / cell.folder_name
        if not records.find(**dataclasses.asdict(cell)):
            if (folder / ROW).exists():  # the scoreboard was killed before it read the row
                records.append(read_object(folder / ROW))
            else:
                waiting.append(cell)
    starts = [(cell, partial(_start, cell, options)) for cell in waiting]
    with contextlib.closing(run_commands(starts, options.jobs)) as ends:
        for number, (cell, exit_code) in enumerate(ends, 1):
            row = read_row(cell, options, exit_code)
            records.append(row)
            text = f"score {row['score']:.3f}" if row["score"] is not None else f"crashed: {row['error']}"
            print(one_line(f"{number}/{len(waiting)} {cell.folder_name}  {text}"), flush=True)


def _start(cell: Cell, options: Options) -> Any:
    """Start the process of a run."""
    folder = options.out / cell.folder_name
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"cell": dataclasses.asdict(cell), "settings": dataclasses.asdict(options.settings)}
    return start_module(
        ["scrubjay.experiments.scoreboard.cell", str(folder), json.dumps(fields)], folder / LOG
    )


def read_row(cell: Cell, options: Options, exit_code: int) -> dict[str, Any]:
    """Return the row of a run whose process has ended, with its error if it crashed."""
    folder = options.out / cell.folder_name
    if exit_code == 0 and (folder / ROW).exists():
        return dict(read_object(folder / ROW))
    reason = last_line(folder / LOG) if (folder / LOG).exists() else "no message"
    return {
        **dataclasses.asdict(cell),
        "status": "failed",
        "error": f"exit code {exit_code}: {reason}",
        "steps": options.settings.steps,
        "score": None,
        "training_score": None,
        "cpu_seconds": None,
    }
