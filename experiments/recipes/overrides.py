"""Command-line overrides of a recipe: `tmaze --memory hcam --memory.dim 8 --set corridor_length=20`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from scrubjay.agents.learners import get_learner_name, list_learners, switch_learner
from scrubjay.experiments.cli.arguments import (
    TRAINING_FLAGS,
    UsageError,
    choose,
    expand_short_options,
    parse,
    parse_setting,
    take_flag,
)
from scrubjay.experiments.cli.terminal import bad_input, parse_integer
from scrubjay.experiments.recipes import RECIPES, with_memory
from scrubjay.experiments.recipes.teams import METHODS, with_method
from scrubjay.experiments.runs.config import Experiment
from scrubjay.experiments.runs.reinforcement import RLConfig, TeamTaskConfig
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.memory import MemoryConfig, list_memories, name_of
from scrubjay.memory.serialization import decode, encode
from scrubjay.memory.stack import StackConfig

AnyEnv = TypeVar("AnyEnv", bound=EnvConfig | TeamEnvConfig)


def override(recipe: str, arguments: Sequence[str]) -> Experiment:
    """Return the recipe's config with all flags applied. Raises UsageError on an invalid flag.

    Flags are applied in this order: `--method NAME` (multi-agent recipes), `--learner NAME` (recipes with a
    policy), `--memory NAME`, then fields of the memory (`--memory.FIELD`), of the learner (`--learner.FIELD`)
    and of the config (`--total-steps`). `--memory.parts gru+hcam` sets the parts of a stack, and
    `--memory.parts.1.FIELD` a field of one part. `--env ID` selects the environment and `--set name=value`
    changes one of its settings.
    """
    config: Experiment = RECIPES[choose("recipe", recipe, list(RECIPES))]()
    remaining = list(arguments)
    if isinstance(config, TeamTaskConfig):
        for name in take_flag(remaining, "--method"):
            config = with_method(config, choose("method", name, list(METHODS)))
    if isinstance(config, RLConfig):
        for name in take_flag(remaining, "--learner"):
            learner_names = list_learners(config.policy_type)
            config = config.with_learner(
                switch_learner(config.learner, choose("learner", name, learner_names))
            )
    for name in take_flag(remaining, "--memory"):
        config = with_memory(config, choose("memory", name, list_memories()))
    if isinstance(config.memory, StackConfig):
        config = config.with_memory(_with_parts(config, config.memory, remaining))
    if isinstance(config, RLConfig):
        config = dataclasses.replace(config, env=_with_env(config.env, remaining))
        remaining = expand_short_options(remaining, get_learner_name(config.learner))
    config = parse(type(config), remaining, f"scrubjay train {recipe}", config, (*TRAINING_FLAGS, "--engine"))
    if isinstance(config, RLConfig) and not config.env.id:
        team = isinstance(config, TeamTaskConfig)
        kind = "module:callable of a PettingZoo ParallelEnv" if team else "a gymnasium id or module:callable"
        raise UsageError(f"recipe {recipe!r} needs --env: {kind}")
    return config


def with_memory_fields(memory: MemoryConfig, settings: Sequence[str]) -> MemoryConfig:
    """Return the memory config with changed fields. Raises UsageError on an invalid setting.

    Each setting is `name=value`, or `parts.0.name=value` for part 0 of a stack.
    """
    fields = encode(memory)
    with bad_input():
        for name, value in map(parse_setting, settings):
            *path, last = name.split(".")
            node: Any = fields
            for step in path:
                if isinstance(node, list):
                    node = {str(number): part for number, part in enumerate(node)}
                node = node.get(step) if isinstance(node, dict) else None
            if last == "name" or not isinstance(node, dict):
                raise ValueError(f"{name}: memory {name_of(memory)!r} has no such field")
            node[last] = None if value in ("None", "null") else value  # as in flags and error messages
        return decode(MemoryConfig, fields, "memory")


def _with_parts(config: Experiment, stack: StackConfig, arguments: list[str]) -> StackConfig:
    """Return the memory config `stack` with the width and the parts that `arguments` set.

    The options `--memory.dim` and `--memory.parts` are removed from `arguments`.
    """
    with bad_input():
        for width in take_flag(arguments, "--memory.dim") + take_flag(arguments, "--policy.memory.dim"):
            stack = stack.at_width(parse_integer("--memory.dim", width))
    config = config.with_memory(stack)
    for names in take_flag(arguments, "--memory.parts") + take_flag(arguments, "--policy.memory.parts"):
        names_of_parts = [choose("memory", name, list_memories()) for name in names.split("+")]
        parts = tuple(with_memory(config, name).memory for name in names_of_parts)
        stack = dataclasses.replace(stack, parts=parts)
    return stack


def _with_env(env: AnyEnv, arguments: list[str]) -> AnyEnv:
    """Remove `--env` and `--set` from `arguments` and return the changed environment config."""
    for name in take_flag(arguments, "--env") + take_flag(arguments, "--env.id"):
        env = dataclasses.replace(env, id=name, kwargs={})
    return with_env_settings(env, take_flag(arguments, "--set"))


def with_env_settings(env: AnyEnv, settings: Sequence[str]) -> AnyEnv:
    """Return the environment config with each `name=value` applied. Raises UsageError on invalid text."""
    try:
        return dataclasses.replace(env, kwargs=env.kwargs | dict(map(parse_setting, settings)))
    except ValueError as error:
        raise UsageError(str(error)) from None
