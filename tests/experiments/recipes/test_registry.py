"""Laws of recipes: what each of them says of itself is so, and a new one is known once it is declared."""

import dataclasses
from typing import Any

import pytest

from scrubjay.experiments import RECIPES, TrainConfig, with_memory
from scrubjay.experiments.kinds import from_json, to_json
from scrubjay.experiments.kinds.base import Experiment
from scrubjay.experiments.recipes.overrides import override
from scrubjay.experiments.recipes.registry import longer_of, recipe, sizes_of
from scrubjay.memory import list_memories, make_config

NEEDS = {
    "ppo": "a gymnasium environment's id",
    "team": "a ParallelEnv's name",
    "spread": "the extra mpe",
}
"""What recipes need that is not always there."""


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_bear_their_names_are_described_and_survive_json(name):
    config: Any = RECIPES[name]()
    assert config.recipe == name == RECIPES[name].name
    assert RECIPES[name].description
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in NEEDS])
def test_recipes_can_be_trained_here(name):
    RECIPES[name]().check()


@pytest.mark.parametrize("name", ["ppo", "team"])
def test_a_recipe_that_lacks_something_says_what(name):
    with pytest.raises(ValueError, match="environment"):
        RECIPES[name]().check()


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name].longer or RECIPES[name].sizes])
def test_what_is_said_to_make_a_task_longer_or_larger_does(name):
    declared, config = RECIPES[name], RECIPES[name]()
    for setting, values in filter(None, (declared.longer, declared.sizes)):
        trained = config.env.kwargs[setting]
        assert type(trained) is int
        assert list(values) == sorted(set(values))
        # Longer tasks are multiples of the trained one, itself first; teams are told by their numbers.
        assert values[0] == 1 if setting == (declared.longer or [None])[0] else trained in values
        most = trained * values[-1] if values[0] == 1 else values[-1]
        env = dataclasses.replace(config.env, kwargs={**config.env.kwargs, setting: most})
        env.make().close()


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name].settings])
def test_memories_have_the_settings_that_a_recipe_gives_them(name):
    for memory, settings in RECIPES[name].settings.items():
        given = vars(with_memory(RECIPES[name](), memory).memory)
        assert given.items() >= settings.items()
        assert given != vars(make_config(memory, dim=given["dim"])), "the defaults would do"


def test_a_config_of_no_recipe_gets_defaults(tiny):
    for memory in list_memories():
        assert with_memory(tiny(), memory).memory == make_config(memory, dim=16)


def test_with_memory_keeps_the_width_unless_a_whole_config_is_given(tiny):
    config = with_memory(tiny("gru"), "lstm")
    assert config.label == "lstm"
    assert config.policy.memory.dim == 16
    assert with_memory(tiny("gru"), make_config("lstm", dim=24)).policy.memory.dim == 24


@pytest.fixture
def declared(tiny):
    before = dict(RECIPES)

    @recipe("short", longer=("corridor_length", (1, 3)), settings={"hcam": {"chunk_size": 2}, "gru": {}})
    def make() -> TrainConfig:
        """A short corridor.

        Not told in lists.
        """
        return tiny(recipe="of no consequence")

    yield make
    RECIPES.clear()
    RECIPES.update(before)


def test_what_is_declared_is_known(declared, tiny):
    assert RECIPES["short"] is declared
    assert list(RECIPES)[-1] == "short"
    assert declared.description == "A short corridor."
    assert declared() == tiny(recipe="short")
    assert longer_of("short") == ("corridor_length", (1, 3))
    assert sizes_of("short") is None
    assert vars(with_memory(declared(), "hcam").memory)["chunk_size"] == 2
    config: Experiment = override("short", ["--memory", "hcam", "--seed", "3"])
    assert (config.recipe, config.label, config.seed) == ("short", "hcam", 3)


def test_a_name_is_given_once(declared):
    with pytest.raises(ValueError, match="a recipe 'short' already: A short corridor"):
        recipe("short")(declared.make)
    assert RECIPES["short"] is declared


def test_runs_of_recipes_that_are_no_more_are_read_without_them():
    assert longer_of("abolished") is None
    assert sizes_of("abolished") is None
