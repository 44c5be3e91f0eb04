"""Learning curves and curves of test scores, with the mean and the range over seeds.

A memory has the same color, line and marker in every plot.
"""

from __future__ import annotations

import dataclasses
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import ArrayLike, NDArray

from scrubjay.experiments.cli.untrusted_text import printable
from scrubjay.experiments.files import write_atomically
from scrubjay.experiments.recipes.registry import longer_range, task_title
from scrubjay.experiments.runs.initial_weights import flatten
from scrubjay.experiments.runs.metrics import WINDOW
from scrubjay.experiments.runs.run import Run
from scrubjay.experiments.viz.style import Style, assign_styles

Content = TypeVar("Content")
_log = logging.getLogger(__name__)

LABELS = {
    "charts/success": "success per episode (0 to 1)",
    "charts/episodic_return": "return per episode",
    "charts/episodic_length": "steps per episode",
    "charts/SPS": "environment steps per second",
}
_TEAM_LABELS = {
    "episodic_return": "return per episode, over all agents",
    "sum_rate_bps": "sum of rates, bit/s",
    "fifth_percentile_rate_bps": "5th percentile of users' rates, bit/s",
}
"""Labels of the measures of teams that are plotted against the team size."""
_BAND = "Lines: mean of the seeds; bands: lowest to highest seed"
_AVERAGED = f"Training scores are moving means over the last {WINDOW} episodes."
_LEVEL = "level"
"""Id of lines that are labeled in the axes instead of the legend."""
LABEL_BOX = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}
"""Background of a label in the axes, so that it stays legible over a curve."""
_GRID = 400
_LONGEST_LABEL = 300
_MOST_NAMES = 18
"""Maximum number of names in a column of a legend; longer columns do not fit the figure."""
_COLUMN_INCHES = 1.8
_DOT = 6
"""Size of the dot of an evaluation, in points."""


def plot_runs(runs: Sequence[Run], out: Path | str, metric: str | None = None) -> Path:
    """Plot the learning curves of runs to a file and return its path; the format is PNG by default.

    Runs with the same task, memory and settings share one curve. It is their mean where all of them have
    values, with the range from the worst to the best seed shaded. Where only some have values, each is a thin
    line of its own. A cross marks the end of a run whose training has not finished. Runs without values are
    left out, with a warning. The default metric is the success rate if every run has it, else the return.
    Dots mark evaluations during training, whose episodes differ from those of training. A labeled line shows
    the best success without memory, if known. A note says what the bands and the training scores are. Raises
    ValueError, naming the existing metrics, if no run has the metric.
    """
    rows = {run: run.metrics() for run in runs}
    labels = label_runs(runs)
    if metric is None:
        has_success = [any("charts/success" in row for row in rows[run]) for run in runs if has_curve(run)]
        metric = "charts/success" if has_success and all(has_success) else "charts/episodic_return"
    panels: dict[str, dict[str, list[_Curve]]] = {}
    missing = []
    for run, run_rows in rows.items():
        points = [(row["step"], row[metric]) for row in run_rows if metric in row]
        if not points:
            missing.append(run)
            continue
        steps, values = np.array(points, dtype=float).T
        # Training plots its curve before the final evaluation, whose result makes a run a finished one.
        is_whole = run.is_finished or run_rows[-1]["step"] >= run.config.planned_steps
        panels.setdefault(run.config.recipe, {}).setdefault(labels[run], []).append(
            _Curve(run.config.seed, steps, values, is_whole, _read_evaluations(run_rows, metric))
        )
    if not panels and metric.startswith("charts/") and not any(map(has_curve, runs)):
        paths = ", ".join(str(run.path) for run in runs)
        raise ValueError(f"{paths}: no training episode has ended yet, so there is no curve")
    if not panels:
        names = sorted({name for run_rows in rows.values() for row in run_rows for name in row} - {"step"})
        paths = ", ".join(str(run.path) for run in runs)
        raise ValueError(f"{paths} has no metric {metric!r}; it has {', '.join(names) or 'none yet'}")
    for run in missing:
        reason = f"it has no metric {metric!r}" if has_curve(run) else "no episode has ended yet"
        _log.warning("%s is not drawn: %s", run.path, reason)
    chance = {run.config.recipe: run.success_without_memory for run in runs}
    styles = assign_styles(label for panel in panels.values() for label in panel)
    figure, rows_of_axes = make_panels(panels)
    for axes, recipe, panel in rows_of_axes:
        for label in sorted(panel):
            _draw_curve(axes, panel[label], label, styles[label])
        if not all(curve.is_finished for curves in panel.values() for curve in curves):
            axes.plot([], [], "x", color="grey", label="not finished")
        if any(curve.evaluations for curves in panel.values() for curve in curves):
            axes.plot([], [], ".", color="grey", markersize=_DOT, label="evaluation")
        if metric == "charts/success":
            axes.set_ylim(-0.02, 1.02)
        axes.set_xlim(left=0)
        axes.set_title(task_title(recipe))
        axes.set_xlabel("training steps")
        axes.set_ylabel(LABELS.get(metric, metric))
        axes.xaxis.set_major_formatter(_format_steps)
        axes.grid(alpha=0.3)
        level = chance[recipe]
        if metric == "charts/success" and level is not None:
            draw_level(axes, level, "best without memory")
        place_legend(axes)
    is_averaged = metric.startswith("charts/") and all(hasattr(run.config, "env") for run in runs)
    add_note(figure, f"{_BAND}. {_AVERAGED if is_averaged else ''}")
    return save_figure(figure, out)


