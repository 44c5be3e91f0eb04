"""Registry of recipes. Recipes register themselves with the decorator `recipe`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from scrubjay.experiments.runs.config import Experiment
from scrubjay.memory import MemoryConfig, make_config, name_of

AnyExperiment = TypeVar("AnyExperiment", bound=Experiment)

Range = tuple[str, tuple[int, ...]]
"""Name of an environment setting, and values for it."""


@dataclass(frozen=True)
class Recipe(Generic[AnyExperiment]):
    """Named experiment; call it to get its full config."""

    name: str
    """Name in commands, run directories and plots."""
    make: Callable[[], Any]
    """Function that returns the config; the first line of its docstring describes the recipe."""
    longer: Range | None = None
    """Name of the setting for the length of the task, and a tuple of factors. For each factor, the policy is
    also evaluated on a longer task: the training value of the setting is multiplied by the factor."""
    sizes: Range | None = None
    """Name of the setting for the team size, and a tuple of team sizes. A trained team is also evaluated at
    each of these sizes."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Memory settings of this recipe: a dict from memory name to values of config fields. If a memory is
    selected by its name, these values replace the defaults of its config."""
    episode_steps: int | None = None
    """Maximum number of steps of an episode in training; None if unknown. Attention memories that are
    selected by name get a window of at least this length, so that they see the whole episode."""
    title: str = ""
    """Readable name of the task in plots and on pages; empty for the name of the recipe."""

    def __call__(self) -> AnyExperiment:
        """Return the config, with the recipe's name set."""
        return dataclasses.replace(self.make(), recipe=self.name)

    @property
    def description(self) -> str:
        """One-line description."""
        return (self.make.__doc__ or "").strip().partition("\n")[0]


_WINDOW_MEMORIES = ("gtrxl", "sink")  # they see `window` steps, and nothing before except sinks

RECIPES: dict[str, Recipe[Any]] = {}
"""All recipes by name, in the order of `scrubjay list`."""


def recipe(
    name: str,
    *,
    longer: Range | None = None,
    sizes: Range | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    episode_steps: int | None = None,
    title: str = "",
) -> Callable[[Callable[[], AnyExperiment]], Recipe[AnyExperiment]]:
    """Return a decorator that registers a recipe; it decorates the function that returns the config.

    Args:
        name: Name in commands, run directories and plots.
        longer: Setting for the length of the task and factors of it, as in `Recipe.longer`.
        sizes: Setting for the team size and team sizes, as in `Recipe.sizes`.
        settings: Memory settings of this recipe, by memory.
        episode_steps: Maximum number of steps of an episode in training; None if unknown.
        title: Readable name of the task; empty for the name of the recipe.

    Raises:
        ValueError: If the name is already registered.
    """

    def declare(make: Callable[[], AnyExperiment]) -> Recipe[AnyExperiment]:
        if name in RECIPES:
            raise ValueError(f"recipe {name!r} is already registered: {RECIPES[name].description}")
        RECIPES[name] = new_recipe = Recipe[AnyExperiment](
            name, make, longer, sizes, settings or {}, episode_steps, title
        )
        return new_recipe

    return declare


def longer_range(name: str) -> Range | None:
    """Return the field `longer` of a recipe; None if it is not set or the recipe does not exist."""
    return RECIPES[name].longer if name in RECIPES else None


def task_title(name: str) -> str:
    """Return the readable title of a task; the name itself if no recipe has it or the recipe has no title."""
    return (RECIPES[name].title if name in RECIPES else "") or name


def size_range(name: str) -> Range | None:
    """Return the field `sizes` of a recipe; None if it is not set or the recipe does not exist."""
    return RECIPES[name].sizes if name in RECIPES else None


def with_memory(config: AnyExperiment, memory: str | MemoryConfig) -> AnyExperiment:
    """Return the config with another memory.

    A memory passed by name gets the width of the current memory and the settings of the recipe.

    Raises:
        ValueError: On an unknown name.
    """
    if isinstance(memory, str):
        name, own = memory, RECIPES.get(config.recipe)
        memory = make_config(
            name, dim=config.memory.dim, **({} if own is None else own.settings.get(name, {}))
        )
        if own is not None and own.episode_steps is not None:
            memory = cover_episode(memory, own.episode_steps)
    return config.with_memory(memory)


def cover_episode(memory: MemoryConfig, episode_steps: int) -> MemoryConfig:
    """Return the config of a memory with a window of at least an episode, if it sees a window of steps."""
    if name_of(memory) not in _WINDOW_MEMORIES:
        return memory
    settings: dict[str, Any] = {"window": max(vars(memory)["window"], episode_steps)}
    return dataclasses.replace(memory, **settings)
