"""Plots of the long-context measurements."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from scrubjay.experiments.lm.reading import Curve
from scrubjay.experiments.measurements import select
from scrubjay.experiments.viz.curves import make_figure, place_legend, save_figure
from scrubjay.experiments.viz.style import assign_styles

_BINS = 40


def plot_perplexity(curves: dict[str, Curve], out: Path | str) -> Path:
    """Plot perplexity, time per token and process memory against the position, and return the path."""
    figure = make_figure(3)
    quality, speed, memory = figure.subplots(1, 3)
    styles = assign_styles(curves)
    for name, curve in curves.items():
        line = {**styles[name].as_line(), "label": name, "linewidth": 2}
        edges = np.unique(np.linspace(0, len(curve.nats), min(_BINS, len(curve.nats)) + 1).astype(int))
        means = [curve.perplexity(first, last) for first, last in itertools.pairwise(edges)]
        quality.plot((edges[1:] + edges[:-1]) / 2, means, **line)
        sizes = np.diff(curve.ends, prepend=0)
        whole = 2 * sizes >= sizes.max()  # a short block, such as the last, costs more per token
        milliseconds = 1000 * curve.per_block("cpu")[whole] / sizes[whole]
        speed.plot(curve.ends[whole], _smooth(milliseconds), **line)
        memory.plot(curve.ends, curve.per_block("resident") / 2**30, **line)
    _log_scale(quality)
    for axes, title in (
        (quality, "perplexity"),
        (speed, "CPU ms/token"),
        (memory, "process memory, GiB"),
    ):
        axes.set_title(title)
        axes.set_xlabel("tokens read")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_formatter(_short)
    for axes in (speed, memory):
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    place_legend(memory)
    return save_figure(figure, out)


def plot_haystack(rows: Sequence[dict[str, Any]], methods: Sequence[str], out: Path | str) -> Path:
    """Plot one heat map of scores per method, and return the path.

    A column is a text length. A row is a needle depth or a task.
    """
    lengths = sorted({row["length"] for row in rows})
    places = list(dict.fromkeys((row["task"], row["depth"]) for row in rows))
    columns = min(4, len(methods))
    across = math.ceil(len(methods) / columns)
    size = (1.6 + columns * (0.7 + 0.55 * len(lengths)), 0.8 + across * (1.0 + 0.34 * len(places)))
    figure = Figure(figsize=(max(size[0], 4.5), size[1]), dpi=120, layout="constrained")
    grid = figure.subplots(across, columns, squeeze=False, sharex=True, sharey=True)
    image = None
    for axes in grid.flat[len(methods) :]:
        axes.set_axis_off()
    for axes, method in zip(grid.flat, methods, strict=False):
        scores = np.full((len(places), len(lengths)), np.nan)
        for row_number, (task, depth) in enumerate(places):
            for column, length in enumerate(lengths):
                cell_rows = select(rows, task=task, depth=depth, length=length, method=method)
                if cell_rows:
                    score = 100 * fmean(row["score"] for row in cell_rows)
                    scores[row_number, column] = score
                    axes.text(
                        column,
                        row_number,
                        f"{score:.0f}",
                        color="white" if score < 60 else "black",
                        ha="center",
                        va="center",
                        fontsize=7,
                    )
        image = axes.imshow(scores, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        axes.set_title(method, fontsize=10)
        axes.tick_params(labelbottom=True)
        axes.set_xticks(range(len(lengths)), [_short(length) for length in lengths], fontsize=8)
        axes.set_yticks(range(len(places)), [_place(task, depth) for task, depth in places], fontsize=8)
    figure.supxlabel("tokens", fontsize=9)
    if image is not None:
        figure.colorbar(image, ax=grid, label="needles retrieved, %", shrink=0.9)
    return save_figure(figure, out)


def plot_speed(rows: Sequence[dict[str, Any]], out: Path | str) -> Path:
    """Plot the time per token against the context length, and return the path."""
    figure = make_figure(1)
    axes = figure.subplots()
    styles = assign_styles(row["method"] for row in rows)
    for method in dict.fromkeys(row["method"] for row in rows):
        own = select(rows, method=method)
        lengths = sorted({row["context"] for row in own})
        turns = [[1000 * row["cpu"] for row in select(own, context=length)] for length in lengths]
        middle = np.array([median(turn) for turn in turns])
        spread = [middle - [*map(min, turns)], [*map(max, turns)] - middle]
        axes.errorbar(
            lengths, middle, spread, **styles[method].as_points(), label=method, capsize=3, linewidth=2
        )
    axes.set_xscale("log", base=2)
    _log_scale(axes)
    contexts = sorted({row["context"] for row in rows})
    axes.set_xticks(contexts, [_short(length) for length in contexts])
    axes.minorticks_off()
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("CPU ms/token, median, min and max")
    axes.grid(alpha=0.3)
    place_legend(axes)
    return save_figure(figure, out)


def _log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return running medians, with a window that leaves about `_BINS` independent values."""
    width = max(1, len(values) // _BINS)
    return np.array([np.median(values[max(0, i - width) : i + width + 1]) for i in range(len(values))])


def _place(task: str, depth: float | None) -> str:
    return task if depth is None else f"{depth:g} %"


def _short(number: float, _: float = 0.0) -> str:
    for size, letter in ((2**20, "M"), (2**10, "k")):
        if number >= size and number % size == 0:
            return f"{number / size:g}{letter}"
    return f"{number / 1000:g}k" if number >= 1000 else f"{number:g}"
