"""Plots of teams: what they come to in teams of other sizes than they were trained in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from scrubjay.experiments.reports.colours import colours
from scrubjay.experiments.reports.curves import beside, figure_of, save_figure

_MEASURES = {
    "episodic_return": "return per episode, over all agents",
    "sum_rate_bps": "sum of rates, bit/s",
    "fifth_percentile_rate_bps": "5th percentile of users' rates, bit/s",
}

BySize = Mapping[int, Sequence[Mapping[str, float]]]
"""What every seed came to, by the size of the team."""


def plot_sizes(scores: Mapping[str, BySize], size: str, trained: int, out: Path | str) -> Path:
    """Draw each method's and rule's measures against the size of the team, and return the path.

    `scores` are by the name of the method or rule; `size` is the setting's name, `trained` its value in
    training. Means over seeds with their range; rules are dashed.
    """
    shades = colours(scores)
    figure = figure_of(len(_MEASURES))
    panels = figure.subplots(1, len(_MEASURES))
    for axes, (measure, said) in zip(panels, _MEASURES.items(), strict=True):
        for label, by_size in scores.items():
            sizes, values = list(by_size), [[seed[measure] for seed in seeds] for seeds in by_size.values()]
            line = "--" if label.startswith("rule: ") else "-"
            axes.plot(sizes, np.mean(values, axis=1), line, marker="o", color=shades[label], label=label)
            low, high = np.min(values, axis=1), np.max(values, axis=1)
            axes.fill_between(sizes, low, high, color=shades[label], alpha=0.2, linewidth=0)
            axes.set_xticks(sizes)
        axes.axvline(trained, color="grey", linestyle=":", linewidth=1, label="trained here")
        axes.set_xlabel(f"{size.replace('_', ' ')} in the test")
        axes.set_ylabel(said)
        axes.grid(alpha=0.3)
    beside(panels[-1])
    return save_figure(figure, out)
