"""Soak of a run directory: two processes train one run and are killed, while other commands read it.

One run is trained undisturbed. A second run with the same config is trained by two `scrubjay train` or
`scrubjay resume` processes at a time, which start in any order. At random moments one of them is killed, or
both: during their start or after some updates. Meanwhile `eval`, `plot`, `look`, `play` and `results` read
the run, one after the other.

- Exactly one process trains. The other one refuses in one line, or finds the run finished.
- No row of metrics is lost or doubled: at any time steps grow by the steps of one update.
- A command that reads the run succeeds, or says in one line that there is no checkpoint yet.
- Metrics, weights and scores equal those of the undisturbed run, bit for bit.
- The undisturbed process does not grow: its memory is measured after a fifth of the steps and near the end.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from scrubjay.experiments.bench.soak import SoakError, anonymous_bytes
from scrubjay.experiments.files import CONFIG, METRICS
from scrubjay.experiments.measurements import Records
from scrubjay.experiments.progress import ProgressLines
from scrubjay.experiments.runs.checkpoint import load_weights
from scrubjay.experiments.runs.metrics import read_last_row, read_metrics
from scrubjay.experiments.runs.run import Run
from scrubjay.experiments.runs.status import read_status

_ENVS, _STEPS = 16, 16
STEPS_PER_UPDATE = _ENVS * _STEPS
_FLAGS = (
    f"tmaze-demo --memory gru --policy.memory.dim 16 --env.num-envs {_ENVS} --segment-length {_STEPS} "
    "--learner.epochs 1 --learner.num-minibatches 2 --eval-episodes 20 --checkpoint-seconds 0.5 --device cpu "
    "--quiet"
)
_REFUSALS = ("is being trained by another process", "already holds a run")
_NOTHING_YET = ("has no checkpoint yet", "no finished episode")
_READERS = {
    "eval": ("--episodes", "5"),
    "plot": ("--out", "curve.png"),
    "look": ("--out", "page.html"),
    "play": ("--out", "film.gif"),
    "results": (),
}
_SLACK = 64 * 2**20
"""Bytes by which the undisturbed process may grow: its allocator and lazy imports, but not with the steps."""
_FIELDS = {"command": str, "outcome": str, "step": int}


@dataclass(frozen=True, kw_only=True)
class RunsSoak:
    """Sizes of the soak of a run directory."""

    kills: int = 30
    """Kills; the rest of the run is not disturbed."""
    updates: int = 1_500
    """Updates of the run."""
    ray: bool = False
    """Train every third time on Ray, without remote processes."""
    seed: int = 0
    """Seed of the moments of the kills."""

    def train(self, run_dir: Path) -> list[str]:
        """Return the arguments that train a new run."""
        total = str(self.updates * STEPS_PER_UPDATE)
        return ["train", *_FLAGS.split(), "--total-steps", total, "--run-dir", str(run_dir)]


@dataclass
class Child:
    """A command in a process of its own."""

    words: Sequence[str]
    process: subprocess.Popen[bytes]
    log: Path
    was_killed: bool = field(default=False)

    def outcome(self) -> str:
        """Return how the ended process ended. Raises SoakError if it failed."""
        out, err = (self.log.with_suffix(end).read_text() for end in (".out", ".err"))
        code = self.process.returncode
        if self.was_killed and code == -signal.SIGKILL:
            return "killed"
        if code == 0:
            return "finished"
        lines = [line for line in err.splitlines() if line.startswith("scrubjay: ")]
        if code == 2 and len(lines) == 1:
            if any(words in lines[0] for words in _REFUSALS):
                return "refused"
            if any(words in lines[0] for words in _NOTHING_YET):
                return "nothing yet"
        raise SoakError(f"{' '.join(self.words)} ended with {code}: {out} {err}")


class Contest:
    """The run that two processes train and others read."""

    def __init__(self, soak: RunsSoak, folder: Path) -> None:
        self.soak, self.folder, self.run_dir = soak, folder, folder / "disturbed"
        self.records = Records(folder / "runs.jsonl", _FIELDS)
        self._draws = random.Random(f"{soak.seed} {len(self.records.rows)}")
        self._count = len(self.records.rows)
        self._show = ProgressLines()

    def run(self) -> None:
        """Train the run to its end."""
        trainers: list[Child] = []
        readers: list[Child] = []
        self._plan_kill()
        with self._stop_all(trainers, readers):
            while trainers or readers or self._status() != "finished":
                self._check_metrics()
                self._collect(trainers)
                self._collect(readers)
                if self._status() != "finished":
                    if len(trainers) < 2 and self._draws.random() < 0.2:
                        trainers.append(self._start(self._next_training()))
                    if not readers and (self.run_dir / CONFIG).exists():
                        readers.append(self._start(self._next_reading()))
                if trainers and self._kill_is_due():
                    both = self._draws.random() < 0.3
                    for child in trainers if both else [self._draws.choice(trainers)]:
                        child.process.kill()
                        child.was_killed = True
                    self._plan_kill()
                self._show(lambda: f"step {self._step():,}, {self._num_killed()} killed")
                time.sleep(0.05)

    def _status(self) -> str:
        return read_status(self.run_dir)

    def _step(self) -> int:
        row = read_last_row(self.run_dir / METRICS)
        return int(row["step"]) if row else 0

    def _num_killed(self) -> int:
        return len(self.records.find(outcome="killed"))

    def _plan_kill(self) -> None:
        """Draw the moment of the next kill: soon, or after some more updates."""
        if self._draws.random() < 0.3:
            self._kill_time, self._kill_step = time.monotonic() + self._draws.uniform(0, 6), 0
        else:
            updates = self._draws.randint(1, max(2, self.soak.updates // self.soak.kills))
            self._kill_time = time.monotonic() + 60
            self._kill_step = self._step() + updates * STEPS_PER_UPDATE

    def _kill_is_due(self) -> bool:
        if self._num_killed() >= self.soak.kills:
            return False
        return time.monotonic() > self._kill_time or 0 < self._kill_step <= self._step()

    def _next_training(self) -> list[str]:
        words = ["resume", str(self.run_dir), "--quiet"]
        if not (self.run_dir / CONFIG).exists() or self._draws.random() < 0.2:
            words = self.soak.train(self.run_dir)
        if self.soak.ray and self._draws.random() < 1 / 3:
            words += ["--engine", "ray", "--num-env-runners", "0"]
        return words

    def _next_reading(self) -> list[str]:
        verb = self._draws.choice(sorted(_READERS))
        return [verb, str(self.run_dir), *_READERS[verb]]

    def _start(self, words: Sequence[str]) -> Child:
        self._count += 1
        return start(words, self.folder / "logs" / str(self._count))

    def _collect(self, children: list[Child]) -> None:
        for child in [child for child in children if child.process.poll() is not None]:
            children.remove(child)
            row = {"command": child.words[0], "outcome": child.outcome(), "step": self._step()}
            self.records.append(row)

    def _check_metrics(self) -> None:
        steps = [int(row["step"]) for row in read_metrics(self.run_dir / METRICS)]
        if steps != list(range(STEPS_PER_UPDATE, STEPS_PER_UPDATE * (len(steps) + 1), STEPS_PER_UPDATE)):
            raise SoakError(f"metrics.jsonl has lost or doubled rows: steps {steps[:3]} to {steps[-3:]}")

    @contextlib.contextmanager
    def _stop_all(self, *groups: list[Child]) -> Iterator[None]:
        try:
            yield
        finally:
            for child in [child for group in groups for child in group]:
                child.process.kill()
                child.process.wait()


def start(words: Sequence[str], log: Path) -> Child:
    """Start a `scrubjay` command in the folder of its log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with log.with_suffix(".out").open("wb") as out, log.with_suffix(".err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "scrubjay", *words],
            cwd=log.parent,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=err,
        )
    return Child(words, process, log)