def has_curve(run: Run) -> bool:
    """Return True if a run has a learning curve: at least one training episode has ended."""
    return any("charts/success" in row or "charts/episodic_return" in row for row in run.metrics())


def label_runs(runs: Sequence[Run]) -> dict[Run, str]:
    """Return a label per run: its memory, and the settings in which runs of that memory differ.

    Settings are those of memory, policy, learner and task; differences such as the seed are ignored.
    """
    settings = {run: _settings(run.config) for run in runs}
    names = {}
    for run in runs:
        alike = [settings[other] for other in runs if _panel_key(other) == _panel_key(run)]
        differing = [name for name in settings[run] if len({str(own.get(name)) for own in alike}) > 1]
        own = ", ".join(
            f"{name.rpartition('.')[2].replace('_', ' ')} {settings[run][name]}" for name in differing
        )
        names[run] = f"{run.config.label}, {own}" if own else run.config.label
    return names


def _panel_key(run: Run) -> tuple[str, str]:
    """Return the recipe of a run, which determines its panel, and the label of the run."""
    return run.config.recipe, run.config.label


def _settings(config: Any) -> dict[str, Any]:
    """Return a dict of the settings that distinguish experiments, with keys such as `policy.clock`."""
    parts = {"memory": dataclasses.asdict(config.memory)}
    for part in ("policy", "learner", "env"):
        if (own := getattr(config, part, None)) is not None:
            parts[part] = {**dataclasses.asdict(own), "memory": {}}
    return flatten(parts)


def plot_longer(scores: Sequence[tuple[Run, dict[int, float]]], out: Path | str) -> Path:
    """Plot the score of each memory against the test length of the task, and return the path.

    Each item of `scores` is a pair: a run, and a dict from test length to score. The first key of each dict
    is the training length.
    """
    panels: dict[str, dict[str, list[dict[int, float]]]] = {}
    for run, by_length in scores:
        panels.setdefault(run.config.recipe, {}).setdefault(run.config.label, []).append(by_length)
    styles = assign_styles(label for panel in panels.values() for label in panel)
    figure, rows = make_panels(panels)
    for axes, recipe, panel in rows:
        lengths = list(next(iter(panel.values()))[0])
        alpha = min(0.2, 0.5 / len(panel))  # the ranges of many curves overlap
        for label in sorted(panel):
            style, values = styles[label], [list(by_length.values()) for by_length in panel[label]]
            label = f"{label} ({_count_seeds(len(values))})"
            draw_mean(axes, lengths, values, label, style, alpha)
        mark_training(axes, lengths[0])
        set_log_ticks(axes, lengths)
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(f"{task_title(recipe)}: tests on longer tasks")
        setting = longer_range(recipe)
        assert setting is not None  # otherwise there are no scores
        axes.set_xlabel(f"{setting[0].replace('_', ' ')} (test)")
        axes.set_ylabel(LABELS["charts/success"])
        axes.grid(alpha=0.3)
        place_legend(axes)
    add_note(figure, f"{_BAND}.")
    return save_figure(figure, out)


