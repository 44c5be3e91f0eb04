"""Recipes of small tasks: each requires memory and states the best success without it."""

import dataclasses

import pytest

from scrubjay.experiments import RECIPES
from scrubjay.experiments.runs.engine import LocalEngine

TASKS = [
    name
    for name in RECIPES
    if RECIPES[name].make.__module__.endswith("recipes.tasks") and not name.startswith(("ballet", "popgym"))
]


def test_small_tasks_are_listed_first_and_others_lie_elsewhere():
    assert list(RECIPES)[: len(TASKS)] == TASKS
    assert list(RECIPES)[-2:] == ["ppo", "team"]


def test_without_memory_one_comes_not_far():
    alone = {name: RECIPES[name]().success_without_memory for name in TASKS}
    # The torus task has no success rate, only returns.
    assert alone.pop("memory-planning") is None
    assert all(0 < success < 0.9 for success in alone.values())


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", TASKS)
def test_a_first_update_learns_something(name, tmp_path):
    """Minibatches divide the number of environments, and segments cover episodes."""
    config = dataclasses.replace(RECIPES[name](), device="cpu", seed=1)
    with LocalEngine(config, tmp_path) as engine:
        before = [parameter.clone() for parameter in engine.model.parameters()]
        engine.update()
        assert engine.step == config.env.num_envs * config.segment_length
        is_changed = [not old.equal(new) for old, new in zip(before, engine.model.parameters(), strict=True)]
        assert all(is_changed)


def test_the_demos_are_shorter_trainings_of_the_same_tasks():
    for short, whole in (("tmaze-demo", "tmaze"), ("recall-demo", "repeat-previous")):
        demo, full = RECIPES[short](), RECIPES[whole]()
        assert demo.env.id == full.env.id
        assert demo.total_steps < full.total_steps


def test_what_is_given_to_a_memory_on_one_task_is_not_shared_with_the_next():
    longer = {name: RECIPES[name].longer for name in TASKS}
    assert longer["repeat-previous"] == ("num_decks", (1, 2, 5, 10))
    assert longer["recall-demo"] is None  # a demo is not tested on longer tasks
