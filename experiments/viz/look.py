"""Visualize the memory of a run's policy or team, an agent's answer, a memory bank or a stored trace."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Float

from scrubjay.experiments.files import write_atomically
from scrubjay.experiments.progress import ProgressDisplay
from scrubjay.experiments.runs.reinforcement import TeamTaskConfig, TrainConfig
from scrubjay.experiments.runs.run import Run
from scrubjay.experiments.tasks.environments import KwargValue
from scrubjay.experiments.viz.agent import trace_turn
from scrubjay.experiments.viz.bank_page import BankView, view_bank
from scrubjay.experiments.viz.episode import trace_episode, trace_team
from scrubjay.experiments.viz.html_document import render_document, render_frame
from scrubjay.experiments.viz.trace import Trace, read_trace, to_json, write_trace
from scrubjay.memory import MemoryBank

PICTURES = (".png", ".pdf", ".svg")
FORMATS = (".html", ".json", *PICTURES)
"""Supported file name endings of the output."""
_DATABASE = b"SQLite format 3"
_TRACK, _MAP, _WIDTH = 1.1, 2.8, 6.4
"""Heights of a track and of a map, and the width of the figure, in inches."""
_MOST_TRACKS, _MOST_MAPS = 48, 12
_LARGEST = 600
"""Maximum width of a map in cells; in longer traces a cell is the maximum over consecutive steps."""


@dataclass(frozen=True)
class Look:
    """Trace that a notebook displays and that can be saved to a file."""

    trace: Trace

    def save(self, out: Path | str) -> Path:
        """Write a page (.html), the trace (.json) or a picture (.png, .pdf, .svg), and return its path.

        Raises ValueError for an unknown file name ending, or if there is nothing to draw.
        """
        out = Path(out)
        check_format(out)
        if out.suffix.lower() in PICTURES:
            return draw_trace(self.trace, out)
        if out.suffix.lower() == ".json":
            return write_trace(self.trace, out)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, render_page(self.trace))
        return out

    def _repr_html_(self) -> str:
        return render_frame(render_page(self.trace))


@overload
def look(source: MemoryBank) -> BankView: ...


@overload
def look(
    source: str | Path | Run | Trace | Mapping[str, Any],
    episode: int = ...,
    settings: dict[str, KwargValue] | None = ...,
    max_steps: int = ...,
    trust: bool = ...,
    progress: bool = ...,
) -> Look: ...


def look(
    source: str | Path | Run | Trace | MemoryBank | Mapping[str, Any],
    episode: int = 1,
    settings: dict[str, KwargValue] | None = None,
    max_steps: int = 500,
    trust: bool = False,
    progress: bool = False,
) -> Look | BankView:
    """Return what a notebook displays: the trace of an episode, of an agent's answer or of a file, or a bank.

    Args:
        source: Run, run directory, result of `KwaiAgent`, memory bank, trace, or trace file.
        episode: Seed of the episode.
        settings: Environment settings that override those of the run.
        max_steps: Maximum number of steps of the episode.
        trust: As in `Run.load`.
        progress: Show a progress bar.

    Raises:
        ValueError: if the source is neither a run nor a trace, the run has no checkpoint, the bank has no
            record, or `max_steps` is below 1.
        TypeError: if the run has no policy.
    """
    if isinstance(source, Trace):
        return Look(source)
    if isinstance(source, MemoryBank):
        return view_bank(source, "a memory bank")
    if isinstance(source, Mapping):
        if "events" not in source:
            raise ValueError(
                f"a dictionary with the keys {', '.join(map(str, source)) or 'none'} "
                "is not a result of KwaiAgent"
            )
        return Look(trace_turn(source))
    if not isinstance(source, Run):
        if Path(source).is_file():
            with Path(source).open("rb") as file:
                if file.read(len(_DATABASE)) == _DATABASE:
                    raise ValueError(
                        f"{source} is a database; show a memory bank with `scrubjay memory page {source}`"
                    )
            return Look(read_trace(source))
        source = Run.load(source, trust)
    config = source.config
    if not isinstance(config, TrainConfig | TeamTaskConfig):
        raise TypeError(f"{source.path} is a run of kind {config.kind!r}, which has no policy")
    kwargs = config.env.kwargs | (settings or {})
    with ProgressDisplay(f"look at {config.env.id}", None, show=progress) as display:

        def on_step(done: int, total: int | None) -> None:
            if total != display.total_steps:
                display.begin(total)
            display.update(done, {})

        if isinstance(config, TeamTaskConfig):
            teams = dataclasses.replace(config.env, kwargs=kwargs)
            return Look(trace_team(source.team_policy_for(teams), teams, episode, max_steps, on_step))
        env = dataclasses.replace(config.env, kwargs=kwargs)
        return Look(trace_episode(source.policy_for(env), env, episode, max_steps, on_step))


def check_format(out: Path) -> None:
    """Raise ValueError if the ending of the file name is not supported."""
    if out.suffix.lower() not in FORMATS:
        raise ValueError(
            f"out={str(out)!r}: the ending must be one of {', '.join(FORMATS)}; name it {out.stem}.html"
        )


def render_page(trace: Trace) -> str:
    """Return the HTML page of a trace."""
    return render_document("page", to_json(trace))


def draw_trace(trace: Trace, out: Path | str) -> Path:
    """Draw a figure of a trace for a paper into a file, whose name sets the format, and return the path.

    The figure has the tracks, and a map of the recalled steps for each recall: at most 48 tracks and 12 maps.
    Raises ValueError if the trace has no steps, or neither tracks nor recalls.
    """
    from matplotlib.figure import Figure  # imported only for pictures, since the import is slow
    from matplotlib.ticker import MaxNLocator

    from scrubjay.experiments.viz.curves import save_figure

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
