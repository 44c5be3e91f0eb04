"""A recipe with command-line overrides: `tmaze --memory hcam --memory.dim 8 --set corridor_length=20`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from scrubjay.agents.learners import list_learners, name_of_learner, turned_into
from scrubjay.experiments.kinds.base import Experiment
from scrubjay.experiments.kinds.sampled import SampledConfig
from scrubjay.experiments.kinds.team import TeamTaskConfig
from scrubjay.experiments.recipes import RECIPES, with_memory
from scrubjay.experiments.recipes.methods import METHODS, with_method
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.tasks.settings import parse_setting
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.experiments.words.arguments import OF_TRAINING, UsageError, choose, in_full, parse, take_flag
from scrubjay.experiments.words.terminal import bad_input, whole_number
from scrubjay.memory import MemoryConfig, list_memories, name_of
from scrubjay.memory.serialization import decode, encode
from scrubjay.memory.stack import StackConfig

AnyEnv = TypeVar("AnyEnv", bound=EnvConfig | TeamEnvConfig)


def override(recipe: str, arguments: Sequence[str]) -> Experiment:
    """Return the recipe's config with every flag applied; raises UsageError on a bad one.

    `--memory NAME` chooses, before it in multi-agent recipes `--method NAME`, and where something acts
    `--learner NAME`; then the flags of the chosen memory (`--memory.FIELD`) and learner (`--learner.FIELD`)
    and every field of the recipe's config (`--ppo.gamma`) follow. What a stack is made of says
    `--memory.parts gru+hcam`, and `--memory.parts.1.FIELD` sets a field of one of them. Where there is an
    environment to choose, `--env ID` does, and `--set name=value` hands it a setting.
    """
    config: Experiment = RECIPES[choose("recipe", recipe, list(RECIPES))]()
    remaining = list(arguments)
    if isinstance(config, TeamTaskConfig):
        for name in take_flag(remaining, "--method"):
            config = with_method(config, choose("method", name, list(METHODS)))
    if isinstance(config, SampledConfig):
        for name in take_flag(remaining, "--learner"):
            known = list_learners(config.acts)
            config = config.with_learner(turned_into(config.learner, choose("learner", name, known)))
    for name in take_flag(remaining, "--memory"):
        config = with_memory(config, choose("memory", name, list_memories()))
    if isinstance(config.memory, StackConfig):
        config = config.with_memory(_with_parts(config, config.memory, remaining))
    if isinstance(config, SampledConfig):
        config = dataclasses.replace(config, env=_with_env(config.env, remaining))
        remaining = in_full(remaining, config.learner_field, name_of_learner(config.learner))
    config = parse(type(config), remaining, f"scrubjay train {recipe}", config, (*OF_TRAINING, "--engine"))
    if isinstance(config, SampledConfig) and not config.env.id:
        team = isinstance(config, TeamTaskConfig)
        kind = "module:callable of a PettingZoo ParallelEnv" if team else "a gymnasium id or module:callable"
        raise UsageError(f"recipe {recipe!r} needs --env: {kind}")
    return config


def with_fields(memory: MemoryConfig, settings: Sequence[str]) -> MemoryConfig:
    """Return the same memory with each `name=value` applied, of a part of a stack `parts.0.name=value`.

    Raises UsageError on a bad one.
    """
    told = encode(memory)
    with bad_input():
        for name, value in map(parse_setting, settings):
            *path, last = name.split(".")
            place: Any = told
            for step in path:
                if isinstance(place, list):
                    place = {str(number): part for number, part in enumerate(place)}
                place = place.get(step) if isinstance(place, dict) else None
            if last == "name" or not isinstance(place, dict):
                raise ValueError(f"{name}: no field of the memory {name_of(memory)!r}")
            place[last] = None if value in ("None", "null") else value  # as flags have it, and errors
        return decode(MemoryConfig, told, "memory")


def _with_parts(config: Experiment, stack: StackConfig, words: list[str]) -> StackConfig:
    """Return the stack as wide, and of such memories, as `words` say, and take them out of there."""
    with bad_input():
        for width in take_flag(words, "--memory.dim") + take_flag(words, "--policy.memory.dim"):
            stack = stack.at_width(whole_number("--memory.dim", width))
    config = config.with_memory(stack)
    for names in take_flag(words, "--memory.parts") + take_flag(words, "--policy.memory.parts"):
        chosen = [choose("memory", name, list_memories()) for name in names.split("+")]
        parts = tuple(with_memory(config, name).memory for name in chosen)
        stack = dataclasses.replace(stack, parts=parts)
    return stack


def _with_env(env: AnyEnv, words: list[str]) -> AnyEnv:
    """Return the environment and settings that `words` name, and take them out of there."""
    for name in take_flag(words, "--env") + take_flag(words, "--env.id"):
        env = dataclasses.replace(env, id=name, kwargs={})
    return with_settings(env, take_flag(words, "--set"))


def with_settings(env: AnyEnv, settings: Sequence[str]) -> AnyEnv:
    """Return the same environment with each `name=value` applied; raises UsageError on a bad one."""
    try:
        return dataclasses.replace(env, kwargs=env.kwargs | dict(map(parse_setting, settings)))
    except ValueError as error:
        raise UsageError(str(error)) from None