def plot_sizes(
    scores: Mapping[str, Mapping[int, Sequence[Mapping[str, float]]]],
    size: str,
    training_size: int,
    out: Path | str,
) -> Path:
    """Plot the measures of each method and rule-based policy against the team size, and return the path.

    `scores` maps the name of each method or rule-based policy to a dict from team size to measures. `size` is
    the name of the setting for the team size, and `training_size` its value in training. Curves show the mean
    and the range over seeds; curves of rule-based policies are dashed.
    """
    styles = assign_styles(scores)
    figure = make_figure(len(_TEAM_LABELS))
    panels = figure.subplots(1, len(_TEAM_LABELS))
    for axes, (measure, axis_label) in zip(panels, _TEAM_LABELS.items(), strict=True):
        for label, by_size in scores.items():
            values = np.transpose([[seed[measure] for seed in seeds] for seeds in by_size.values()])
            style = styles[label]
            line = "--" if label.startswith("rule: ") else "-"
            draw_mean(axes, [*by_size], values, label, style._replace(line=line))
            axes.set_xticks([*by_size])
        mark_training(axes, training_size)
        axes.set_xlabel(f"{size.replace('_', ' ')} (test)")
        axes.set_ylabel(axis_label)
        axes.grid(alpha=0.3)
    place_legend(panels[-1])
    return save_figure(figure, out)


def make_figure(panels: int) -> Figure:
    """Return an empty figure that is wide enough for `panels` axes side by side."""
    return Figure(figsize=(1.5 + 6 * panels, 4.5), dpi=120, layout="constrained")


def make_panels(panels: Mapping[str, Content]) -> tuple[Figure, list[tuple[Axes, str, Content]]]:
    """Return a figure with one panel per recipe, and the axes, recipe and content of each panel."""
    figure = make_figure(len(panels))
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    return figure, [(axes, *item) for axes, item in zip(row, panels.items(), strict=True)]


def draw_mean(
    axes: Axes, x: ArrayLike, values: ArrayLike, label: str, style: Style, alpha: float = 0.2, **more: Any
) -> None:
    """Plot the mean over seeds of `values`, `[seeds, points]`, and shade the range.

    Args:
        axes: Axes of the plot.
        x: Position of each point.
        values: Value of each seed at each point.
        label: Name of the curve in the legend.
        style: Style of the curve; the range has its color.
        alpha: Opacity of the range.
        more: Further arguments of `Axes.plot`.
    """
    values = np.asarray(values)
    line = {**style.as_points(), "linewidth": 2, "markersize": 5, **more}
    axes.plot(x, values.mean(axis=0), label=label, **line)
    low, high = values.min(axis=0), values.max(axis=0)
    axes.fill_between(x, low, high, color=style.color, alpha=alpha, linewidth=0)


def draw_level(axes: Axes, level: float, label: str) -> None:
    """Draw a labeled line at a score that needs no memory, or that others published."""
    axes.axhline(level, color="grey", linestyle="--", linewidth=1, label=label, gid=_LEVEL)
    bottom, top = axes.get_ylim()
    side = "bottom" if level < bottom + 0.1 * (top - bottom) else "top"
    place = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": side, "bbox": LABEL_BOX}
    axes.text(0.99, level, f"{label} ({level:.3g})", fontsize=8, color="#444444", zorder=1.5, **place)


def add_note(figure: Figure, text: str) -> None:
    """Write a small line of text under the figure."""
    figure.supxlabel(text.strip(), fontsize=8, color="#555555")


def mark_training(axes: Axes, value: float, label: str = "training value") -> None:
    """Draw a dotted line at the value that a setting had in training."""
    axes.axvline(value, color="grey", linestyle=":", linewidth=1, label=label)


