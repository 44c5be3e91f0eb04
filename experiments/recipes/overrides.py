"""Command-line overrides of a recipe: `tmaze --memory hcam --memory.dim 8 --set corridor_length=20`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from tyro.conf import UseAppendAction, arg

from scrubjay.agents.learners import get_learner_name, list_learners, switch_learner
from scrubjay.experiments.cli.arguments import (
    RecipeFlags,
    choose,
    expand_short_options,
    list_flags,
    parse,
    parse_known,
    parse_setting,
    print_recipe_help,
    wants_help,
)
from scrubjay.experiments.cli.failures import UsageError, bad_input
from scrubjay.experiments.recipes import RECIPES, with_memory
from scrubjay.experiments.recipes.teams import METHODS, with_method
from scrubjay.experiments.runs.config import Experiment
from scrubjay.experiments.runs.reinforcement import RLConfig, TeamTaskConfig
from scrubjay.experiments.tasks.environments import EnvConfig, with_names
from scrubjay.experiments.tasks.teams import KNOWN_TEAMS, TeamEnvConfig, returns_team
from scrubjay.memory import MemoryConfig, list_memories, name_of
from scrubjay.memory.serialization import decode, encode
from scrubjay.memory.stack import StackConfig

_OTHER_FLAGS = (*list_flags(RecipeFlags()), "--run-dir", "--quiet", "--logger", "--engine")
"""Flags of `scrubjay train` that are not fields of the config."""
AnyEnv = TypeVar("AnyEnv", bound=EnvConfig | TeamEnvConfig)


@dataclass(frozen=True)
class _StackFlags:
    """Flags of a stack of memories."""

    dim: Annotated[
        UseAppendAction[tuple[int, ...]], arg(name="memory.dim", aliases=["--policy.memory.dim"])
    ] = ()
    """Width of the stack and all parts."""
    parts: Annotated[
        UseAppendAction[tuple[str, ...]], arg(name="memory.parts", aliases=["--policy.memory.parts"])
    ] = ()
    """Names of the parts, joined by plus signs."""


def override(
    recipe: str | None,
    arguments: Sequence[str],
    start: Experiment | None = None,
    command: str = "train",
    options_type: type[Any] | None = None,
) -> Experiment:
    """Return the recipe's config with all flags applied. Raises UsageError on an invalid flag.

    `--help` prints all options of the command: these flags, and the fields of `options_type`.

    If `start` is not None, it takes the place of the recipe's config: the config of a file, whose environment
    may be untrusted. The flag `--env` with the name of this environment trusts it and keeps its settings.

    First the config gets the parts that `RecipeFlags` name. Then fields of the memory (`--memory.FIELD`), of
    the learner (`--learner.FIELD`) and of the config (`--total-steps`) are set. `--memory.parts gru+hcam`
    sets the parts of a stack, and `--memory.parts.1.FIELD` a field of one part.
    """
    if start is None:
        config: Experiment = RECIPES[choose("recipe", recipe or "", list(RECIPES))]()
    else:
        config = _as_new_run(start, arguments)
    about = recipe or config.recipe
    flags, remaining = parse_known(RecipeFlags, arguments)
    for name in flags.method:
        if not isinstance(config, TeamTaskConfig):
            raise UsageError(f"--method requires a multi-agent recipe; {about!r} has a single agent or none")
        config = with_method(config, choose("method", name, list(METHODS)))
    for flag in ("learner", "env", "set", "wrap"):
        if getattr(flags, flag) and not isinstance(config, RLConfig):
            raise UsageError(f"--{flag} requires a recipe with a policy; {about!r} has no policy")
    if flags.wrap and isinstance(config, TeamTaskConfig):
        raise UsageError(f"--wrap requires a recipe with a single agent; {about!r} has a team")
    if isinstance(config, RLConfig):
        for name in flags.learner:
            learner_names = list_learners(config.policy_type)
            config = config.with_learner(
                switch_learner(config.learner, choose("learner", name, learner_names))
            )
    for name in flags.memory:
        config = with_memory(config, choose("memory", name, list_memories()))
    if isinstance(config.memory, StackConfig):
        stack_flags, remaining = parse_known(_StackFlags, remaining)
        config = config.with_memory(_with_parts(config, config.memory, stack_flags))
    if isinstance(config, RLConfig):
        env = config.env
        for name in flags.env:
            is_same = start is not None and name == config.env.id
            env = dataclasses.replace(env, kwargs=config.env.kwargs if is_same else {})
            env = with_names(env, name, *(config.env.wrappers if is_same else ()))
        with bad_input():
            env = with_names(env, env.id, *(flags.wrap or env.wrappers))
        config = dataclasses.replace(config, env=with_env_settings(env, flags.set))
        remaining = expand_short_options(remaining, get_learner_name(config.learner))
    before, prog = config, f"scrubjay {command} {recipe or '--config FILE'}"
    if wants_help(remaining):
        print_recipe_help(config, _list_accepted(config), prog, options_type)
    config = parse(type(config), remaining, prog, config, _OTHER_FLAGS)
    if isinstance(config, RLConfig) and isinstance(before, RLConfig):
        # The parser may return a plain text for an untrusted name.
        config = dataclasses.replace(config, env=with_names(config.env, before.env.id, *before.env.wrappers))
        is_named = any(re.fullmatch(r"--policy\.encoder(=.*)?", word) for word in remaining)
        if before.own_encoder and not is_named:
            config = dataclasses.replace(config, policy=config.with_encoder(before.own_encoder))
    if isinstance(config, RLConfig) and not config.env.id:
        team = isinstance(config, TeamTaskConfig)
        kind = "module:callable of a PettingZoo ParallelEnv" if team else "a gymnasium id or module:callable"
        raise UsageError(f"recipe {about!r} needs --env: {kind}")
    return config


def _list_accepted(config: Experiment) -> dict[type[Any], list[str]]:
    """Return the fields of `RecipeFlags` and `_StackFlags` that a config accepts."""
    names = ["memory"]
    if isinstance(config, RLConfig):
        names += ["learner", "env", "set"]
        names += ["method"] if isinstance(config, TeamTaskConfig) else ["wrap"]
    return {RecipeFlags: names, _StackFlags: ["parts"] * isinstance(config.memory, StackConfig)}


def _as_new_run(config: Experiment, arguments: Sequence[str]) -> Experiment:
    """Return the config of a file for a new run. Raises UsageError if its total of steps is not clear."""
    flags = [word.partition("=")[0].replace("_", "-") for word in arguments]
    if config.extensions and "--total-steps" not in flags:
        raise UsageError(
            f"total_steps={config.total_steps}: the config file is that of a run that was extended from "
            f"{config.first_plan} steps; add --total-steps N, over which schedules then last"
        )
    return config.without_extensions()


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


def _with_parts(config: Experiment, stack: StackConfig, flags: _StackFlags) -> StackConfig:
    """Return the memory config `stack` with the width and the parts that the flags set."""
    with bad_input():
        for width in flags.dim:
            stack = stack.at_width(width)
    config = config.with_memory(stack)
    for names in flags.parts:
        names_of_parts = [choose("memory", name, list_memories()) for name in names.split("+")]
        parts = tuple(with_memory(config, name).memory for name in names_of_parts)
        stack = dataclasses.replace(stack, parts=parts)
    return stack


def with_env_settings(env: AnyEnv, settings: Sequence[str]) -> AnyEnv:
    """Return the environment config with each `name=value` applied. Raises UsageError on invalid text."""
    try:
        return dataclasses.replace(env, kwargs=env.kwargs | dict(map(parse_setting, settings)))
    except ValueError as error:
        raise UsageError(str(error)) from None


def find_env(name: str, settings: Sequence[str]) -> EnvConfig | TeamEnvConfig:
    """Return the environment with this name. The settings `name=value` only select its kind.

    The name is that of a recipe or a team, a gymnasium id, or the `module:callable` of either kind. Raises
    ValueError for a recipe without an environment.
    """
    if name in KNOWN_TEAMS:
        return TeamEnvConfig(KNOWN_TEAMS[name].id)
    if name in RECIPES:
        config = RECIPES[name]()
        if not isinstance(config, RLConfig) or not config.env.id:
            raise ValueError(f"recipe {name!r} has no environment; name a gymnasium id or module:callable")
        return config.env
    env = with_env_settings(EnvConfig(name, num_envs=1), settings)
    return TeamEnvConfig(name) if returns_team(env.id, env.kwargs) else EnvConfig(name, num_envs=1)
