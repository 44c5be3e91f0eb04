"""A trace as a picture for a paper: its tracks, and by what recalls, what each step was led back to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from scrubjay.experiments.looking.trace import Trace
from scrubjay.experiments.reports.curves import save_figure

_TRACK, _MAP, _WIDTH = 1.1, 2.8, 6.4
"""Inches."""
_MOST_MAPS = 12
_LARGEST = 600
"""Points of a map: longer traces are drawn by the largest weights of steps side by side."""


def draw_trace(trace: Trace, out: Path | str) -> Path:
    """Draw a trace into a file, in the format that its name ends in, and return its path.

    Raises ValueError if there is no step, or nothing to draw.
    """
    maps = recall_maps(trace)
    names = list(maps)[:_MOST_MAPS]
    heights = [_TRACK] * len(trace.tracks) + [_MAP] * len(names)
    if not trace.steps or not heights:
        raise ValueError(f"{trace.title!r} has {len(trace.steps)} steps, no track and no recall to draw")
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.6), dpi=150, layout="constrained")
    rows = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    figure.suptitle(trace.title, fontsize=10)
    steps = np.arange(len(trace.steps))
    for axes, (name, values) in zip(rows, trace.tracks.items(), strict=False):
        known = np.array([np.nan if value is None else value for value in values], float)
        axes.plot(steps, known, linewidth=1.2, marker="." if len(steps) < 60 else None, markersize=3)
        axes.set_title(name, fontsize=8, loc="left")
        axes.ticklabel_format(useOffset=False)
        axes.tick_params(labelsize=7)
    for axes, name in zip(rows[len(trace.tracks) :], names, strict=True):
        edge = len(steps) - 0.5
        shown = axes.imshow(
            _thinned(maps[name]).T,
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            cmap="Blues",
            vmin=0,
            extent=(-0.5, edge, -0.5, edge),
        )
        axes.set_title(f"{name}: the step recalled, at each step", fontsize=8, loc="left")
        axes.tick_params(labelsize=7)
        figure.colorbar(shown, ax=axes, pad=0.01).ax.tick_params(labelsize=6)
    rows[-1].set_xlabel("step", fontsize=8)
    return save_figure(figure, out)


def recall_maps(trace: Trace) -> dict[str, Float[np.ndarray, "step recalled"]]:
    """Return by name the weight at each step of each step that it was led back to."""
    count, maps = len(trace.steps), {}
    for number, step in enumerate(trace.steps):
        for recall in step.recalled:
            rows = maps.setdefault(recall.name, np.zeros((count, count), np.float32))
            rows[number, recall.steps] = recall.weights
    return maps


def _thinned(rows: Float[np.ndarray, "step recalled"]) -> Float[np.ndarray, "points points"]:
    size = -(-len(rows) // _LARGEST)
    short = -len(rows) % size
    rows = np.pad(rows, ((0, short), (0, short)))
    return rows.reshape(len(rows) // size, size, -1, size).max(axis=(1, 3))