def set_log_ticks(axes: Axes, sizes: Sequence[float], base: int = 10) -> None:
    """Show the first axis in logarithmic scale, with a tick at each tested size."""
    axes.set_xscale("log", base=base)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()


def place_legend(axes: Axes) -> None:
    """Place the legend to the right of the axes, in several columns if there are many names."""
    pairs = zip(*axes.get_legend_handles_labels(), strict=True)
    handles = [handle for handle, _ in pairs if not isinstance(handle, Artist) or handle.get_gid() != _LEVEL]
    columns = -(-len(handles) // _MOST_NAMES)
    if columns > 1 and isinstance(axes.figure, Figure):
        axes.figure.set_figwidth(axes.figure.get_figwidth() + _COLUMN_INCHES * (columns - 1))
    place = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False, "fontsize": 9}
    axes.legend(handles=handles, ncols=max(columns, 1), handlelength=3.5, **place)


def save_figure(figure: Figure, out: Path | str) -> Path:
    """Save a figure and return the path. The file name extension sets the format; the default is PNG."""
    out = Path(out)
    out = out if out.suffix else out.with_name(f"{out.name}.png")
    out.parent.mkdir(parents=True, exist_ok=True)
    for text in figure.findobj(Text):
        # Names of runs must not be parsed as formulas, and long names are cut.
        text.set_text(printable(text.get_text())[:_LONGEST_LABEL].replace("$", r"\$"))  # pyright: ignore
    picture = io.BytesIO()
    figure.savefig(picture, format=out.suffix[1:].lower())
    write_atomically(out, picture.getvalue())
    return out


class _Curve(NamedTuple):
    seed: int
    steps: NDArray[np.float64]
    values: NDArray[np.float64]
    is_finished: bool
    evaluations: list[tuple[float, float]]
    """Step and score of each evaluation during training."""


def _read_evaluations(rows: Sequence[Mapping[str, float]], metric: str) -> list[tuple[float, float]]:
    """Return step and score of the evaluations of a metric that is the mean over training episodes."""
    kind, _, name = metric.partition("/")
    column = f"eval/{name}"
    return [(row["step"], row[column]) for row in rows if column in row] if kind == "charts" else []


def _draw_curve(axes: Axes, curves: list[_Curve], label: str, style: Style) -> None:
    """Draw the mean of the curves at the steps that all have reached, and each curve at its other steps."""
    first = max(curve.steps[0] for curve in curves)
    last = min(curve.steps[-1] for curve in curves)
    if len(curves) > 1:
        seeds = len({curve.seed for curve in curves})
        seeds_text = _count_seeds(seeds)
        label += f" ({seeds_text if seeds == len(curves) else f'{len(curves)} runs of {seeds_text}'})"
    if first <= last:
        grid = np.linspace(first, last, _GRID)
        values = np.stack([np.interp(grid, curve.steps, curve.values) for curve in curves])
        draw_mean(axes, grid, values, label, style, markevery=_GRID // 8)
    else:
        axes.plot([], [], **style.as_points(), linewidth=2, label=label)
    for curve in curves:
        for start, end in (
            (curve.steps[0], min(first, curve.steps[-1])),
            (max(last, curve.steps[0]), curve.steps[-1]),
        ):
            if start < end:
                inside = curve.steps[(curve.steps > start) & (curve.steps < end)]
                steps = np.concatenate([[start], inside, [end]])
                own = np.interp(steps, curve.steps, curve.values)
                axes.plot(steps, own, **style.as_line(), linewidth=1, alpha=0.6)
        if not curve.is_finished:
            axes.plot(curve.steps[-1:], curve.values[-1:], "x", color=style.color)
        if curve.evaluations:
            axes.plot(*zip(*curve.evaluations, strict=True), ".", color=style.color, markersize=_DOT)


def _count_seeds(seeds: int) -> str:
    return f"{seeds} seed{'' if seeds == 1 else 's'}"


def _format_steps(steps: float, _: float = 0.0) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(steps) >= size:
            return f"{steps / size:g}{letter}"
    return f"{steps:g}"
