"""Plots of accuracy in supervised experiments, against number of items, sequence length or state size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scrubjay.experiments.recipes.registry import task_title
from scrubjay.experiments.runs.run import Run
from scrubjay.experiments.statistics import group_runs
from scrubjay.experiments.viz.curves import (
    draw_level,
    draw_mean,
    label_runs,
    make_panels,
    mark_training,
    place_legend,
    save_figure,
    set_log_ticks,
)
from scrubjay.experiments.viz.style import Style, assign_styles

_ACCURACY_LABEL = "accuracy"


def plot_spans(runs: Sequence[Run], out: Path | str) -> Path:
    """Plot accuracy against the test length of the task, and return the path.

    The panels have one row per recipe and one column per number of items to remember in the test. Curves show
    the mean and the range over seeds. A dashed line shows the accuracy of guessing.
    """
    labels = label_runs(runs)
    styles = assign_styles(labels.values())
    recipes = group_runs(runs, "recipe")
    columns = sorted({count for run in runs for count, _ in _accuracies(run)})
    size = (1.0 + 3.4 * len(columns), 1.0 + 2.6 * len(recipes))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    grid = figure.subplots(len(recipes), len(columns), squeeze=False, sharex="row", sharey=True)
    for row, (recipe, panel) in zip(grid, recipes.items(), strict=True):
        config: Any = panel[0].config
        trained_count, trained_span = config.train_sizes
        for axes, test_count in zip(row, columns, strict=True):
            curves = _curves(panel, labels, along=1, other_size=test_count)
            if not curves:
                axes.set_axis_off()
                continue
            _draw(axes, curves, styles)
            draw_level(axes, config.chance(test_count), "guessing")
            mark_training(axes, trained_span)
            as_trained = ", as in training" if test_count == trained_count else ""
            title = f"{task_title(recipe)}\n{test_count} {config.axis_labels[0]}{as_trained}"
            axes.set_title(title, fontsize=9)
            axes.set_xlabel(f"{config.axis_labels[1]} (test)")
        row[0].set_ylabel(_ACCURACY_LABEL)
    place_legend(next(axes for axes in reversed(grid[0]) if axes.axison))
    return save_figure(figure, out)


def plot_counts(runs: Sequence[Run], out: Path | str) -> Path:
    """Plot accuracy against the number of items to remember, at the training length; return the path."""
    labels = label_runs(runs)
    styles = assign_styles(labels.values())
    figure, panels = make_panels(group_runs(runs, "recipe"))
    for axes, recipe, panel in panels:
        config: Any = panel[0].config
        trained_count, trained_span = config.train_sizes
        curves = _curves(panel, labels, along=0, other_size=trained_span)
        _draw(axes, curves, styles)
        counts = sorted(next(iter(curves.values()))[0])
        guesses = [config.chance(count) for count in counts]
        axes.plot(counts, guesses, color="grey", linestyle="--", linewidth=1, label="guessing")
        mark_training(axes, trained_count, "training maximum")
        axes.set_title(f"{task_title(recipe)}, {config.axis_labels[1]}: {trained_span}")
        axes.set_xlabel(f"{config.axis_labels[0]} (test)")
        axes.set_ylabel(_ACCURACY_LABEL)
        place_legend(axes)
    return save_figure(figure, out)


def plot_state(runs: Sequence[Run], out: Path | str) -> Path:
    """Plot accuracy at the training sizes against the state size of one sequence, and return the path.

    Each memory is one line, and its runs with different state sizes are the points. Raises ValueError if the
    result of a run lacks the state size.
    """
    for run in runs:
        if "state_bytes" not in run.result:
            raise ValueError(
                f"the result of {run.path} has no state size; plot runs of sequence tasks, such as mqar"
            )
    styles = assign_styles(run.config.label for run in runs)
    figure, panels = make_panels(group_runs(runs, "recipe"))
    for axes, recipe, panel in panels:
        config: Any = panel[0].config
        scores_by_memory: dict[str, dict[int, list[float]]] = {}
        for run in panel:
            sizes = scores_by_memory.setdefault(run.config.label, {})
            sizes.setdefault(run.result["state_bytes"], []).append(run.result["success"])
        for label, sizes in sorted(scores_by_memory.items(), key=lambda item: min(item[1])):
            at = sorted(sizes)
            scores = [sizes[size] for size in at]
            means = np.array([np.mean(own) for own in scores])
            spread = np.array([means - [*map(min, scores)], [*map(max, scores)] - means])
            axes.errorbar(at, means, spread, **styles[label].as_points(), label=label, capsize=3)
        draw_level(axes, config.success_without_memory, "guessing")
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.set_ylim(-0.02, 1.05)
        axes.set_title(f"{task_title(recipe)}, {config.train_sizes[0]} {config.axis_labels[0]}")
        axes.set_xlabel("state size per sequence, bytes")
        axes.set_ylabel(_ACCURACY_LABEL)
        axes.grid(alpha=0.3)
        place_legend(axes)  # labels at the points would overlap, since sizes are close
    return save_figure(figure, out)


def _accuracies(run: Run) -> dict[tuple[int, int], float]:
    config: Any = run.config
    return config.accuracies(run.result)


def _curves(
    runs: Sequence[Run], labels: Mapping[Run, str], along: int, other_size: int
) -> dict[str, list[dict[int, float]]]:
    """Return a dict from each label to the curves of its runs. A curve maps test sizes to accuracies.

    `along` selects the test size: 0 is the number of items to remember, 1 the time span. The other size is
    fixed at `other_size`.
    """
    curves: dict[str, list[dict[int, float]]] = {}
    for run in runs:
        by_size = {
            sizes[along]: score for sizes, score in _accuracies(run).items() if sizes[1 - along] == other_size
        }
        if by_size:
            curves.setdefault(labels[run], []).append(by_size)
    return curves


def _draw(axes: Axes, curves: Mapping[str, list[dict[int, float]]], styles: Mapping[str, Style]) -> None:
    for label in sorted(curves):
        # Only sizes at which all runs were tested.
        sizes = sorted(set.intersection(*map(set, curves[label])))
        values = [[by_size[size] for size in sizes] for by_size in curves[label]]
        draw_mean(axes, sizes, values, label, styles[label])
        set_log_ticks(axes, sizes, base=2)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
