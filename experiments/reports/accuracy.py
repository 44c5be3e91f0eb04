"""Plots of supervised experiments: accuracy by how much to remember, for how long, and in how many bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scrubjay.experiments.reports.colours import colours
from scrubjay.experiments.reports.curves import beside, contenders, figure_of, save_figure
from scrubjay.experiments.run import Run

_ANSWERED = "questions answered right"


def plot_spans(runs: Sequence[Run], out: Path | str) -> Path:
    """Draw accuracy against how long the task was in the test, and return the path.

    One row of panels per recipe, one column per tested amount to remember; means over seeds with their range,
    and a dashed line for guessing.
    """
    labels = contenders(runs)
    shades = colours(labels.values())
    recipes = _by_recipe(runs)
    columns = sorted({count for run in runs for count, _ in _accuracies(run)})
    size = (1.0 + 3.4 * len(columns), 0.8 + 2.6 * len(recipes))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    grid = figure.subplots(len(recipes), len(columns), squeeze=False, sharex="row", sharey=True)
    for row, (recipe, panel) in zip(grid, recipes.items(), strict=True):
        config: Any = panel[0].config
        trained_count, trained_span = config.trained
        for axes, tested in zip(row, columns, strict=True):
            curves = _curves(panel, labels, along=1, held=tested)
            if not curves:
                axes.set_axis_off()
                continue
            _draw(axes, curves, shades)
            axes.axhline(config.chance(tested), color="grey", linestyle="--", linewidth=1, label="guessing")
            axes.axvline(trained_span, color="grey", linestyle=":", linewidth=1, label="trained here")
            as_trained = ", as trained" if tested == trained_count else ""
            axes.set_title(f"{recipe}: {tested} {config.axis_labels[0]}{as_trained}", fontsize=9)
            axes.set_xlabel(f"{config.axis_labels[1]} in the test")
        row[0].set_ylabel(_ANSWERED)
    beside(next(axes for axes in reversed(grid[0]) if axes.axison))
    return save_figure(figure, out)


def plot_counts(runs: Sequence[Run], out: Path | str) -> Path:
    """Draw accuracy against how much there was to remember, for as long as in training; return the path."""
    labels = contenders(runs)
    shades = colours(labels.values())
    figure, panels = _panels(runs)
    for axes, recipe, panel in panels:
        config: Any = panel[0].config
        trained_count, trained_span = config.trained
        curves = _curves(panel, labels, along=0, held=trained_span)
        _draw(axes, curves, shades)
        counts = sorted(next(iter(curves.values()))[0])
        guesses = [config.chance(count) for count in counts]
        axes.plot(counts, guesses, color="grey", linestyle="--", linewidth=1, label="guessing")
        axes.axvline(trained_count, color="grey", linestyle=":", linewidth=1, label="most in training")
        axes.set_title(f"{recipe}, {config.axis_labels[1]}: {trained_span}")
        axes.set_xlabel(f"{config.axis_labels[0]} in the test")
        axes.set_ylabel(_ANSWERED)
        beside(axes)
    return save_figure(figure, out)


def plot_state(runs: Sequence[Run], out: Path | str) -> Path:
    """Draw accuracy at the trained sizes against the bytes of state of one sequence, and return the path.

    Sizes of one memory are points of one line. Raises ValueError for runs that tell no bytes.
    """
    for run in runs:
        if "state_bytes" not in run.result:
            raise ValueError(f"{run.path} tells no bytes of state; runs of sequence tasks do, such as mqar")
    shades = colours(run.config.label for run in runs)
    figure, panels = _panels(runs)
    for axes, recipe, panel in panels:
        config: Any = panel[0].config
        of_memory: dict[str, dict[int, list[float]]] = {}
        for run in panel:
            sizes = of_memory.setdefault(run.config.label, {})
            sizes.setdefault(run.result["state_bytes"], []).append(run.result["success"])
        for label, sizes in sorted(of_memory.items(), key=lambda item: min(item[1])):
            at = sorted(sizes)
            scores = [sizes[size] for size in at]
            means = np.array([np.mean(own) for own in scores])
            spread = np.array([means - [min(own) for own in scores], [max(own) for own in scores] - means])
            axes.errorbar(at, means, spread, marker="o", color=shades[label], label=label, capsize=3)
        axes.axhline(config.success_without_memory, color="grey", linestyle="--", linewidth=1)
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.set_ylim(-0.02, 1.05)
        axes.set_title(f"{recipe}, {config.trained[0]} {config.axis_labels[0]}")
        axes.set_xlabel("bytes of state of one sequence")
        axes.set_ylabel(_ANSWERED)
        axes.grid(alpha=0.3)
        beside(axes)  # by bytes: names at points would cover each other, since sizes are close
    return save_figure(figure, out)


def _panels(runs: Sequence[Run]) -> tuple[Figure, list[tuple[Axes, str, list[Run]]]]:
    """Return a figure, and for every recipe its axes, name and runs."""
    recipes = _by_recipe(runs)
    figure = figure_of(len(recipes))
    row = figure.subplots(1, len(recipes), squeeze=False)[0]
    return figure, [(axes, *item) for axes, item in zip(row, recipes.items(), strict=True)]


def _accuracies(run: Run) -> dict[tuple[int, int], float]:
    config: Any = run.config
    return config.accuracies(run.result)


def _by_recipe(runs: Sequence[Run]) -> dict[str, list[Run]]:
    recipes: dict[str, list[Run]] = {}
    for run in runs:
        recipes.setdefault(run.config.recipe, []).append(run)
    return recipes


def _curves(
    runs: Sequence[Run], labels: Mapping[Run, str], along: int, held: int
) -> dict[str, list[dict[int, float]]]:
    """Return each contender's accuracies, a dict per seed, by one of the sizes (0 or 1), the other held."""
    curves: dict[str, list[dict[int, float]]] = {}
    for run in runs:
        by_size = {
            sizes[along]: score for sizes, score in _accuracies(run).items() if sizes[1 - along] == held
        }
        if by_size:
            curves.setdefault(labels[run], []).append(by_size)
    return curves


def _draw(axes: Axes, curves: Mapping[str, list[dict[int, float]]], shades: Mapping[str, Any]) -> None:
    for label in sorted(curves):
        # Of runs tested at different sizes, those that all have.
        sizes = np.array(sorted(set.intersection(*map(set, curves[label]))))
        values = np.array([[by_size[size] for size in sizes] for by_size in curves[label]])
        axes.plot(sizes, values.mean(axis=0), marker="o", color=shades[label], label=label, linewidth=2)
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(sizes, low, high, color=shades[label], alpha=0.2, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
