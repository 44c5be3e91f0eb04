"""Recipes of Ballet: sizes match the episodes, and other settings can be played."""

from __future__ import annotations

import dataclasses

import pytest

from scrubjay.experiments import RECIPES
from scrubjay.experiments.recipes.registry import with_memory
from scrubjay.experiments.runs.engine import LocalEngine

BY_REWARD = ("ballet", "ballet-4", "ballet-8")


def longest(env) -> int:
    """Return the steps of the longest episode: all dancers, all delays and the walk."""
    kwargs = env.kwargs
    return kwargs["num_dancers"] * (16 + kwargs["delay"]) + kwargs["walk_steps"]


@pytest.mark.parametrize("name", BY_REWARD)
def test_hcam_reads_the_whole_ballet_and_no_more(name):
    config = RECIPES[name]()
    memory = config.policy.memory
    assert memory.top_k == longest(config.env) // memory.chunk_size <= memory.num_chunks
    assert with_memory(with_memory(config, "gru"), "hcam") == config


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", BY_REWARD)
def test_a_first_update_learns_something(name, tmp_path):
    config = RECIPES[name]()
    config = dataclasses.replace(
        config, env=dataclasses.replace(config.env, num_envs=4), device="cpu", seed=1
    )
    with LocalEngine(config, tmp_path) as engine:
        before = [parameter.clone() for parameter in engine.model.parameters()]
        engine.update()
        is_changed = [not old.equal(new) for old, new in zip(before, engine.model.parameters(), strict=True)]
        assert all(is_changed)


def test_more_dancers_leave_less_to_chance():
    alone = [RECIPES[name]().success_without_memory for name in BY_REWARD]
    assert alone[0] == 1 / 2
    assert alone == sorted(alone, reverse=True)
