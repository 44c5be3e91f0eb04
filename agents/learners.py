"""Names of learners: one line per learner, and every engine and the command train by it."""

from __future__ import annotations

import dataclasses
from typing import Any

from scrubjay.agents.rl.learner import LearnerConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.modes import MODES
from scrubjay.memory import serialization
from scrubjay.memory.named import Registry

_LEARNERS: Registry[LearnerConfig] = Registry(
    "learner",
    "scrubjay.agents.register_learner",
    {
        "gamatr": GAMATRConfig,
        "ppo": PPOConfig,
    },
)


def register_learner(name: str, config_class: type[LearnerConfig]) -> None:
    """Add a learner of your own under `name`. Raises ValueError if the name is taken."""
    if name in MODES:
        raise ValueError(f"learner {name!r} is already registered as a mode of gamatr; choose another name")
    _LEARNERS.register(name, config_class)


def list_learners(acts: str | None = None) -> list[str]:
    """Return the names of all learners, or of those for one "agent" or for a "team"."""
    modes = MODES if acts in (None, GAMATRConfig.acts) else ()
    return sorted([*(name for name in _LEARNERS if acts in (None, _LEARNERS[name].acts)), *modes])


def make_learner_config(name: str, **fields: Any) -> LearnerConfig:
    """Return the named learner's config, defaults where `fields` is silent.

    Raises ValueError on an unknown name or field, naming the choices.
    """
    if name in MODES:
        return _LEARNERS.configure("gamatr", mode=name, **fields)
    return _LEARNERS.configure(name, **fields)


def turned_into(learner: LearnerConfig, name: str) -> LearnerConfig:
    """Return the named learner's config; where it has the same settings as `learner`, as these are."""
    named = make_learner_config(name)
    if type(named) is not type(learner):
        return named
    return dataclasses.replace(learner, mode=name) if name in MODES else learner


def name_of_learner(config: LearnerConfig) -> str:
    """Return the name a config is registered under. Raises ValueError if it is not."""
    return _LEARNERS.name_of(config)


# Runs of teams were written before there were others to be told from.
serialization.register_family(
    LearnerConfig, lambda name: type(make_learner_config(name)), name_of_learner, unnamed="gamatr"
)
