"""Registry of learners. Every engine and the command line train with any learner that is registered here."""

from __future__ import annotations

import dataclasses
from typing import Any

from scrubjay.agents.rl.learner import LearnerConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.agents.teams.gamatr import MODES, GAMATRConfig
from scrubjay.memory import serialization
from scrubjay.memory.config_registry import Registry

_LEARNERS: Registry[LearnerConfig] = Registry(
    "learner",
    "scrubjay.agents.register_learner",
    {
        "gamatr": GAMATRConfig,
        "ppo": PPOConfig,
    },
)


def register_learner(name: str, config_class: type[LearnerConfig]) -> None:
    """Add a learner of your own under `name`.

    Raises:
        ValueError: If the name is taken.
    """
    if name in MODES:
        raise ValueError(f"learner {name!r} is already registered as a mode of gamatr; choose another name")
    _LEARNERS.register(name, config_class)


def list_learners(policy_type: str | None = None) -> list[str]:
    """Return the names of all learners.

    `policy_type` ("agent" or "team") selects the learners of single-agent or of team policies.
    """
    modes = MODES if policy_type in (None, GAMATRConfig.policy_type) else ()
    names = [name for name in _LEARNERS if policy_type in (None, _LEARNERS[name].policy_type)]
    return sorted([*names, *modes])


def make_learner_config(name: str, **fields: Any) -> LearnerConfig:
    """Return the config of the learner `name`; fields that are not passed have their default values.

    Raises ValueError, which lists the valid choices, if a name or field is unknown.
    """
    if name in MODES:
        return _LEARNERS.configure("gamatr", mode=name, **fields)
    return _LEARNERS.configure(name, **fields)


def switch_learner(learner: LearnerConfig, name: str) -> LearnerConfig:
    """Return the config of the learner `name`.

    If `learner` has the class of this config, the settings are copied from `learner`. Otherwise all settings
    have their default values.
    """
    config = make_learner_config(name)
    if type(config) is not type(learner):
        return config
    return dataclasses.replace(learner, mode=name) if name in MODES else learner


def get_learner_name(config: LearnerConfig) -> str:
    """Return the registered name of the class of `config`.

    Raises ValueError if this class is not registered.
    """
    return _LEARNERS.name_of(config)


serialization.register_family(LearnerConfig, lambda name: type(make_learner_config(name)), get_learner_name)
