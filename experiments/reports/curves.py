"""Learning curves: one panel per task, one colour per memory, mean and range over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from scrubjay.experiments.kinds.beginning import flat
from scrubjay.experiments.recipes.registry import longer_of
from scrubjay.experiments.reports.colours import colours
from scrubjay.experiments.run import Run
from scrubjay.experiments.words.foreign import printable

LABELS = {
    "charts/success": "success per episode (0 to 1)",
    "charts/episodic_return": "return per episode",
    "charts/episodic_length": "steps per episode",
    "charts/SPS": "environment steps per second",
}
_GRID = 400
_LONGEST_LABEL = 300
_MOST_NAMES = 18
"""Of a legend's column: more are higher than the picture."""
_COLUMN_INCHES = 1.8


def plot_runs(runs: Sequence[Run], out: Path | str, metric: str | None = None) -> Path:
    """Draw the runs into a PNG, or whatever `out` ends in, and return its path.

    Runs of one task and memory share a curve: their mean, with the range from worst to best seed shaded.
    Where runs of one memory differ in their settings, as in its sizes, each of these has a curve. `metric`
    defaults to success where every run has it, else return; a dashed line shows how much success is possible
    without memory, where that is known. Raises ValueError if there is nothing to draw, naming the metrics
    that exist.
    """
    rows = {run: run.metrics() for run in runs}
    labels = contenders(runs)
    metric = metric or _default_metric(list(rows.values()))
    panels: dict[str, dict[str, list[_Curve]]] = {}
    for run, run_rows in rows.items():
        points = [(row["step"], row[metric]) for row in run_rows if metric in row]
        if not points:
            names = sorted({name for row in run_rows for name in row if name != "step"})
            raise ValueError(f"{run.path} has no metric {metric!r}; it has {', '.join(names) or 'none yet'}")
        steps, values = np.array(points, dtype=float).T
        panels.setdefault(run.config.recipe, {}).setdefault(labels[run], []).append(
            _Curve(run.config.seed, steps, values)
        )
    chance = {run.config.recipe: run.success_without_memory for run in runs}
    shades = colours(label for panel in panels.values() for label in panel)
    figure = figure_of(len(panels))
    for axes, (recipe, panel) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for label in sorted(panel):
            _draw_curve(axes, panel[label], label, shades[label])
        _dress(axes, recipe, metric)
        if metric == "charts/success" and chance.get(recipe) is not None:
            axes.axhline(
                chance[recipe], color="grey", linestyle="--", linewidth=1, label="best without memory"
            )
        beside(axes)
    return save_figure(figure, out)


def has_curve(run: Run) -> bool:
    """Return whether there is something to draw of its training: an episode that ended, at least."""
    return any("charts/success" in row or "charts/episodic_return" in row for row in run.metrics())


def contenders(runs: Sequence[Run]) -> dict[Run, str]:
    """Name each run by its memory and by the settings in which runs of that memory differ among `runs`.

    Settings are those of memory, policy, learner and task: what else differs, as the seed, makes no other.
    """
    settings = {run: _settings(run.config) for run in runs}
    names = {}
    for run in runs:
        alike = [settings[other] for other in runs if _place(other) == _place(run)]
        differing = [name for name in settings[run] if len({str(own.get(name)) for own in alike}) > 1]
        own = ", ".join(
            f"{name.rpartition('.')[2].replace('_', ' ')} {settings[run][name]}" for name in differing
        )
        names[run] = f"{run.config.label}, {own}" if own else run.config.label
    return names


def _place(run: Run) -> tuple[str, str]:
    """Return the panel that a run is drawn in, and its name there."""
    return run.config.recipe, run.config.label


def _settings(config: Any) -> dict[str, Any]:
    """Return what makes an experiment another, by names such as `policy.clock`."""
    parts = {"memory": dataclasses.asdict(config.memory)}
    for part in ("policy", "learner", "env"):
        if (own := getattr(config, part, None)) is not None:
            parts[part] = {**dataclasses.asdict(own), "memory": {}}
    return flat(parts)


