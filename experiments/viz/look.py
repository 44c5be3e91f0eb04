"""Visualize the memory of a run's policy or team, an agent's answer, a memory bank or a stored trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrubjay.experiments.experiment_types.reinforcement import TrainConfig
from scrubjay.experiments.experiment_types.team import TeamTaskConfig
from scrubjay.experiments.run import Run
from scrubjay.experiments.runs.directory import write_atomically
from scrubjay.experiments.runs.progress import ProgressDisplay
from scrubjay.experiments.tasks.kwargs import KwargValue
from scrubjay.experiments.viz.bank import trace_bank
from scrubjay.experiments.viz.episode import trace_episode
from scrubjay.experiments.viz.page import render_iframe, render_page
from scrubjay.experiments.viz.team import trace_team
from scrubjay.experiments.viz.trace import Trace, read_trace, write_trace
from scrubjay.experiments.viz.turn import trace_turn
from scrubjay.memory import MemoryBank

PICTURES = (".png", ".pdf", ".svg")
FORMATS = (".html", ".json", *PICTURES)
"""Supported file name endings of the output."""
_DATABASE = b"SQLite format 3"


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
            # Matplotlib is imported only for pictures.
            from scrubjay.experiments.viz.picture import draw_trace

            return draw_trace(self.trace, out)
        if out.suffix.lower() == ".json":
            return write_trace(self.trace, out)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, render_page(self.trace))
        return out

    def _repr_html_(self) -> str:
        return render_iframe(self.trace)


def look(
    source: str | Path | Run | Trace | MemoryBank | Mapping[str, Any],
    episode: int = 1,
    settings: dict[str, KwargValue] | None = None,
    max_steps: int = 500,
    trust: bool = False,
    progress: bool = False,
) -> Look:
    """Return a displayable trace: one episode of a run, an agent's answer, a memory bank or a stored trace.

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
        return Look(trace_bank(source, "a memory bank"))
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
    with ProgressDisplay(f"look at {config.env.id}", 2 * max_steps, show=progress) as display:

        def on_step(done: int, total: int) -> None:
            display.update(round(2 * max_steps * done / total), {})

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
