"""Plots of team scores at team sizes other than the training size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from scrubjay.experiments.reports.colours import assign_colors
from scrubjay.experiments.reports.curves import make_figure, place_legend, save_figure

_MEASURES = {
    "episodic_return": "return per episode, over all agents",
    "sum_rate_bps": "sum of rates, bit/s",
    "fifth_percentile_rate_bps": "5th percentile of users' rates, bit/s",
}

BySize = Mapping[int, Sequence[Mapping[str, float]]]
"""Measures of every seed, by team size."""


def plot_sizes(scores: Mapping[str, BySize], size: str, training_size: int, out: Path | str) -> Path:
    """Plot the measures of each method and rule-based policy against the team size, and return the path.

    `scores` maps the name of each method or rule-based policy to a dict from team size to measures. `size` is
    the name of the setting for the team size, and `training_size` its value in training. Curves show the mean
    and the range over seeds; curves of rule-based policies are dashed.
    """
    shades = assign_colors(scores)
    figure = make_figure(len(_MEASURES))
    panels = figure.subplots(1, len(_MEASURES))
    for axes, (measure, axis_label) in zip(panels, _MEASURES.items(), strict=True):
        for label, by_size in scores.items():
            sizes, values = list(by_size), [[seed[measure] for seed in seeds] for seeds in by_size.values()]
            line = "--" if label.startswith("rule: ") else "-"
            axes.plot(sizes, np.mean(values, axis=1), line, marker="o", color=shades[label], label=label)
            low, high = np.min(values, axis=1), np.max(values, axis=1)
            axes.fill_between(sizes, low, high, color=shades[label], alpha=0.2, linewidth=0)
            axes.set_xticks(sizes)
        axes.axvline(training_size, color="grey", linestyle=":", linewidth=1, label="training value")
        axes.set_xlabel(f"{size.replace('_', ' ')} (test)")
        axes.set_ylabel(axis_label)
        axes.grid(alpha=0.3)
    place_legend(panels[-1])
    return save_figure(figure, out)
