"""A trace as a picture for a paper: its tracks, and by what recalls, what each step was led back to."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scrubjay.experiments.looking.trace import Trace
from scrubjay.experiments.reports.curves import save_figure

_TRACK, _MAP, _WIDTH = 1.1, 2.8, 6.4
"""Inches."""
_MOST_TRACKS, _MOST_MAPS = 48, 12
_LARGEST = 600
"""Points of a map: longer traces are drawn by the largest weights of steps side by side."""


def draw_trace(trace: Trace, out: Path | str) -> Path:
    """Draw a trace into a file, in the format that its name ends in, and return its path.

    Of more tracks, and of more that recalls, the first 48 and 12 are drawn.

    Raises ValueError if there is no step, or nothing to draw.
    """
    size = max(1, -(-len(trace.steps) // _LARGEST))
    maps = recall_maps(trace, size, _MOST_MAPS)
    tracks = dict(itertools.islice(trace.tracks.items(), _MOST_TRACKS))
    heights = [_TRACK] * len(tracks) + [_MAP] * len(maps)
    if not trace.steps or not heights:
        raise ValueError(f"{trace.title!r} has {len(trace.steps)} steps, no track and no recall to draw")
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.6), dpi=150, layout="constrained")
    rows = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    figure.suptitle(trace.title, fontsize=10)
    steps = np.arange(len(trace.steps))
    for axes, (name, values) in zip(rows, tracks.items(), strict=False):
        known = np.array([np.nan if value is None else value for value in values], float)
        axes.plot(steps, known, linewidth=1.2, marker="." if len(steps) < 60 else None, markersize=3)
        axes.set_title(name, fontsize=8, loc="left")
        axes.ticklabel_format(useOffset=False)
        axes.tick_params(labelsize=7)
    for axes, (name, weights) in zip(rows[len(tracks) :], maps.items(), strict=True):
        edge = size * len(weights) - 0.5
        shown = axes.imshow(
            weights.T,
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            cmap="Blues",
            vmin=0,
            extent=(-0.5, edge, -0.5, edge),
        )
        axes.set_title(f"{name}: the step recalled, at each step", fontsize=8, loc="left")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=7)
        figure.colorbar(shown, ax=axes, pad=0.01).ax.tick_params(labelsize=6)
    rows[-1].set_xlabel("step", fontsize=8)
    rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return save_figure(figure, out)


def recall_maps(
    trace: Trace, size: int = 1, most: int | None = None
) -> dict[str, Float[np.ndarray, "step recalled"]]:
    """Return by name the weight at each step of each step that it was led back to.

    Of `size` steps side by side it is the largest; of more names than `most` the first are told.
    """
    names = dict.fromkeys(recall.name for step in trace.steps for recall in step.recalled)
    points = -(-len(trace.steps) // size)
    maps = {name: np.zeros((points, points), np.float32) for name in itertools.islice(names, most)}
    for number, step in enumerate(trace.steps):
        for recall in step.recalled:
            if recall.name in maps:
                np.maximum.at(maps[recall.name][number // size], recall.steps // size, recall.weights)
    return maps
