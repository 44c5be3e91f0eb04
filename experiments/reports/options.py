"""What `scrubjay play` is told: read before anything is loaded that plays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class PlayOptions:
    """Write one episode to a GIF or MP4, by a trained policy, at random, or of UAVs by a rule of thumb."""

    what: Positional[str]
    """A run's directory; or the id of an environment, or a recipe for its environment; or uav."""
    out: Path | None = None
    """File to write, an animated .gif or a film, .mp4 (extra `film`); default: episode.gif in the run, or in
    the current folder."""
    seed: int = 1
    """Of the episode."""
    max_steps: int = 500
    """Where to cut a long episode."""
    policy: str | None = None
    """Of a team: a run's directory or random, of uav also static or follow; default: the run's own, else
    follow, else random."""
    preset: str | None = None
    """Of uav: small, paper or city; default: as the run or recipe has it, else small."""
    coverage: Path | None = None
    """Of uav: file for a map of what a user would get at every place at the end; its ending chooses the
    format."""
    trust: bool = False
    """Run code that the directory names or has pickled: an environment that is none of Scrubjay's, say."""
