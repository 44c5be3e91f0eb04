"""Registry of the modes of `GAMATR`, which update a team's actors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from scrubjay.agents.rl.trust_region import TrustRegionStep
from scrubjay.agents.teams.batch import TeamBatch
from scrubjay.agents.teams.config import GAMATRSettings
from scrubjay.agents.teams.consensus import consensus_steps
from scrubjay.agents.teams.metagame import metagame_steps
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.agents.teams.steps import clipped_sequence, clipped_steps, independent_steps, sequential_steps


class ModeContext(NamedTuple):
    """Arguments of an actor update besides policy, batch and settings."""

    agents: Sequence[int]
    """Agents to update: all, unless the mode has `supports_subset`."""
    generator: torch.Generator
    """Source of random numbers."""
    optimizer: torch.optim.Optimizer | None
    """Adam optimizer of all actors if the mode has `uses_optimizer`; else None."""


ModeResult = tuple[list[TrustRegionStep], dict[str, float]]
"""Trust-region steps and other metrics of an actor update."""


@dataclass(frozen=True)
class Mode:
    """Update mode of a team's actors, with its requirements."""

    move: Callable[[TeamPolicy, TeamBatch, GAMATRSettings, ModeContext], ModeResult]
    """Function that updates the policy's actors. If `uses_optimizer` is True, the function returns no
    trust-region steps."""
    needs_joint: bool = False
    """True if each actor must model the actions of all agents."""
    supports_shared: bool = True
    """True if one actor can be shared by all agents."""
    supports_subset: bool = False
    """True if a subset of the agents can be updated."""
    supports_budgets: bool = False
    """True if each agent can have its own divergence limit."""
    supports_entropy: bool = True
    """True if the mode has an entropy bonus."""
    uses_optimizer: bool = False
    """True if the mode takes gradient steps with an optimizer instead of trust-region steps."""


def _independent(
    policy: TeamPolicy, batch: TeamBatch, settings: GAMATRSettings, context: ModeContext
) -> ModeResult:
    return independent_steps(policy, batch, settings, context.agents), {}


def _sequential(
    policy: TeamPolicy, batch: TeamBatch, settings: GAMATRSettings, context: ModeContext
) -> ModeResult:
    return sequential_steps(policy, batch, settings, context.generator), {}


def _consensus(
    policy: TeamPolicy, batch: TeamBatch, settings: GAMATRSettings, context: ModeContext
) -> ModeResult:
    return consensus_steps(policy, batch, settings)


def _metagame(
    policy: TeamPolicy, batch: TeamBatch, settings: GAMATRSettings, context: ModeContext
) -> ModeResult:
    return metagame_steps(policy, batch, settings)


def _clip(policy: TeamPolicy, batch: TeamBatch, settings: GAMATRSettings, context: ModeContext) -> ModeResult:
    assert context.optimizer is not None
    clipped_steps(policy, batch, settings, context.optimizer, context.generator)
    return [], {}


def _clip_sequential(
    policy: TeamPolicy, batch: TeamBatch, settings: GAMATRSettings, context: ModeContext
) -> ModeResult:
    assert context.optimizer is not None
    clipped_sequence(policy, batch, settings, context.optimizer, context.generator)
    return [], {}


MODES: dict[str, Mode] = {
    "sequential": Mode(_sequential, supports_budgets=True),
    "independent": Mode(_independent, supports_subset=True, supports_budgets=True),
    "consensus": Mode(_consensus, needs_joint=True, supports_entropy=False),
    "metagame": Mode(_metagame, supports_shared=False, supports_budgets=True),
    "clip": Mode(_clip, uses_optimizer=True),
    "clip_sequential": Mode(_clip_sequential, uses_optimizer=True),
}
"""Modes by name. Each name is also the name of a learner, see `scrubjay.agents.list_learners`."""
