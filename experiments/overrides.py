"""A recipe with command-line overrides: `tmaze --memory hcam --memory.chunk-size 8 --set corridor_length=20`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from scrubjay.experiments.arguments import UsageError, choose, parse, take_flag
from scrubjay.experiments.config import TrainConfig
from scrubjay.experiments.environments import EnvConfig, parse_setting
from scrubjay.experiments.recipes import RECIPES, with_memory
from scrubjay.memory import list_memories


def override(recipe: str, arguments: Sequence[str]) -> TrainConfig:
    """Return the recipe's config with every flag applied; raises UsageError on a bad one.

    `--memory NAME` and `--env ID` choose, then the flags of the chosen memory (`--memory.FIELD`) and every
    field of `TrainConfig` (`--ppo.gamma`) follow; `--set name=value` hands a setting to the environment.
    """
    config = RECIPES[choose("recipe", recipe, list(RECIPES))]()
    remaining = list(arguments)
    for name in take_flag(remaining, "--memory"):
        config = with_memory(config, choose("memory", name, list_memories()))
    for name in take_flag(remaining, "--env") + take_flag(remaining, "--env.id"):
        env = EnvConfig(name, num_envs=config.env.num_envs, subprocesses=config.env.subprocesses)
        config = dataclasses.replace(config, env=env)
    config = dataclasses.replace(config, env=with_settings(config.env, take_flag(remaining, "--set")))
    remaining = [word.replace("--memory.", "--policy.memory.", 1) for word in remaining]
    config = parse(TrainConfig, remaining, f"scrubjay train {recipe}", config)
    if not config.env.id:
        raise UsageError(f"recipe {recipe!r} needs --env: a gymnasium id or module:callable")
    return config


def with_settings(env: EnvConfig, settings: Sequence[str]) -> EnvConfig:
    """Return the same environment with each `name=value` applied; raises UsageError on a bad one."""
    try:
        return dataclasses.replace(env, kwargs=env.kwargs | dict(map(parse_setting, settings)))
    except ValueError as error:
        raise UsageError(str(error)) from None
