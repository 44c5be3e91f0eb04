"""JSON file format of a trace: observations, actions and recalled steps of an agent, step by step.

Policies, teams, language models and agents share the format. A step is an observation, a joint action, a
token or a message. The file is a JSON object with exactly these keys:

    format, version     "scrubjay-trace", 1
    kind                "policy", "team", "language model" or "agent"
    title               one line of text
    about               texts by name: source and settings of the trace
    unit                unit of the step times, such as "steps" or "seconds"
    rate                playback speed in steps per second, above 0
    pictures            data: URLs of PNG, WebP, JPEG or GIF images
    tracks              object from name to list: a number or null per step, such as rewards or values
    tables              object from table name to rows; rows are an object from label to list of numbers,
                        such as one row per layer with one number per head; older traces lack this key
    steps               list of objects:
        time            number, at least the time of the previous step
        picture         index of one of the pictures, or null
        text            observation or message
        choice          action
        options         probability of each choice by name, from 0 to 1
        recalls         list of objects, one per source of recall:
            name        "chunks, layer 0", "recall density of the value"
            runs        sorted pairs [first step, number of steps] of recalled steps, up to this step
            most        the largest weight, 0 or more
            levels      base64 of one byte per recalled step: its weight in units of most / 255

Names in a trace of a team start with the name of the agent and a slash. All text is untrusted.
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

from scrubjay.experiments.files import is_number, parse_object, read_untrusted, write_atomically

FORMAT, VERSION = "scrubjay-trace", 1
KINDS = ("policy", "team", "language model", "agent")
MOST_STEPS = 100_000
_LEVELS = 255
_PICTURE = re.compile(r"data:image/(?:png|webp|jpeg|gif);base64,[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True)
class Recall:
    """Earlier steps that a step recalled, with weights quantized to 8 bits."""

    name: str
    runs: tuple[tuple[int, int], ...]
    """First step and length of each range of consecutive recalled steps."""
    most: float
    """Largest weight."""
    levels: bytes
    """Weight of each step in `runs` in units of `most / 255`, one byte per step."""

    @classmethod
    def from_weights(cls, name: str, steps: ArrayLike, weights: ArrayLike) -> Recall:
        """Build a recall from step numbers and weights; leave out weight 0 and the number -1 (padding)."""
        steps, weights = np.asarray(steps, np.int64), np.asarray(weights, np.float64)
        is_recalled = (steps >= 0) & (weights > 0)
        steps, weights = steps[is_recalled], weights[is_recalled]
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
        """Recalled steps in ascending order."""
        parts = [np.arange(first, first + count) for first, count in self.runs]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    @property
    def weights(self) -> NDArray[np.float64]:
        """Weight of each recalled step, with a quantization error of at most 1/510 of the largest weight."""
        return np.frombuffer(self.levels, np.uint8).astype(np.float64) * (self.most / _LEVELS)


@dataclass(frozen=True)
class Step:
    """Step of a trace."""

    time: float
    picture: int | None = None
    """Index of a picture of the trace; None for no picture."""
    text: str = ""
    choice: str = ""
    options: dict[str, float] = field(default_factory=dict)
    recalls: tuple[Recall, ...] = ()


@dataclass(frozen=True)
class Trace:
    """Recorded episode, text or conversation. Raises ValueError if the data does not match the format."""

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
    """Write a trace to a file atomically, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_json(trace) + "\n")
    return path


def read_trace(path: Path | str) -> Trace:
    """Read a trace from a file, which may be untrusted.

    Raises ValueError if the file is not a valid trace, and OSError if it cannot be read.
    """
    path = Path(path)
    return from_json(read_untrusted(path), path)


def to_json(trace: Trace) -> str:
    """Return a trace as JSON text in ASCII."""
    value = {"format": FORMAT, "version": VERSION} | dataclasses.asdict(trace)
    for step in value["steps"]:
        for recall in step["recalls"]:
            recall["levels"] = base64.b64encode(recall["levels"]).decode()
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def from_json(text: str, source: object = "the trace") -> Trace:
    """Parse a trace from JSON text. Raises ValueError, with `source` in its message, for an invalid text."""
    value = parse_object(text, source)
    if value.get("format") != FORMAT:
        raise ValueError(f"{source} is not a Scrubjay trace: its format is {_shorten(value.get('format'))}")
    if value.get("version") != VERSION:
        raise ValueError(
            f"{source} is a trace of version {_shorten(value.get('version'))}; "
            f"this release reads version {VERSION}"
        )
    try:
        fields = {name: item for name, item in value.items() if name not in ("format", "version")}
        steps = _check_list(fields.pop("steps", None), "steps")
        if len(steps) > MOST_STEPS:
            raise ValueError(f"{len(steps):,} steps: at most {MOST_STEPS:,} are supported")
        parsed_steps = tuple(_step(step, f"step {number}") for number, step in enumerate(steps))
        tracks = fields.get("tracks")
        fields["tracks"] = {
            name: tuple(_check_list(row, name)) for name, row in _check_dict(tracks, "tracks").items()
        }
        fields["tables"] = {
            name: {label: tuple(_check_list(row, label)) for label, row in _check_dict(table, name).items()}
            for name, table in _check_dict(fields.get("tables", {}), "tables").items()
        }
        fields["pictures"] = tuple(_check_list(fields.get("pictures"), "pictures"))
        return _build_dataclass(Trace, fields | {"steps": parsed_steps}, "the trace")
    except ValueError as error:
        raise ValueError(f"{source} is damaged: {error}") from None


