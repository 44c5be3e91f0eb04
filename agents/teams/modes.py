"""How a team's actors move, by name: one line per mode, and `GAMATR` learns by any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from scrubjay.agents.rl.trust_region import TrustRegionStep
from scrubjay.agents.teams.batch import TeamBatch
from scrubjay.agents.teams.clip import clipped_sequence, clipped_steps
from scrubjay.agents.teams.config import GAMATRSettings
from scrubjay.agents.teams.consensus import consensus_steps
from scrubjay.agents.teams.metagame import metagame_steps
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.agents.teams.steps import independent_steps, sequential_steps


class Means(NamedTuple):
    """What a mode may move the actors with, besides its settings."""

    agents: Sequence[int]
    """Those that move; all, unless the mode lets some move `alone`."""
    generator: torch.Generator
    """Draws what is drawn."""
    optimizer: torch.optim.Optimizer | None
    """Adam of all actors, of a mode that `descends`."""


Moved = tuple[list[TrustRegionStep], dict[str, float]]
"""The steps that were taken inside trust regions, and what else was measured."""


@dataclass(frozen=True)
class Mode:
    """One way to move a team's actors, and what it asks of them."""

    move: Callable[[TeamPolicy, TeamBatch, GAMATRSettings, Means], Moved]
    """Moves the policy's actors by a batch; a mode that `descends` returns no steps."""
    joint: bool = False
    """Whether each actor must model what all do."""
    shared: bool = True
    """Whether one actor may serve all agents."""
    alone: bool = False
    """Whether some agents can move while the others stay."""
    budgets: bool = False
    """Whether each step can be told how long to be."""
    bonus: bool = True
    """Whether there is a place for the bonus for undecided policies."""
    descends: bool = False
    """Whether it takes gradient steps, with an optimizer, instead of searching trust regions."""


def _independent(policy: TeamPolicy, batch: TeamBatch, settings: GAMATRSettings, means: Means) -> Moved:
    return independent_steps(policy, batch, settings, means.agents), {}


def _sequential(policy: TeamPolicy, batch: TeamBatch, settings: GAMATRSettings, means: Means) -> Moved:
    return sequential_steps(policy, batch, settings, means.generator), {}


def _consensus(policy: TeamPolicy, batch: TeamBatch, settings: GAMATRSettings, means: Means) -> Moved:
    return consensus_steps(policy, batch, settings)


def _metagame(policy: TeamPolicy, batch: TeamBatch, settings: GAMATRSettings, means: Means) -> Moved:
    return metagame_steps(policy, batch, settings)


def _clip(policy: TeamPolicy, batch: TeamBatch, settings: GAMATRSettings, means: Means) -> Moved:
    assert means.optimizer is not None
    clipped_steps(policy, batch, settings, means.optimizer, means.generator)
    return [], {}


def _clip_sequential(policy: TeamPolicy, batch: TeamBatch, settings: GAMATRSettings, means: Means) -> Moved:
    assert means.optimizer is not None
    clipped_sequence(policy, batch, settings, means.optimizer, means.generator)
    return [], {}


MODES: dict[str, Mode] = {
    "sequential": Mode(_sequential, budgets=True),
    "independent": Mode(_independent, alone=True, budgets=True),
    "consensus": Mode(_consensus, joint=True, bonus=False),
    "metagame": Mode(_metagame, shared=False, budgets=True),
    "clip": Mode(_clip, descends=True),
    "clip_sequential": Mode(_clip_sequential, descends=True),
}
"""All modes; each is the name of a learner, too (`scrubjay.agents.list_learners`)."""
