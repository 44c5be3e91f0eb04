"""Command line options of `scrubjay play`, in a module without heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class PlayOptions:
    """Record one episode as a GIF or MP4, with a trained policy, random actions or a rule-based policy."""

    source: Positional[str]
    """Run directory, environment id, recipe (its environment is used), or uav."""
    out: Path | None = None
    """Output file, .gif or .mp4 (needs the extra `film`); default: episode.gif in the run directory, else in
    the current directory."""
    seed: int = 1
    """Seed of the episode."""
    max_steps: int = 500
    """Maximum number of steps of the episode."""
    policy: str | None = None
    """Policy of a team: a run directory or "random"; for uav also "static" or "follow". Default: the policy
    of the run; without a run "follow" for uav, "random" for other teams."""
    preset: str | None = None
    """Preset of uav: small, paper or city; default: the preset of the run or recipe, else small."""
    coverage: Path | None = None
    """Output file for a coverage map of uav at the end of the episode; its extension sets the format."""
    trust: bool = False
    """Trust the run directory: allow custom environments and pickled code."""