def _step(value: Any, where: str) -> Step:
    fields = dict(_check_dict(value, where))
    recalls = _check_list(fields.get("recalls"), f"recalls of {where}")
    return _build_dataclass(Step, fields | {"recalls": tuple(_recall(one, where) for one in recalls)}, where)


def _recall(value: Any, where: str) -> Recall:
    where = f"recalls of {where}"
    fields = dict(_check_dict(value, where))
    runs = [
        tuple(_check_list(run, f"runs of {where}"))
        for run in _check_list(fields.get("runs"), f"runs of {where}")
    ]
    try:
        levels = base64.b64decode(fields.get("levels", ""), validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise ValueError(
            f"levels of {where} are not valid base64: {_shorten(fields.get('levels'))}"
        ) from None
    return _build_dataclass(Recall, fields | {"runs": tuple(runs), "levels": levels}, where)


def _build_dataclass(kind: Callable[..., Any], values: dict[str, Any], where: str) -> Any:
    """Build a dataclass from the values of its fields. Raises ValueError on a missing or unknown field."""
    fields = [one.name for one in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
    for name in values:
        if name not in fields:
            raise ValueError(
                f"{where} has the unknown field {_shorten(name)}; choose from {', '.join(fields)}"
            )
    for name in fields:
        if name not in values:
            raise ValueError(f"{where} lacks the field {name}")
    return kind(**values)


def _check(trace: Trace) -> None:
    """Raise ValueError if the trace does not match the format; the message names the invalid field."""
    if trace.kind not in KINDS:
        raise ValueError(f"kind={_shorten(trace.kind)}: choose from {', '.join(KINDS)}")
    _check_text(trace.title, "title")
    _check_text(trace.unit, "unit")
    for name, text in _check_dict(trace.about, "about").items():
        _check_text(text, f"about {_shorten(name)}")
    if not _is_finite(trace.rate) or trace.rate <= 0:
        raise ValueError(f"rate={_shorten(trace.rate)}: must be above 0 steps per second")
    for number, picture in enumerate(trace.pictures):
        if not isinstance(picture, str) or not _PICTURE.fullmatch(picture):
            raise ValueError(
                f"picture {number} is {_shorten(picture)}; it must be a base64 data URL of a PNG, WebP, JPEG "
                "or GIF image"
            )
    count = len(trace.steps)
    for name, row in trace.tracks.items():
        if len(row) != count:
            raise ValueError(f"track {_shorten(name)} has {len(row)} values for {count} steps")
        for value in row:
            if value is not None and not _is_finite(value):
                raise ValueError(f"track {_shorten(name)} holds {_shorten(value)}, not a finite number")
    for name, table in trace.tables.items():
        for label, numbers in table.items():
            for number in numbers:
                if not _is_finite(number):
                    raise ValueError(
                        f"table {_shorten(name)} holds {_shorten(number)} at {_shorten(label)}, "
                        "not a finite number"
                    )
    before = -math.inf
    for number, step in enumerate(trace.steps):
        _check_step(step, number, len(trace.pictures), before)
        before = step.time


def _check_step(step: Step, number: int, pictures: int, before: float) -> None:
    where = f"step {number}"
    if not _is_finite(step.time) or step.time < before:
        raise ValueError(
            f"{where} has time={_shorten(step.time)}; times must be finite and must not decrease"
        )
    if step.picture is not None and not _is_integer_in(step.picture, 0, pictures - 1):
        raise ValueError(
            f"{where} has picture={_shorten(step.picture)}; it must be an index below {pictures} or null"
        )
    _check_text(step.text, f"text of {where}")
    _check_text(step.choice, f"choice of {where}")
    for name, chance in _check_dict(step.options, f"options of {where}").items():
        if not _is_finite(chance) or not 0 <= chance <= 1:
            raise ValueError(
                f"options of {where}: {_shorten(name)} is {_shorten(chance)}; it must be from 0 to 1"
            )
    for recall in step.recalls:
        _check_recall(recall, number)


def _check_recall(recall: Recall, number: int) -> None:
    where = f"recalls of step {number}"
    _check_text(recall.name, f"name of {where}")
    if not _is_finite(recall.most) or recall.most < 0:
        raise ValueError(f"{where} has most={_shorten(recall.most)}: it must be 0 or more")
    after, total = 0, 0
    for run in recall.runs:
        if (
            len(run) != 2
            or not _is_integer_in(run[0], after, number)
            or not _is_integer_in(run[1], 1, number - run[0] + 1)
        ):
            raise ValueError(
                f"{where} has the run {_shorten(list(run))}; runs must be sorted, must not overlap, and must "
                "end at or before this step"
            )
        after, total = run[0] + run[1], total + run[1]
    if total != len(recall.levels):
        raise ValueError(
            f"{where} has {len(recall.levels)} levels for {total} steps; expected one level per step"
        )


def _is_integer_in(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def _check_text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{where} is {_shorten(value)}, not a text")  # noqa: TRY004  (invalid file content)


def _check_list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: {_shorten(value)} is not a list")  # noqa: TRY004
    return value


def _check_dict(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {_shorten(value)} is not an object")  # noqa: TRY004
    return value


def _shorten(value: Any) -> str:
    return f"{value!r:.60}"
