"""Configs from files: `scrubjay train [RECIPE] --config FILE`, in YAML or JSON.

A file has the entries of a run's config.json. Absent entries are those of a recipe: of RECIPE, or else of the
one that the entry `recipe` names. The strict reader of run directories checks the result.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from scrubjay.agents.learners import list_learners, switch_learner
from scrubjay.agents.rl.encoders.choice import UntrustedName
from scrubjay.agents.rl.learner import LearnerConfig
from scrubjay.experiments.cli.arguments import OWN_MODULE_HINT, choose, did_you_mean
from scrubjay.experiments.files import CONFIG, parse, read_untrusted
from scrubjay.experiments.recipes.registry import RECIPES, with_memory
from scrubjay.experiments.recipes.teams import METHODS, with_method
from scrubjay.experiments.runs import ownership
from scrubjay.experiments.runs.config import Experiment
from scrubjay.experiments.runs.kinds import from_fields, missing_fields
from scrubjay.experiments.runs.reinforcement import RLConfig, TeamTaskConfig
from scrubjay.experiments.strict_yaml import parse_yaml
from scrubjay.experiments.tasks.environments import with_names
from scrubjay.memory import list_memories
from scrubjay.memory.config_registry import UnknownNameError
from scrubjay.memory.serialization import FORMAT, encode

_MAX_BYTES = 2**17
_SUFFIXES = (".json", ".yaml", ".yml")


def read_config(path: Path, recipe: str | None = None, trust: bool = False) -> Experiment:
    """Return the config in a file, which may be untrusted.

    Without `trust`, an environment that the file names is untrusted, unless it is safe, or unless the file is
    the config.json of a run that this user trained here and that has not changed since.

    Raises ValueError, which names the file, if an entry is invalid, or if entries are absent and no recipe is
    known.
    """
    text, entries = _read(path)
    fields = dict(entries)
    try:
        start = _find_recipe(fields, recipe)
        if start is not None:
            start = _with_parts(start, fields)
            fields = _merge(start, encode(start), fields)
        config = from_fields(fields, "the file", trust)
    except (ValueError, TypeError) as error:
        own = OWN_MODULE_HINT if isinstance(error, UnknownNameError) else ""
        raise ValueError(f"{path}: {error}{own}") from error
    if isinstance(config, RLConfig):
        for name in config.env.kwargs:
            if not name.isidentifier():
                raise ValueError(
                    f"{path}: config.env.kwargs has the entry {name!r:.40}, which is no Python name"
                )
    return _trust_env(config, start, path, text, entries)


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of a file and its entries."""
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"{path}: the name of a config file must end in {', '.join(_SUFFIXES)}")
    text = read_untrusted(path, _MAX_BYTES)
    is_json = path.suffix.lower() == ".json"
    fields = parse(text, path, _parse_unique) if is_json else parse_yaml(text, path)
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds {fields!r:.40}; expected the fields of a config")  # noqa: TRY004
    if "format" not in fields:
        raise ValueError(f"{path} has no entry format; add format: {FORMAT}, which this version reads")
    return text, fields


def _find_recipe(fields: dict[str, Any], recipe: str | None) -> Experiment | None:
    """Return the config of the recipe that completes a file; None if the file has all fields itself.

    The defaults of a config class are another task than that of the file, so they complete nothing.
    """
    name = fields.get("recipe", recipe)
    if recipe is not None and name != recipe:
        raise ValueError(f"recipe={name!r}, but the command names the recipe {recipe!r}; omit one of them")
    if recipe is None and name is None:
        raise ValueError(
            "it names no recipe; add the entry recipe, or call scrubjay train RECIPE --config FILE"
        )
    start = RECIPES[name]() if isinstance(name, str) and name in RECIPES else None
    if start is not None and fields.get("kind", start.kind) == start.kind:
        return start
    missing = sorted(missing_fields(fields))
    if start is not None and (missing or recipe is not None):
        raise ValueError(f"kind={fields['kind']!r}: recipe {name!r} has the kind {start.kind!r}")
    if missing:
        hint = did_you_mean(str(name), list(RECIPES))
        raise ValueError(
            f"recipe={name!r} is no recipe, so the file must have all fields; it lacks "
            f"{', '.join(missing)}{hint}"
        )
    return None


def _with_parts(config: Experiment, fields: dict[str, Any]) -> Experiment:
    """Return the config with the method, learner and memory that a file names, as the flags choose them."""
    method = fields.get("method")
    # The label of a run need not be a method.
    is_label = method is None or (method not in METHODS and {"policy", "learner"} <= fields.keys())
    if isinstance(config, TeamTaskConfig) and not is_label:
        config = with_method(config, choose("method", str(method), list(METHODS)))
    learner = _name_in(fields.get("learner"))
    if isinstance(config, RLConfig) and learner is not None:
        choose("learner", learner, list_learners(config.policy_type))
        config = config.with_learner(switch_learner(config.learner, learner))
    owner = fields.get("policy") if isinstance(config, RLConfig) else fields
    memory = _name_in(owner.get("memory")) if isinstance(owner, dict) else None
    if memory is not None:
        config = with_memory(config, choose("memory", memory, list_memories()))
    return config


def _name_in(value: Any) -> Any:
    return value.get("name") if isinstance(value, dict) and isinstance(value.get("name"), str) else None


def _merge(start: Any, entries: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Return the `entries` of the config `start` with the `fields` of a file.

    The fields replace lists and plain dicts.
    """
    joint = {**entries, **fields}
    for name, value in fields.items():
        part = getattr(start, name) if name in entries and hasattr(start, name) else None
        if not (dataclasses.is_dataclass(part) and isinstance(value, dict)):
            continue
        if value.get("kind", entries[name].get("kind")) == entries[name].get("kind"):
            joint[name] = _merge(part, entries[name], value)
            if isinstance(part, LearnerConfig):  # the file may name a mode of the learner
                joint[name]["name"] = entries[name]["name"]
    return joint


def _trust_env(config: Any, start: Any, path: Path, text: str, fields: dict[str, Any]) -> Experiment:
    """Return the config with a trusted environment if the recipe or a run of the user's own names it."""
    if config.policy_type is None:
        return config
    if start is not None:
        entries = fields.get("env", {})
        id = start.env.id if {"id", "kwargs"}.isdisjoint(entries) else config.env.id
        wrappers = config.env.wrappers if "wrappers" in entries else start.env.wrappers
        config = dataclasses.replace(config, env=with_names(config.env, id, *wrappers))
    if (file := Path(os.path.realpath(path))).name == CONFIG:
        return ownership.trust_own(file.parent, text, config)

    def mark(name: str, flag: str) -> str:
        is_untrusted = isinstance(name, UntrustedName)
        return UntrustedName(name, f"{path} names it and {flag} does not") if is_untrusted else name

    wrappers = [mark(text, "--wrap") for text in config.env.wrappers]
    env = with_names(config.env, mark(config.env.id, "--env"), *wrappers)
    encoder = mark(config.own_encoder, "--policy.encoder")
    return dataclasses.replace(config, env=env, policy=config.with_encoder(encoder))


def _parse_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError if a name occurs twice, of which json would drop the first."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"the entry {name!r} occurs twice")
        fields[name] = value
    return fields
