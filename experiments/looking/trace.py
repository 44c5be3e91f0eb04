"""A trace: what somebody saw, did and recalled, step by step, as one file of JSON.

Policies, teams, language models and agents write the same: a step is an observation, a team's move, a token
or a message. An object of JSON, of these keys and no other:

    format, version     "scrubjay-trace", 1
    kind                "policy", "team", "language model" or "agent"
    title               a line
    about               texts by name: whose trace it is, and its settings
    unit                of the times of steps, as "steps" or "seconds"
    rate                steps a second at which it is played, above 0
    pictures            data: addresses of PNG, WebP, JPEG or GIF
    tracks              by name, a number or null for each step: rewards, values, surprise
    tables              by name, rows of numbers by their labels, as of each layer the number of each head; in
                        traces of before there may be none of this key
    steps               objects:
        time            a number, not below that of the step before
        picture         the number of one of the pictures, or null
        text            what was seen or said
        choice          what was done
        options         numbers from 0 to 1 by name: how likely each choice was
        recalled        objects, one for each thing that recalls:
            name        "chunks, layer 0", "recall density of the value"
            runs        pairs [first step, how many], in order: what was recalled, none later than this step
            most        the largest weight, 0 or more
            levels      base64 of a byte for each step of the runs: its weight in units of most / 255

In a team names begin with the agent's and a slash. All text is a stranger's: nobody may take it for more.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scrubjay.experiments.runs.directory import write_atomically
from scrubjay.experiments.runs.reading import is_number, parse_object, read_kept

FORMAT, VERSION = "scrubjay-trace", 1
KINDS = ("policy", "team", "language model", "agent")
MOST_STEPS = 100_000
_LEVELS = 255
_PICTURE = re.compile(r"data:image/(?:png|webp|jpeg|gif);base64,[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True)
class Recall:
    """Earlier steps that one was led back to, with weights in 8 bits."""

    name: str
    runs: tuple[tuple[int, int], ...]
    """The first of some steps side by side, and how many."""
    most: float
    """The largest weight."""
    levels: bytes
    """Of each of these steps, in units of `most / 255`."""

    @classmethod
    def of(cls, name: str, steps: ArrayLike, weights: ArrayLike) -> Recall:
        """Keep the steps that have a weight, in order; a step of -1 is none."""
        steps, weights = np.asarray(steps, np.int64), np.asarray(weights, np.float64)
        there = (steps >= 0) & (weights > 0)
        steps, weights = steps[there], weights[there]
        order = np.argsort(steps, kind="stable")
        steps, weights = steps[order], weights[order]
        begins = np.flatnonzero(np.diff(steps, prepend=-2) != 1)
        counts = np.diff(np.append(begins, len(steps)))
        most = float(weights.max(initial=0.0))
        levels = np.rint(weights / most * _LEVELS) if len(weights) else weights
        runs = tuple((int(steps[begin]), int(count)) for begin, count in zip(begins, counts, strict=True))
        return cls(name, runs, most, levels.astype(np.uint8).tobytes())

    @property
    def steps(self) -> NDArray[np.int64]:
        """The steps, in order."""
        parts = [np.arange(first, first + count) for first, count in self.runs]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    @property
    def weights(self) -> NDArray[np.float64]:
        """The weight of each, half of `most / 255` from what it was."""
        return np.frombuffer(self.levels, np.uint8).astype(np.float64) * (self.most / _LEVELS)


@dataclass(frozen=True)
class Step:
    """A moment."""

    time: float
    picture: int | None = None
    """The number of one of the trace's pictures."""
    text: str = ""
    choice: str = ""
    options: dict[str, float] = field(default_factory=dict)
    recalled: tuple[Recall, ...] = ()


