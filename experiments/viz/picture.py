"""Figure of a trace for a paper: its tracks, and a map of the recalled steps for each recall."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scrubjay.experiments.reports.curves import save_figure
from scrubjay.experiments.viz.trace import Trace

_TRACK, _MAP, _WIDTH = 1.1, 2.8, 6.4
"""Heights of a track and of a map, and the width of the figure, in inches."""
_MOST_TRACKS, _MOST_MAPS = 48, 12
_LARGEST = 600
"""Maximum width of a map in cells; in longer traces a cell is the maximum over consecutive steps."""


def draw_trace(trace: Trace, out: Path | str) -> Path:
    """Draw a trace into a file, whose name sets the format, and return the path.

    At most 48 tracks and 12 recall maps are drawn. Raises ValueError if the trace has no steps, or neither
    tracks nor recalls.
    """
    size = max(1, -(-len(trace.steps) // _LARGEST))
    maps = recall_maps(trace, size, _MOST_MAPS)
    tracks = dict(itertools.islice(trace.tracks.items(), _MOST_TRACKS))
    heights = [_TRACK] * len(tracks) + [_MAP] * len(maps)
    if not trace.steps or not heights:
        raise ValueError(
            f"{trace.title!r} has {len(trace.steps)} steps, {len(tracks)} tracks and {len(maps)} recalls; "
            "there is nothing to draw"
        )
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.6), dpi=150, layout="constrained")
    rows = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    figure.suptitle(trace.title, fontsize=10)
    steps = np.arange(len(trace.steps))
    for axes, (name, values) in zip(rows, tracks.items(), strict=False):
        numbers = np.array([np.nan if value is None else value for value in values], float)
        axes.plot(steps, numbers, linewidth=1.2, marker="." if len(steps) < 60 else None, markersize=3)
        axes.set_title(name, fontsize=8, loc="left")
        axes.ticklabel_format(useOffset=False)
        axes.tick_params(labelsize=7)
    for axes, (name, weights) in zip(rows[len(tracks) :], maps.items(), strict=True):
        edge = size * len(weights) - 0.5
        image = axes.imshow(
            weights.T,
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            cmap="Blues",
            vmin=0,
            extent=(-0.5, edge, -0.5, edge),
        )
        axes.set_title(f"{name}: recalled step (y) at each step (x)", fontsize=8, loc="left")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=7)
        figure.colorbar(image, ax=axes, pad=0.01).ax.tick_params(labelsize=6)
    rows[-1].set_xlabel("step", fontsize=8)
    rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return save_figure(figure, out)


def recall_maps(
    trace: Trace, size: int = 1, most: int | None = None
) -> dict[str, Float[np.ndarray, "step source"]]:
    """Return one map of recall weights per recall name; rows are steps, and columns are recalled steps.

    A cell of a map covers `size` consecutive steps on each axis and holds the largest of their weights.
    Only the first `most` names get a map.
    """
    names = dict.fromkeys(recall.name for step in trace.steps for recall in step.recalls)
    points = -(-len(trace.steps) // size)
    maps = {name: np.zeros((points, points), np.float32) for name in itertools.islice(names, most)}
    for number, step in enumerate(trace.steps):
        for recall in step.recalls:
            if recall.name in maps:
                np.maximum.at(maps[recall.name][number // size], recall.steps // size, recall.weights)
    return maps
