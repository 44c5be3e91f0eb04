"""Table of runs: one row per run with its config, seed, status and scores."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from scrubjay.experiments.cli.failures import describe
from scrubjay.experiments.cli.untrusted_text import printable
from scrubjay.experiments.files import CONFIG, METRICS, RESULT, read_object
from scrubjay.experiments.runs.initial_weights import flatten
from scrubjay.experiments.runs.metrics import read_last_row
from scrubjay.experiments.runs.run import Run
from scrubjay.experiments.runs.supervised import SupervisedConfig
from scrubjay.memory.serialization import encode

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]

_FIRST = ("run", "status", "error", "seed", "step", "seconds")
_LAST_ROW = {"training_success": "charts/success", "training_return": "charts/episodic_return"}
"""Columns with values of the last row of metrics.jsonl: means over the last training episodes."""
_CONFIG = "config."
_MAX_ENTRIES = 1000
"""Maximum number of settings and of scores of a run. Each of them is a column of the whole table."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\N{FULLWIDTH EQUALS SIGN}", "\N{FULLWIDTH PLUS SIGN}",
            "\N{FULLWIDTH HYPHEN-MINUS}", "\N{FULLWIDTH COMMERCIAL AT}")  # fmt: skip
"""Beginnings of texts that a spreadsheet may run as a formula."""


class Runs:
    """Runs below a folder, as rows of a table. The runs may be untrusted; loading them executes no code.

    | column | |
    | --- | --- |
    | `run` | run directory |
    | `status` | "finished", "stopped early", "unfinished", "failed" or "damaged" |
    | `error` | reason of a failure or a damage |
    | `seed`, `step`, `seconds` | seed, steps of training, and seconds of training |
    | `success`, `episodic_return` and others | scores of the evaluation, only if the run is finished |
    | `final`, `best`, `lowest_after_solved`, `lost` and others | fields of `retention.summarize_scores` |
    | `training_success`, `training_return` | means over the last 100 training episodes |
    | `config.NAME` | settings, such as `config.policy.memory.name` |

    Example::

        frame = Runs.load("runs/sweep").to_pandas()
        frame[frame.status == "finished"].groupby("config.policy.memory.name").success.mean()
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        """One dict per run, from column to value. A run lacks the columns that do not concern it."""

    @classmethod
    def load(cls, *folders: Path | str, trust: bool = False) -> Self:
        """Return the runs in these folders and all folders below, each run once.

        A folder with a config.json is a run.

        A run that cannot be read has a row with the status "damaged" and the reason. `trust` permits links in
        run directories, as in `Run.load`. Links to other folders are not followed.

        Raises:
            ValueError: If a folder does not exist or has no runs.
        """
        rows: dict[str, Row] = {}
        for folder in map(Path, folders):
            if not folder.is_dir():
                raise ValueError(f"{folder} is not a folder; name a run directory, or a folder of runs")
            own_rows = list(_read_below(folder, trust))
            if not own_rows:
                raise ValueError(f"no run in {folder}: no folder in it has a {CONFIG}")
            for row in own_rows:
                rows.setdefault(os.path.realpath(row["run"]), row)
        return cls(list(rows.values()))

    @property
    def columns(self) -> list[str]:
        """Names of all columns: those of every run, then scores, then settings."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        scores = [
            name for name in names if not name.startswith(_CONFIG) and name not in (*_FIRST, *_LAST_ROW)
        ]
        settings = [name for name in names if name.startswith(_CONFIG)]
        return [*_FIRST, *scores, *_LAST_ROW, *settings]

    def to_pandas(self) -> pandas.DataFrame:
        """Return a data frame with one row per run. Absent values are None or NaN."""
        from pandas import DataFrame  # a slow import that only this method needs

        return DataFrame(self.rows, columns=self.columns)

    def to_csv(self) -> str:
        """Return the text of a CSV file with one row per run; absent values are empty.

        Texts are in quotes. One that a spreadsheet may run as a formula begins with an apostrophe.
        """
        file, columns = io.StringIO(), self.columns
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(map(_make_cell, columns))
        writer.writerows([_make_cell(row.get(name)) for name in columns] for row in self.rows)
        return file.getvalue()


def _read_below(folder: Path, trust: bool) -> Iterator[Row]:
    """Yield the rows of the runs in a folder and below it, ordered by path."""
    errors: list[OSError] = []
    try:
        for path, folders, files in os.walk(folder, onerror=errors.append):
            if CONFIG in files:
                folders.clear()
                yield _read_run(Path(path), trust)
            folders.sort()
    except RecursionError:
        raise ValueError(f"{folder} has folders that are nested too deeply") from None
    for error in errors:
        yield {"run": os.fsdecode(error.filename), "status": "damaged", "error": describe(error)}


def _read_run(path: Path, trust: bool) -> Row:
    row: Row = {"run": str(path)}
    try:
        run = Run.load(path, trust)
        settings = flatten(encode(run.config), _CONFIG.removesuffix("."))
        _check_size(settings, path / CONFIG)
        row |= {"status": run.status, "seed": run.config.seed, **settings}
        last = read_last_row(path / METRICS) or {}
        training = {name: last[column] for name, column in _LAST_ROW.items() if column in last}
        return {**row, **training, **(_read_scores(run) if run.is_finished else _read_progress(run, last))}
    except (ValueError, TypeError, OSError) as error:
        return row | {"status": "damaged", "error": describe(error)}


def _read_scores(run: Run) -> Row:
    """Return the scores of a finished run. Raises ValueError if its result is damaged."""
    result = run.result
    scores = {name: value for name, value in result.items() if name != "tests"}
    if isinstance(run.config, SupervisedConfig):
        count, span = run.config.axes
        try:
            accuracies = run.config.accuracies(result)
        except (LookupError, TypeError, ArithmeticError):
            raise ValueError(f"{run.path / RESULT} is damaged: its tests are no accuracies") from None
        scores |= {f"success.{count}={n}.{span}={m}": score for (n, m), score in accuracies.items()}
    _check_size(scores, run.path / RESULT)
    for name in scores:
        if name.startswith(_CONFIG) or name in ("run", "status", "error", "seed", *_LAST_ROW):
            raise ValueError(f"{run.path / RESULT} is damaged: {name!r:.40} is no score")
    return scores


def _read_progress(run: Run, last: Row) -> Row:
    """Return the step, the time and the error of a run that is not finished; `last` is its last update."""
    progress: Row = {"step": last.get("step", 0)}
    if "time/seconds" in last:
        progress["seconds"] = last["time/seconds"]
    error = read_object(run.path / RESULT).get("error") if run.status == "failed" else None
    return {**progress, "error": error} if isinstance(error, str) else progress


def _check_size(entries: Row, file: Path) -> None:
    if len(entries) > _MAX_ENTRIES:
        raise ValueError(f"{file} has {len(entries):,} entries: the limit is {_MAX_ENTRIES:,}")


def _make_cell(value: Any) -> Any:
    """Return the value of a CSV cell. Numbers stay numbers."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = printable(value if isinstance(value, str) else json.dumps(value))
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text
