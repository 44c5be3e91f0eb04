"""What a recipe is, and which there are: each declares itself, by a decorator, under its one name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from scrubjay.experiments.kinds.base import Experiment
from scrubjay.memory import MemoryConfig, make_config

AnyExperiment = TypeVar("AnyExperiment", bound=Experiment)

Range = tuple[str, tuple[int, ...]]
"""A setting of an environment, and numbers for it."""


@dataclass(frozen=True)
class Recipe(Generic[AnyExperiment]):
    """A named experiment: call it for its full config."""

    name: str
    """What it is called in commands, run directories and plots."""
    make: Callable[[], Any]
    """What returns the config; its docstring's first line describes the recipe."""
    longer: Range | None = None
    """What makes the task longer, and how many times longer a trained policy is tested."""
    sizes: Range | None = None
    """What makes a team larger, and the numbers at which a trained team is tested."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What single memories get here beside their defaults when only their name is given, by that name."""

    def __call__(self) -> AnyExperiment:
        """Return a config that bears the recipe's name."""
        return dataclasses.replace(self.make(), recipe=self.name)

    @property
    def description(self) -> str:
        """What it is, in a line."""
        return (self.make.__doc__ or "").strip().partition("\n")[0]


RECIPES: dict[str, Recipe[Any]] = {}
"""All recipes by name, in the order in which they are listed."""


def recipe(
    name: str,
    *,
    longer: Range | None = None,
    sizes: Range | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[Callable[[], AnyExperiment]], Recipe[AnyExperiment]]:
    """Declare the function below, which returns a config, to be a recipe; other words are `Recipe`'s.

    Raises ValueError if there is a recipe of that name already.
    """

    def declare(make: Callable[[], AnyExperiment]) -> Recipe[AnyExperiment]:
        if name in RECIPES:
            raise ValueError(f"there is a recipe {name!r} already: {RECIPES[name].description}")
        RECIPES[name] = made = Recipe[AnyExperiment](name, make, longer, sizes, settings or {})
        return made

    return declare


def longer_of(name: str) -> Range | None:
    """Return what makes a recipe's task longer.

    None where nothing does, or of a recipe that there is no more.
    """
    return RECIPES[name].longer if name in RECIPES else None


def sizes_of(name: str) -> Range | None:
    """Return at which sizes a recipe's team is tested.

    None where at none, or of a recipe that there is no more.
    """
    return RECIPES[name].sizes if name in RECIPES else None


def with_memory(config: AnyExperiment, memory: str | MemoryConfig) -> AnyExperiment:
    """Return the same experiment with another memory, of the same width if only its name is given.

    Raises ValueError on an unknown name.
    """
    if isinstance(memory, str):
        settings = RECIPES[config.recipe].settings if config.recipe in RECIPES else {}
        memory = make_config(memory, dim=config.memory.dim, **settings.get(memory, {}))
    return config.with_memory(memory)
