"""The help of `scrubjay train RECIPE` from what the catalogue keeps: it waits for nothing that computes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from scrubjay.experiments.catalogue import catalogue
from scrubjay.experiments.forms import made
from scrubjay.experiments.tasks.settings import parse_setting
from scrubjay.experiments.words.arguments import UsageError, in_full, parse, take_flag


def explain(recipe: str, words: Sequence[str]) -> None:
    """Print the help of `recipe` changed by `words`, and raise SystemExit(0), if they ask for help.

    Returns without a word where it takes more than is kept, and where there is something to complain of:
    `override` then says what there is to say, in its own time.
    """
    if {"-h", "--help"}.isdisjoint(words):
        return
    remaining = list(words)
    try:
        config = made(_chosen(recipe, remaining), catalogue().forms)
        if recipe in catalogue().learner_of:
            remaining = in_full(remaining, *catalogue().learner_of[recipe])
        parse(type(config), remaining, f"scrubjay train {recipe}", config)
    except (LookupError, ValueError, UsageError):
        return


def _chosen(recipe: str, words: list[str]) -> dict[str, Any]:
    """Return the recipe's values with what `words` choose, which is taken out of there, as by `override`.

    Raises LookupError, ValueError or UsageError where that is not kept, or is wrong.
    """
    known = catalogue()
    config = copy.deepcopy(known.experiments[recipe])
    remembering, acting = config.get("policy", config), recipe in known.learner_of
    team = known.kinds[recipe] == "team"
    if team:
        for name in take_flag(words, "--method"):
            _set_method(config, name)
    if acting:
        for name in take_flag(words, "--learner"):
            if team and name in known.learners["team"]:
                _set_learner(config, name)
            elif name != known.learner_of[recipe][1]:
                raise LookupError(name)
    for name in take_flag(words, "--memory"):
        settings = known.memory_settings[recipe].get(name, {})
        remembering["memory"] = _memory(name, remembering["memory"], settings)
        if team:
            _label(config, "-on-", name)
    if "parts" in remembering["memory"] and any(".parts" in word or ".dim" in word for word in words):
        raise LookupError("--memory.parts")  # which are chosen, and as wide as said, by their classes
    if acting:
        env = config["env"]
        for name in take_flag(words, "--env") + take_flag(words, "--env.id"):
            env |= {"id": name, "kwargs": {}}
        env["kwargs"] = env.get("kwargs", {}) | dict(map(parse_setting, take_flag(words, "--set")))
    return config


def _set_method(config: dict[str, Any], name: str) -> None:
    method, policy = catalogue().method_settings[name], config["policy"]
    config["method"] = name
    policy |= method["policy"]
    config["learner"] |= method["learner"]
    if method["memory"] is not None:
        policy["memory"] = _memory(method["memory"], policy["memory"], {})


def _set_learner(config: dict[str, Any], name: str) -> None:
    learner = config["learner"]
    if name != "gamatr":  # which has the others as modes
        learner["mode"] = name
    _label(config, "-by-", _value(learner, "mode"))


def _label(config: dict[str, Any], by: str, name: str) -> None:
    config["method"] = f"{_value(config, 'method').partition(by)[0]}{by}{name}"


def _memory(name: str, before: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a memory that is as wide as the one `before`."""
    dim = {"dim": _value(before, "dim")}
    memory = catalogue().memory_values[name] | dim | settings
    return memory | {"parts": [part | dim for part in memory["parts"]]} if "parts" in memory else memory


def _value(values: dict[str, Any], field: str) -> Any:
    return values.get(field, catalogue().forms[values["form"]]["fields"][field]["default"])
