"""Kinds of experiments, by their names in config.json: a config, which is data, and what trains it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from scrubjay.experiments.kinds.ballet_probe import BalletProbeConfig, ProbeEngine
from scrubjay.experiments.kinds.base import Experiment
from scrubjay.experiments.kinds.beginning import Source as Source
from scrubjay.experiments.kinds.beginning import weights_of as weights_of
from scrubjay.experiments.kinds.engine import Engine
from scrubjay.experiments.kinds.local import LocalEngine
from scrubjay.experiments.kinds.reinforcement import AgentTaskConfig, TrainConfig
from scrubjay.experiments.kinds.sequence import SequenceEngine, SequenceTaskConfig
from scrubjay.experiments.kinds.team import TeamTaskConfig
from scrubjay.experiments.runs.reading import parse_object
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.memory import serialization

_KINDS: dict[str, tuple[type[Any], type[Engine]]] = {
    "agent": (AgentTaskConfig, LocalEngine),
    "ballet-probe": (BalletProbeConfig, ProbeEngine),
    "sequence-task": (SequenceTaskConfig, SequenceEngine),
    "team": (TeamTaskConfig, LocalEngine),
    "train": (TrainConfig, LocalEngine),
}


def make_engine(config: Experiment, run_dir: Path, trust: bool = False) -> Engine:
    """Return what trains `config` in this process; with `trust` it unpickles what a checkpoint holds."""
    return _KINDS[config.kind][1](config, run_dir, trust)


def to_json(config: Experiment) -> str:
    """Return the text of config.json."""
    return json.dumps(serialization.encode(config), indent=2) + "\n"


def from_json(text: str, trust: bool = False) -> Experiment:
    """Return the config `to_json` wrote. Raises ValueError naming what does not fit.

    Unless there is `trust`, an environment that the text names is made only if it is ours or the user's: what
    it names otherwise could be any code.
    """
    fields = parse_object(text, "config.json")
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"kind={kind!r} in config.json: choose from {', '.join(_KINDS)}")
    try:
        config = serialization.decode(_KINDS[kind][0], fields)
    except RecursionError:
        raise ValueError("its parts are too deep in each other") from None
    if trust:
        return config
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    named = {name: value for name, value in values.items() if isinstance(value, (EnvConfig, TeamEnvConfig))}
    return dataclasses.replace(config, **{name: env.as_found() for name, env in named.items()})
