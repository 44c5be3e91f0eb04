"""Recipes: their descriptions and settings are correct, and new ones are registered."""

import dataclasses
from typing import Any

import pytest

from scrubjay.experiments import RECIPES, TrainConfig, with_memory
from scrubjay.experiments.recipes.overrides import override
from scrubjay.experiments.recipes.registry import longer_range, recipe, size_range, task_title
from scrubjay.experiments.runs.config import Experiment
from scrubjay.experiments.runs.kinds import from_json, to_json
from scrubjay.memory import list_memories, make_config

from ..extras import recipe_parameters

NEEDS = {
    "ppo": "a gymnasium environment's id",
    "team": "a ParallelEnv's name",
}
"""Requirements of recipes that may be missing."""


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_bear_their_names_are_described_and_survive_json(name):
    config: Any = RECIPES[name]()
    assert config.recipe == name == RECIPES[name].name
    assert RECIPES[name].description
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize("name", recipe_parameters(*NEEDS))
def test_recipes_can_be_trained_here(name):
    RECIPES[name]().check()


@pytest.mark.parametrize("name", ["ppo", "team"])
def test_a_recipe_that_lacks_something_says_what(name):
    with pytest.raises(ValueError, match="environment"):
        RECIPES[name]().check()


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name].longer or RECIPES[name].sizes])
def test_what_is_said_to_make_a_task_longer_or_larger_does(name):
    entry, config = RECIPES[name], RECIPES[name]()
    for setting, values in filter(None, (entry.longer, entry.sizes)):
        trained_value = config.env.kwargs[setting]
        assert type(trained_value) is int
        assert list(values) == sorted(set(values))
        # Longer tasks are multiples of the trained length, starting at 1; teams are listed by size.
        assert values[0] == 1 if setting == (entry.longer or [None])[0] else trained_value in values
        most = trained_value * values[-1] if values[0] == 1 else values[-1]
        env = dataclasses.replace(config.env, kwargs={**config.env.kwargs, setting: most})
        env.make().close()


@pytest.mark.parametrize(
    "name", recipe_parameters(*[name for name in RECIPES if not RECIPES[name].episode_steps])
)
def test_no_episode_is_longer_than_the_windows_of_attention_memories(name):
    config: Any = RECIPES[name]()
    steps = RECIPES[name].episode_steps or 0
    with config.env.make() as env:
        env.action_space.seed(0)
        for seed in range(5):
            env.reset(seed=seed)
            length, over = 0, False
            while not over:
                *_, terminated, truncated, _ = env.step(env.action_space.sample())
                length, over = length + 1, terminated or truncated
            assert length <= steps
    for memory in ("gtrxl", "sink"):
        default = vars(make_config(memory))["window"]
        by_name, by_config = with_memory(config, memory), with_memory(config, make_config(memory, dim=64))
        assert by_name.memory.window == max(default, steps)
        assert by_config.memory.window == default


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name].settings])
def test_memories_have_the_settings_that_a_recipe_gives_them(name):
    for memory, settings in RECIPES[name].settings.items():
        fields = vars(with_memory(RECIPES[name](), memory).memory)
        assert fields.items() >= settings.items()
        assert fields != vars(make_config(memory, dim=fields["dim"])), "the defaults would do"


def test_a_config_of_no_recipe_gets_defaults(tiny):
    for memory in list_memories():
        assert with_memory(tiny(), memory).memory == make_config(memory, dim=16)


def test_with_memory_keeps_the_width_unless_a_whole_config_is_given(tiny):
    config = with_memory(tiny("gru"), "lstm")
    assert config.label == "lstm"
    assert config.policy.memory.dim == 16
    assert with_memory(tiny("gru"), make_config("lstm", dim=24)).policy.memory.dim == 24


@pytest.fixture
def short_recipe(tiny):
    before = dict(RECIPES)

    @recipe("short", longer=("corridor_length", (1, 3)), settings={"hcam": {"chunk_size": 2}, "gru": {}})
    def make() -> TrainConfig:
        """A short corridor.

        Not shown in lists.
        """
        return tiny(recipe="of no consequence")

    yield make
    RECIPES.clear()
    RECIPES.update(before)


def test_what_is_declared_is_known(short_recipe, tiny):
    assert RECIPES["short"] is short_recipe
    assert list(RECIPES)[-1] == "short"
    assert short_recipe.description == "A short corridor."
    assert short_recipe() == tiny(recipe="short")
    assert longer_range("short") == ("corridor_length", (1, 3))
    assert size_range("short") is None
    assert task_title("short") == "short"
    assert vars(with_memory(short_recipe(), "hcam").memory)["chunk_size"] == 2
    config: Experiment = override("short", ["--memory", "hcam", "--seed", "3"])
    assert (config.recipe, config.label, config.seed) == ("short", "hcam", 3)


def test_a_name_is_given_once(short_recipe):
    with pytest.raises(ValueError, match="recipe 'short' is already registered: A short corridor"):
        recipe("short")(short_recipe.make)
    assert RECIPES["short"] is short_recipe


def test_runs_of_recipes_that_are_no_more_are_read_without_them():
    assert longer_range("abolished") is None
    assert size_range("abolished") is None
    assert task_title("abolished") == "abolished"
    assert task_title("tmaze-20") == "T-maze, corridor of 20 steps"