@dataclass(frozen=True)
class Trace:
    """What happened. Raises ValueError on what the format has no place for."""

    kind: str
    title: str
    steps: tuple[Step, ...]
    about: dict[str, str] = field(default_factory=dict)
    unit: str = "steps"
    rate: float = 10.0
    pictures: tuple[str, ...] = ()
    tracks: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    tables: dict[str, dict[str, tuple[float, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)


def write_trace(trace: Trace, path: Path | str) -> Path:
    """Write a trace to a file, whole or not at all, and return the file's path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_json(trace) + "\n")
    return path


def read_trace(path: Path | str) -> Trace:
    """Return the trace in a file, a stranger's too. Raises ValueError if it holds none; OSError."""
    path = Path(path)
    return from_json(read_kept(path), path)


def to_json(trace: Trace) -> str:
    """Return a trace as JSON, in letters of ASCII."""
    value = {"format": FORMAT, "version": VERSION} | dataclasses.asdict(trace)
    for step in value["steps"]:
        for recall in step["recalled"]:
            recall["levels"] = base64.b64encode(recall["levels"]).decode()
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def from_json(text: str, source: object = "the trace") -> Trace:
    """Return the trace that a text of JSON is. Raises ValueError, naming `source`, if it is none."""
    value = parse_object(text, source)
    if value.get("format") != FORMAT:
        raise ValueError(f"{source} is no trace of Scrubjay: its format is {_shown(value.get('format'))}")
    if value.get("version") != VERSION:
        raise ValueError(
            f"{source} is a trace of version {_shown(value.get('version'))}; this Scrubjay reads {VERSION}"
        )
    try:
        given = {name: item for name, item in value.items() if name not in ("format", "version")}
        steps = _list(given.pop("steps", None), "steps")
        if len(steps) > MOST_STEPS:
            raise ValueError(f"{len(steps):,} steps: at most {MOST_STEPS:,} are shown")
        made = tuple(_step(step, f"step {number}") for number, step in enumerate(steps))
        tracks = given.get("tracks")
        given["tracks"] = {name: tuple(_list(row, name)) for name, row in _dict(tracks, "tracks").items()}
        given["tables"] = {
            name: {label: tuple(_list(row, label)) for label, row in _dict(table, name).items()}
            for name, table in _dict(given.get("tables", {}), "tables").items()
        }
        given["pictures"] = tuple(_list(given.get("pictures"), "pictures"))
        return _made(Trace, given | {"steps": made}, "the trace")
    except ValueError as error:
        raise ValueError(f"{source} is damaged: {error}") from None


def _step(value: Any, where: str) -> Step:
    given = dict(_dict(value, where))
    recalled = _list(given.get("recalled"), f"recalled of {where}")
    return _made(Step, given | {"recalled": tuple(_recall(one, where) for one in recalled)}, where)


def _recall(value: Any, where: str) -> Recall:
    where = f"recalled of {where}"
    given = dict(_dict(value, where))
    runs = [tuple(_list(run, f"runs of {where}")) for run in _list(given.get("runs"), f"runs of {where}")]
    try:
        levels = base64.b64decode(given.get("levels", ""), validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise ValueError(f"levels of {where} are not base64: {_shown(given.get('levels'))}") from None
    return _made(Recall, given | {"runs": tuple(runs), "levels": levels}, where)


def _made(kind: Callable[..., Any], given: dict[str, Any], where: str) -> Any:
    """Return a dataclass of all its fields, and no other."""
    fields = [one.name for one in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
    for name in given:
        if name not in fields:
            raise ValueError(
                f"{where} has {_shown(name)}, which a trace does not; it has {', '.join(fields)}"
            )
    for name in fields:
        if name not in given:
            raise ValueError(f"{where} lacks {name}")
    return kind(**given)


def _check(trace: Trace) -> None:
    """Raise ValueError, naming the place, unless all is as the format has it."""
    if trace.kind not in KINDS:
        raise ValueError(f"kind={_shown(trace.kind)}: choose from {', '.join(KINDS)}")
    _texts(trace.title, "title")
    _texts(trace.unit, "unit")
    for name, text in _dict(trace.about, "about").items():
        _texts(text, f"about {_shown(name)}")
    if not _finite(trace.rate) or trace.rate <= 0:
        raise ValueError(f"rate={_shown(trace.rate)}: steps a second must be above 0")
    for number, picture in enumerate(trace.pictures):
        if not isinstance(picture, str) or not _PICTURE.fullmatch(picture):
            raise ValueError(f"picture {number} is no data: address of a picture: {_shown(picture)}")
    count = len(trace.steps)
    for name, row in trace.tracks.items():
        if len(row) != count:
            raise ValueError(f"track {_shown(name)} has {len(row)} values for {count} steps")
        for value in row:
            if value is not None and not _finite(value):
                raise ValueError(f"track {_shown(name)} holds {_shown(value)}, no finite number")
    for name, table in trace.tables.items():
        for label, numbers in table.items():
            for number in numbers:
                if not _finite(number):
                    raise ValueError(
                        f"table {_shown(name)} holds {_shown(number)} at {_shown(label)}, no finite number"
                    )
    before = -math.inf
    for number, step in enumerate(trace.steps):
        _check_step(step, number, len(trace.pictures), before)
        before = step.time


def _check_step(step: Step, number: int, pictures: int, before: float) -> None:
    where = f"step {number}"
    if not _finite(step.time) or step.time < before:
        raise ValueError(f"{where} has time={_shown(step.time)}, no number that is not below the one before")
    if step.picture is not None and not _whole(step.picture, 0, pictures - 1):
        raise ValueError(f"{where} has picture={_shown(step.picture)}; there are {pictures}")
    _texts(step.text, f"text of {where}")
    _texts(step.choice, f"choice of {where}")
    for name, chance in _dict(step.options, f"options of {where}").items():
        if not _finite(chance) or not 0 <= chance <= 1:
            raise ValueError(f"options of {where}: {_shown(name)} is {_shown(chance)}, not from 0 to 1")
    for recall in step.recalled:
        _check_recall(recall, number)


def _check_recall(recall: Recall, number: int) -> None:
    where = f"recalled of step {number}"
    _texts(recall.name, f"name of {where}")
    if not _finite(recall.most) or recall.most < 0:
        raise ValueError(f"{where} has most={_shown(recall.most)}: it must be 0 or more")
    after, total = 0, 0
    for run in recall.runs:
        if len(run) != 2 or not _whole(run[0], after, number) or not _whole(run[1], 1, number - run[0] + 1):
            raise ValueError(f"{where} has the run {_shown(list(run))}, not steps up to it in their order")
        after, total = run[0] + run[1], total + run[1]
    if total != len(recall.levels):
        raise ValueError(f"{where} has {len(recall.levels)} levels for {total} steps")


def _whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def _texts(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{where} is {_shown(value)}, no text")  # noqa: TRY004  (of what a file holds)


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: {_shown(value)} is no list")  # noqa: TRY004
    return value


def _dict(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {_shown(value)} is no object")  # noqa: TRY004
    return value


def _shown(value: Any) -> str:
    return f"{value!r:.60}"