def plot_longer(scores: Sequence[tuple[Run, dict[int, float]]], out: Path | str) -> Path:
    """Draw each memory's score against how long the task was in the test, and return the path.

    `scores` pairs a run with its scores by difficulty, trained value first.
    """
    panels: dict[str, dict[str, list[dict[int, float]]]] = {}
    for run, by_length in scores:
        panels.setdefault(run.config.recipe, {}).setdefault(run.config.label, []).append(by_length)
    shades = colours(label for panel in panels.values() for label in panel)
    figure = figure_of(len(panels))
    for axes, (recipe, panel) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for label in sorted(panel):
            lengths = np.array(list(panel[label][0]))
            values = np.array([list(by_length.values()) for by_length in panel[label]])
            axes.plot(lengths, values.mean(axis=0), marker="o", color=shades[label], label=label, linewidth=2)
            low, high = values.min(axis=0), values.max(axis=0)
            alpha = min(0.2, 0.5 / len(panel))  # ranges of many lie upon each other
            axes.fill_between(lengths, low, high, color=shades[label], alpha=alpha, linewidth=0)
        axes.axvline(lengths[0], color="grey", linestyle=":", linewidth=1, label="trained here")
        axes.set_xscale("log")
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.minorticks_off()
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(f"{recipe}: trained short, tested long")
        setting = longer_of(recipe)
        assert setting is not None  # or there were no scores
        axes.set_xlabel(f"{setting[0].replace('_', ' ')} in the test")
        axes.set_ylabel(LABELS["charts/success"])
        axes.grid(alpha=0.3)
        beside(axes)
    return save_figure(figure, out)


def figure_of(panels: int) -> Figure:
    """Return an empty figure, wide enough for so many panels side by side."""
    return Figure(figsize=(1.5 + 6 * panels, 4.5), dpi=120, layout="constrained")


def beside(axes: Axes) -> None:
    """Put the legend beside what it explains, where it covers no curve: in columns, where names are many."""
    columns = -(-len(axes.get_legend_handles_labels()[1]) // _MOST_NAMES)
    if columns > 1 and isinstance(axes.figure, Figure):
        axes.figure.set_figwidth(axes.figure.get_figwidth() + _COLUMN_INCHES * (columns - 1))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9, ncols=max(columns, 1))


def save_figure(figure: Figure, out: Path | str) -> Path:
    """Write a figure, in the format its name ends in, or as PNG, and return the path."""
    out = Path(out)
    out = out if out.suffix else out.with_name(f"{out.name}.png")
    out.parent.mkdir(parents=True, exist_ok=True)
    for text in figure.findobj(Text):
        # A name of a run is no formula, nor longer than a picture is wide.
        text.set_text(printable(text.get_text())[:_LONGEST_LABEL].replace("$", r"\$"))  # pyright: ignore
    figure.savefig(out)
    return out


def _default_metric(rows: list[list[dict[str, float]]]) -> str:
    told = all(any("charts/success" in row for row in run_rows) for run_rows in rows)
    return "charts/success" if rows and told else "charts/episodic_return"


class _Curve(NamedTuple):
    seed: int
    steps: NDArray[np.float64]
    values: NDArray[np.float64]


def _counted(curves: list[_Curve]) -> str:
    """Return how many seeds there are, and how many runs if that is another number: settings may differ."""
    seeds = len({curve.seed for curve in curves})
    told = f"{seeds} seed{'' if seeds == 1 else 's'}"
    return told if seeds == len(curves) else f"{len(curves)} runs of {told}"


def _draw_curve(axes: Axes, curves: list[_Curve], label: str, colour: Any) -> None:
    # Only where every seed has points: a mean over fewer seeds would jump where one run ends.
    first = max(curve.steps[0] for curve in curves)
    last = min(curve.steps[-1] for curve in curves)
    grid = np.linspace(first, max(first, last), _GRID)
    values = np.stack([np.interp(grid, curve.steps, curve.values) for curve in curves])
    counted = "" if len(curves) == 1 else f" ({_counted(curves)})"
    axes.plot(grid, values.mean(axis=0), color=colour, label=label + counted, linewidth=2)
    if len(curves) > 1:
        axes.fill_between(grid, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)


def _dress(axes: Axes, recipe: str, metric: str) -> None:
    if metric == "charts/success":
        axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(left=0)
    axes.set_title(recipe)
    axes.set_xlabel("steps")
    axes.set_ylabel(LABELS.get(metric, metric))
    axes.xaxis.set_major_formatter(lambda steps, _: _short(steps))
    axes.grid(alpha=0.3)


def _short(steps: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(steps) >= size:
            return f"{steps / size:g}{letter}"
    return f"{steps:g}"
