"""`scrubjay plot`: learning curves of one or several runs, or what they came to by bytes of state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from scrubjay.experiments.words.arguments import parse
from scrubjay.experiments.words.foreign import one_line
from scrubjay.experiments.words.terminal import bad_input


@dataclass(frozen=True)
class PlotOptions:
    """Draw learning curves: one panel per recipe, one curve per memory, mean and range over seeds."""

    runs: Positional[tuple[Path, ...]]
    """Directories of runs."""
    out: Path | None = None
    """File to write; its ending chooses the format. Default: curve.png in the run, or in the current
    folder."""
    metric: str | None = None
    """Column of metrics.jsonl; default: success, or return where success is not told."""
    against: Literal["steps", "bytes"] = "steps"
    """What runs lie along: steps of training; or, of sequence tasks, bytes of state, one line per memory."""
    trust: bool = False
    """Run code that a directory names or has pickled: an environment that is none of Scrubjay's, say."""


def run(words: Sequence[str]) -> int:
    """`scrubjay plot RUN [RUN ...] [--out FILE] [--metric NAME] [--against bytes]`."""
    options = parse(PlotOptions, words, "scrubjay plot")
    from scrubjay.experiments.commands.loading import guarded
    from scrubjay.experiments.reports.accuracy import plot_state
    from scrubjay.experiments.reports.curves import plot_runs
    from scrubjay.experiments.run import Run
    from scrubjay.experiments.runs.directory import CURVE

    with guarded(options.trust), bad_input():
        if not options.runs:
            raise ValueError("plot needs at least one run directory")
        runs = [Run.load(path, options.trust) for path in options.runs]
        out = options.out or (runs[0].path if len(runs) == 1 else Path()) / CURVE
        if options.against == "bytes":
            if options.metric is not None:
                raise ValueError(
                    "--metric is of curves against steps; leave out one of it and --against bytes"
                )
            written = plot_state(runs, out)
        else:
            written = plot_runs(runs, out, options.metric)
        print(one_line(written))
    return 0
