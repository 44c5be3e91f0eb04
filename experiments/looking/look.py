"""Look at what remembers: a run's policy or team, an agent's turn, a bank, a trace, to be shown and kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrubjay.experiments.kinds.reinforcement import AgentConfig
from scrubjay.experiments.kinds.team import TeamTaskConfig
from scrubjay.experiments.looking.bank import trace_bank
from scrubjay.experiments.looking.episode import trace_episode
from scrubjay.experiments.looking.page import framed, page
from scrubjay.experiments.looking.team import trace_team
from scrubjay.experiments.looking.trace import Trace, read_trace, write_trace
from scrubjay.experiments.looking.turn import trace_turn
from scrubjay.experiments.run import Run
from scrubjay.experiments.runs.directory import write_atomically
from scrubjay.experiments.runs.progress import ProgressDisplay
from scrubjay.experiments.tasks.settings import KwargValue
from scrubjay.memory import MemoryBank

PICTURES = (".png", ".pdf", ".svg")
FORMATS = (".html", ".json", *PICTURES)
"""What a look is kept as, by the ending of a file's name."""
_DATABASE = b"SQLite format 3"


@dataclass(frozen=True)
class Look:
    """A trace that a notebook shows, and that can be kept."""

    trace: Trace

    def save(self, out: Path | str) -> Path:
        """Write a page (.html), the trace (.json) or a picture (.png, .pdf, .svg), and return its path.

        Raises ValueError if the name has another ending, or if there is nothing to draw.
        """
        out = Path(out)
        check_format(out)
        if out.suffix.lower() in PICTURES:
            # Pages are made where nothing draws.
            from scrubjay.experiments.looking.picture import draw_trace

            return draw_trace(self.trace, out)
        if out.suffix.lower() == ".json":
            return write_trace(self.trace, out)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, page(self.trace))
        return out

    def _repr_html_(self) -> str:
        return framed(self.trace)


def look(
    what: str | Path | Run | Trace | MemoryBank | Mapping[str, Any],
    episode: int = 1,
    settings: dict[str, KwargValue] | None = None,
    max_steps: int = 500,
    trust: bool = False,
    progress: bool = False,
) -> Look:
    """Return what a run's policy saw, did, valued and recalled in one episode; or what else there is to see.

    Args:
        what: A run, its directory, what `KwaiAgent` returned, a memory bank, a trace, or a file of one.
        episode: The episode's seed.
        settings: Of the environment, beside the run's own.
        max_steps: Where to cut a long episode.
        trust: As of `Run.load`.
        progress: Whether to show how far it is.

    Raises:
        ValueError: if there is no run and no trace, no checkpoint, no record, or no step to take.
        TypeError: if the run has no policy that acts.
    """
    if isinstance(what, Trace):
        return Look(what)
    if isinstance(what, MemoryBank):
        return Look(trace_bank(what, "a memory bank"))
    if isinstance(what, Mapping):
        if "events" not in what:
            raise ValueError(
                f"a dictionary of {', '.join(map(str, what)) or 'nothing'} is no answer of KwaiAgent"
            )
        return Look(trace_turn(what))
    if not isinstance(what, Run):
        if Path(what).is_file():
            with Path(what).open("rb") as file:
                if file.read(len(_DATABASE)) == _DATABASE:
                    raise ValueError(f"{what} is a database; `scrubjay memory page {what}` shows a bank")
            return Look(read_trace(what))
        what = Run.load(what, trust)
    config = what.config
    if not isinstance(config, AgentConfig | TeamTaskConfig):
        raise TypeError(f"{what.path} is a run of kind {config.kind!r}: it has no policy that acts")
    kwargs = config.env.kwargs | (settings or {})
    with ProgressDisplay(f"look at {config.env.id}", 2 * max_steps, enabled=progress) as display:

        def on_step(done: int, total: int) -> None:
            display.update(round(2 * max_steps * done / total), {})

        if isinstance(config, TeamTaskConfig):
            teams = dataclasses.replace(config.env, kwargs=kwargs)
            return Look(trace_team(what.team_policy_in(teams), teams, episode, max_steps, on_step))
        env = dataclasses.replace(config.env, kwargs=kwargs)
        return Look(trace_episode(what.policy_in(env), env, episode, max_steps, on_step))


def check_format(out: Path) -> None:
    """Raise ValueError if nothing is kept in a file of such a name."""
    if out.suffix.lower() not in FORMATS:
        raise ValueError(
            f"out={str(out)!r}: what is seen is kept as {', '.join(FORMATS)}; name it {out.stem}.html"
        )
