"""Stored rows and tables of results, and the parts of figures that are drawn from them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scrubjay.experiments.viz.curves import (
    LABEL_BOX,
    draw_mean,
    mark_training,
    set_log_ticks,
)
from scrubjay.experiments.viz.style import GREY, assign_styles

Row = Mapping[str, Any]
Seeds = dict[Any, list[float]]
"""Scores of the seeds by position on the axis."""


class Results:
    """Folder of results: rows of scores and tables of reports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read_rows(self, name: str, **fields: Any) -> list[Row]:
        """Return the rows of a file with these fields, except those of seeds used for tuning."""
        lines = (self.folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if not row.get("development")]
        return [row for row in rows if all(row.get(key) == value for key, value in fields.items())]

    def read_scores(self, name: str, task: str, **test: Any) -> dict[str, list[float]]:
        """Return the scores of the seeds by memory under these conditions of the test."""
        scores: dict[str, list[float]] = defaultdict(list)
        for row in self.read_rows(name, task=task, test=test):
            scores[row["memory"]].append(row["score"])
        return scores

    def read_curves(self, name: str, task: str, along: str, **others: Any) -> dict[str, Seeds]:
        """Return the scores of the seeds by memory and by the value of a setting of the test."""
        curves: dict[str, Seeds] = defaultdict(lambda: defaultdict(list))
        for row in self.read_rows(name, task=task):
            test = row["test"]
            if test.keys() == {along, *others} and all(test[key] == value for key, value in others.items()):
                curves[row["memory"]][test[along]].append(row["score"])
        return curves

    def read_table(self, name: str, first: str, after: str = "") -> tuple[list[str], list[list[str]]]:
        """Return head and rows of the first table of a report whose head begins with this cell."""
        text = (self.folder / f"{name}.md").read_text(encoding="utf-8")
        text = text[text.index(after) :]
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            lines = [
                [cell.strip() for cell in line.strip("| \n").split(" | ")] for line in table.splitlines()
            ]
            if lines[0][0] == first:
                return lines[0], lines[2:]
        raise ValueError(f"{name}.md has no table that begins with {first!r}")

    def read_bytes(self) -> dict[str, int]:
        """Return the bytes of the state by memory in the experiments on MQAR."""
        text = (self.folder / "mqar.md").read_text(encoding="utf-8")
        rows = re.findall(r"^\| mqar \| (\w+) \| [\d,]+ \| ([\d,]+) \|$", text, re.MULTILINE)
        return {name: int(size.replace(",", "")) for name, size in rows}


def make_axes(
    panels: int, width: float = 4.2, height: float = 3.6, columns: int = 0, **more: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels of this size in inches, side by side or in rows of `columns` panels."""
    columns = columns or panels
    rows = -(-panels // columns)
    figure = Figure(figsize=(width * columns, height * rows), dpi=150, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **more).flat)


def draw_seeds(axes: Axes, scores: Mapping[str, Sequence[float]], title: str, unit: str) -> None:
    """Draw a line of dots per name, one dot per seed, and a bar at the mean."""
    styles = assign_styles(scores)
    for place, (name, seeds) in enumerate(scores.items()):
        draw_dots(axes, seeds, place, styles[name].color, styles[name].marker)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.set_ylim(len(scores) - 0.4, -0.6)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(unit)
    axes.grid(alpha=0.3)


def draw_dots(
    axes: Axes, seeds: Sequence[float], place: float, color: str, marker: str, half: float = 0.32, **more: Any
) -> None:
    """Draw a dot per seed and a bar at their mean.

    Args:
        axes: Axes to draw in.
        seeds: Score of each seed.
        place: Position on the vertical axis.
        color: Color of dots and bar.
        marker: Marker of the dots.
        half: Half of the height of the bar.
        more: Further arguments of `Axes.plot` for the dots.
    """
    axes.plot([np.mean(seeds)] * 2, [place - half, place + half], color=color, linewidth=2.5)
    dots = {"markersize": 5, "alpha": 0.7, **more}
    axes.plot(seeds, [place] * len(seeds), marker, color=color, **dots)


def mark_level(axes: Axes, level: float, label: str) -> None:
    """Draw a labeled vertical line at a score."""
    axes.axvline(level, color=GREY, linestyle="--", linewidth=1)
    place = {"rotation": 90, "ha": "right", "va": "bottom", "fontsize": 7.5, "color": "#444444"}
    axes.annotate(
        f"{label} ({level:.3g})",
        (level, 0.01),
        (-4, 2),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        bbox=LABEL_BOX,
        zorder=1.5,
        **place,
    )


def draw_curves(
    axes: Axes, curves: Mapping[str, Seeds], title: str, unit: str, training_value: float
) -> None:
    """Draw the mean and the range of each memory along the axis, and the value in training."""
    styles = assign_styles(curves)
    for name in sorted(
        curves, key=lambda name: -np.mean([np.mean(seeds) for seeds in curves[name].values()])
    ):
        at = sorted(curves[name])
        values = np.transpose([curves[name][value] for value in at])
        label = f"{name} ({len(values)} seeds)"
        draw_mean(axes, at, values, label, styles[name], alpha=min(0.2, 0.8 / len(curves)), linewidth=1.6)
        set_log_ticks(axes, at)
    mark_training(axes, training_value)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(unit)
    axes.set_ylim(-0.02, 1.04)
    axes.grid(alpha=0.3)


def sort_scores(scores: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """Return the scores with the highest mean first, and the baseline last."""
    return dict(sorted(scores.items(), key=lambda item: (item[0] == "none", -np.mean(item[1]))))
