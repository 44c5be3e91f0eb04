"""`scrubjay plot`: plot learning curves of one or several runs, or accuracy against state size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from scrubjay.experiments.cli.arguments import parse
from scrubjay.experiments.cli.terminal import bad_input
from scrubjay.experiments.cli.untrusted_text import one_line


@dataclass(frozen=True)
class PlotOptions:
    """Plot learning curves: one panel per recipe, one curve per memory, mean and range over seeds."""

    runs: Positional[tuple[Path, ...]]
    """Run directories."""
    out: Path | None = None
    """Output file; its extension selects the format. Default: curve.png in the run directory, or in the
    current folder for several runs."""
    metric: str | None = None
    """Column of metrics.jsonl to plot; default: success, or return if there is no success rate."""
    against: Literal["steps", "bytes"] = "steps"
    """X axis: training steps, or the state size in bytes with one line per memory (sequence tasks only)."""
    trust: bool = False
    """Trust the runs: allow their custom environments and the pickled data in their files to execute code."""


def run(argv: Sequence[str]) -> int:
    """`scrubjay plot RUN [RUN ...] [--out FILE] [--metric NAME] [--against bytes]`."""
    options = parse(PlotOptions, argv, "scrubjay plot")
    from scrubjay.experiments.commands.loading import memory_guard
    from scrubjay.experiments.files import CURVE
    from scrubjay.experiments.runs.run import Run
    from scrubjay.experiments.viz.accuracy import plot_state
    from scrubjay.experiments.viz.curves import plot_runs

    with memory_guard(options.trust), bad_input():
        if not options.runs:
            raise ValueError("plot needs at least one run directory")
        runs = [Run.load(path, options.trust) for path in options.runs]
        out = options.out or (runs[0].path if len(runs) == 1 else Path()) / CURVE
        if options.against == "bytes":
            if options.metric is not None:
                raise ValueError(
                    "--metric and --against bytes cannot be combined; --metric is for curves against steps"
                )
            file = plot_state(runs, out)
        else:
            file = plot_runs(runs, out, options.metric)
        print(one_line(file))
    return 0