def train_undisturbed(soak: RunsSoak, folder: Path) -> int | None:
    """Train the reference run; return the growth of its memory in bytes, None if it was finished already."""
    run_dir, sizes = folder / "undisturbed", {}
    if read_status(run_dir) == "finished":
        return None
    exists = (run_dir / CONFIG).exists()
    words = ["resume", str(run_dir), "--quiet"] if exists else soak.train(run_dir)
    child, show = start(words, folder / "logs" / "undisturbed"), ProgressLines()
    try:
        while child.process.poll() is None:
            row = read_last_row(run_dir / METRICS)
            updates = int(row["step"]) // STEPS_PER_UPDATE if row else 0
            for share in (0.2, 0.95):
                if share * soak.updates <= updates < soak.updates and share not in sizes:
                    with contextlib.suppress(OSError, StopIteration):  # the process has just ended
                        sizes[share] = anonymous_bytes(child.process.pid)
            show(lambda updates=updates: f"undisturbed, update {updates:,} of {soak.updates:,}")
            time.sleep(0.02)
    finally:
        child.process.kill()
        child.process.wait()
    if child.outcome() != "finished":
        raise SoakError(f"the undisturbed run did not finish: {child.outcome()}")
    growth = sizes.get(0.95, 0) - sizes.get(0.2, 0) if len(sizes) == 2 else None
    if growth is not None and growth > _SLACK:
        raise SoakError(f"the undisturbed process grew by {growth:,} bytes")
    return growth


def compare_runs(run: Run, reference: Run) -> None:
    """Raise SoakError unless two finished runs are equal, bit for bit, except for times."""
    rows, expected_rows = (
        [
            {n: v for n, v in row.items() if not n.startswith("time/") and n != "charts/SPS"}
            for row in own.metrics()
        ]
        for own in (run, reference)
    )
    if rows != expected_rows:
        raise SoakError(f"{run.path} has other metrics than {reference.path}")
    weights, expected_weights = load_weights(run.checkpoint), load_weights(reference.checkpoint)
    if weights.keys() != expected_weights.keys() or not all(
        torch.equal(weights[name], expected_weights[name]) for name in weights
    ):
        raise SoakError(f"{run.path} has other weights than {reference.path}")
    if {**run.result, "seconds": 0} != {**reference.result, "seconds": 0}:
        raise SoakError(f"{run.path} has other scores than {reference.path}")


def run_contest(soak: RunsSoak, folder: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Train both runs and compare them.

    Returns a row for each process that ended, and the growth of the undisturbed process in bytes. The latter
    is empty if that process was interrupted.
    """
    folder = folder.resolve()  # commands run in a folder of their own
    growths = Records(folder / "growth.jsonl", {"bytes": int})
    growth = train_undisturbed(soak, folder)
    if growth is not None:
        growths.append({"bytes": growth})
    contest = Contest(soak, folder)
    contest.run()
    compare_runs(Run.load(contest.run_dir), Run.load(folder / "undisturbed"))
    return contest.records.rows, [row["bytes"] for row in growths.rows]
