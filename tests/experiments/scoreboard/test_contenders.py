"""Contenders: one config for all tasks, with a memory that covers the episode."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from scrubjay.experiments import RECIPES
from scrubjay.experiments.scoreboard.contenders import (
    FURTHER,
    MEMORIES,
    VARIANTS,
    Settings,
    make_train_config,
)
from scrubjay.experiments.scoreboard.protocol import TASKS
from scrubjay.memory import make_config, name_of


@pytest.mark.parametrize("memory", [*MEMORIES, *FURTHER])
def test_every_memory_covers_the_episode_and_otherwise_has_its_fixed_settings(memory):
    name, changes = VARIANTS.get(memory, (memory, {}))
    for task in TASKS.values():
        config = make_train_config(task, memory, 3, Settings(steps=5000))
        own: Any = config.memory
        default: Any = make_config(name, dim=64, **changes)
        sizes = {}
        if memory in ("gtrxl", "sink"):
            assert own.window >= task.episode_steps
            sizes = {"window": default.window}
        elif memory == "hcam":
            assert own.num_chunks * own.chunk_size >= task.episode_steps
            sizes = {"num_chunks": default.num_chunks}
        assert name_of(own) == name
        assert dataclasses.replace(own, **sizes) == default
        assert config.learner == RECIPES["ppo"]().learner
        assert (config.seed, config.total_steps, config.eval_episodes) == (3, 5000, 0)
        assert (config.env.id, config.env.kwargs) == (task.env_id, task.kwargs)


def test_settings_of_all_contenders_replace_those_of_the_learner():
    own = {
        "learning_rate": 1e-3,
        "entropy_coefficient": 0.0,
        "least_deviation": 0.5,
        "burn_in_segments": 2,
        "anneal": True,
    }
    settings = Settings(**own, num_envs=4, segment_length=16)
    config = make_train_config(TASKS["cartpole"], "gru", 0, settings)
    default = RECIPES["ppo"]().learner
    assert config.learner == dataclasses.replace(default, **own)
    assert (config.env.num_envs, config.segment_length) == (4, 16)
