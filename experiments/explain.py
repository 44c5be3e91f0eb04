"""Help of `scrubjay train RECIPE`, printed from the stored catalogue without importing torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from scrubjay.experiments.catalogue import load_catalogue
from scrubjay.experiments.cli.arguments import (
    UsageError,
    expand_short_options,
    parse,
    parse_setting,
    take_flag,
)
from scrubjay.experiments.forms import from_dict


def explain(recipe: str, arguments: Sequence[str]) -> None:
    """Print the help of `recipe` and raise SystemExit(0), if `arguments` contain -h or --help.

    The other arguments, such as `--memory NAME`, determine the defaults that the help shows. Returns without
    output if an argument is invalid or needs more than the catalogue contains. In this case `override`
    prints the help or the error.
    """
    if {"-h", "--help"}.isdisjoint(arguments):
        return
    remaining = list(arguments)
    try:
        config = from_dict(_apply_choices(recipe, remaining), load_catalogue().schemas)
        if recipe in load_catalogue().default_learners:
            remaining = expand_short_options(remaining, load_catalogue().default_learners[recipe])
        parse(type(config), remaining, f"scrubjay train {recipe}", config)
    except (LookupError, ValueError, UsageError):
        return


def _apply_choices(recipe: str, arguments: list[str]) -> dict[str, Any]:
    """Return the config values of a recipe after choices such as `--memory NAME` are applied.

    The result is the same as that of `override` in `recipes.overrides`. The choices are removed from
    `arguments`. Raises LookupError, ValueError or UsageError if a choice is invalid or not in the catalogue.
    """
    stored_catalogue = load_catalogue()
    config = copy.deepcopy(stored_catalogue.experiments[recipe])
    memory_owner, has_learner = config.get("policy", config), recipe in stored_catalogue.default_learners
    team = stored_catalogue.kinds[recipe] == "team"
    if team:
        for name in take_flag(arguments, "--method"):
            _set_method(config, name)
    if has_learner:
        for name in take_flag(arguments, "--learner"):
            if team and name in stored_catalogue.learners["team"]:
                _set_learner(config, name)
            elif name != stored_catalogue.default_learners[recipe]:
                raise LookupError(name)
    for name in take_flag(arguments, "--memory"):
        settings = stored_catalogue.memory_settings[recipe].get(name, {})
        memory_owner["memory"] = _memory(name, memory_owner["memory"], settings)
        if team:
            _label(config, "-on-", name)
    if "parts" in memory_owner["memory"] and any(".parts" in word or ".dim" in word for word in arguments):
        raise LookupError("--memory.parts")  # the classes of the parts choose them and set their widths
    if has_learner:
        env = config["env"]
        for name in take_flag(arguments, "--env") + take_flag(arguments, "--env.id"):
            env |= {"id": name, "kwargs": {}}
        env["kwargs"] = env.get("kwargs", {}) | dict(map(parse_setting, take_flag(arguments, "--set")))
    return config


def _set_method(config: dict[str, Any], name: str) -> None:
    method, policy = load_catalogue().method_settings[name], config["policy"]
    config["method"] = name
    policy |= method["policy"]
    config["learner"] |= method["learner"]
    if method["memory"] is not None:
        policy["memory"] = _memory(method["memory"], policy["memory"], {})


def _set_learner(config: dict[str, Any], name: str) -> None:
    learner = config["learner"]
    if name != "gamatr":  # the other learners are modes of gamatr
        learner["mode"] = name
    _label(config, "-by-", _value(learner, "mode"))


def _label(config: dict[str, Any], by: str, name: str) -> None:
    config["method"] = f"{_value(config, 'method').partition(by)[0]}{by}{name}"


def _memory(name: str, before: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the config values of a new memory with the registered name `name`.

    `before` has the config values of the old memory; the new memory gets its width. `settings` override the
    default values of the new memory.
    """
    dim = {"dim": _value(before, "dim")}
    memory = load_catalogue().memory_values[name] | dim | settings
    return memory | {"parts": [part | dim for part in memory["parts"]]} if "parts" in memory else memory


def _value(values: dict[str, Any], field: str) -> Any:
    return values.get(field, load_catalogue().schemas[values["form"]]["fields"][field]["default"])
