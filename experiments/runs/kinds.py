"""Registry of the experiment types in config.json, each with a config class and an engine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scrubjay.experiments.files import CONFIG, parse_object
from scrubjay.experiments.runs.ballet_probe import BalletProbeConfig, ProbeEngine
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.runs.config import Experiment
from scrubjay.experiments.runs.engine import Engine, LocalEngine
from scrubjay.experiments.runs.reinforcement import RLConfig, TeamTaskConfig, TrainConfig
from scrubjay.experiments.runs.sequence import SequenceEngine, SequenceTaskConfig
from scrubjay.memory import serialization

_KINDS: dict[str, tuple[type[Any], type[Engine]]] = {
    "ballet-probe": (BalletProbeConfig, ProbeEngine),
    "sequence-task": (SequenceTaskConfig, SequenceEngine),
    "team": (TeamTaskConfig, LocalEngine),
    "train": (TrainConfig, LocalEngine),
}


def make_engine(
    config: Experiment, run_dir: Path, trust: bool = False, ray: RayOptions | None = None
) -> Engine:
    """Return the engine that trains `config` in this process, or on Ray if `ray` is not None.

    Call `config.check(ray)` first. If `trust` is True, the engine also loads pickled environment states in a
    checkpoint. Such data can execute any code.
    """
    if ray is None:
        return _KINDS[config.kind][1](config, run_dir, trust)
    from scrubjay.experiments.runs.ray_engine import RayEngine  # importing RLlib takes seconds

    assert isinstance(config, RLConfig)
    return RayEngine(config, run_dir, ray, trust)


def to_json(config: Experiment) -> str:
    """Return the text of config.json for `config`."""
    return json.dumps({"format": serialization.FORMAT, **serialization.encode(config)}, indent=2) + "\n"


def from_json(text: str, trust: bool = False) -> Experiment:
    """Return the config that `to_json` wrote. Raises ValueError naming the invalid field, or the format
    if another version of Scrubjay wrote the text.

    Without `trust`, the name of the environment is marked as untrusted, unless it is safe or the user named
    it in this process. An untrusted environment cannot be created, since its code could do anything.
    """
    return from_fields(parse_object(text, CONFIG), CONFIG, trust)


def from_fields(fields: Mapping[str, Any], source: object, trust: bool = False) -> Experiment:
    """Return the config with these entries of `source`, as `from_json` does."""
    fields = dict(fields)
    serialization.take_format(fields, source)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"kind={kind!r} in {source}: choose from {', '.join(_KINDS)}")
    try:
        config = serialization.decode(_KINDS[kind][0], fields)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    if not trust and isinstance(config, RLConfig):
        return config.as_untrusted()
    return config


def missing_fields(fields: Mapping[str, Any]) -> set[str]:
    """Return the names of the fields of a config that are not in `fields`, the entries of a file."""
    kind = fields.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        return {"kind"}
    return {field.name for field in dataclasses.fields(_KINDS[kind][0])} - fields.keys()
