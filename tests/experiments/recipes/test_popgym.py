"""Recipes of POPGym's easy tasks: the same tasks with one config for all memories."""

import dataclasses
import subprocess
import sys

import pytest
from popgym import envs as popgym_envs

from scrubjay.experiments import RECIPES
from scrubjay.experiments.runs.engine import LocalEngine

pytestmark = pytest.mark.requires("popgym")

THEIRS = {
    "popgym-repeat-previous": "RepeatPreviousEasy",
    "popgym-autoencode": "AutoencodeEasy",
    "popgym-count-recall": "CountRecallEasy",
    "popgym-cartpole": "PositionOnlyCartPoleEasy",
}


def test_all_are_here():
    assert [name for name in RECIPES if name.startswith("popgym-")] == list(THEIRS)


@pytest.mark.slow
def test_who_asks_need_not_have_imported_popgym():
    code = "from scrubjay.experiments import RECIPES; RECIPES['popgym-cartpole']().check()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", THEIRS)
def test_the_task_is_theirs(name):
    config = RECIPES[name]()
    theirs = getattr(popgym_envs, THEIRS[name])()
    with config.env.make() as ours:
        assert type(ours.action_space) is type(theirs.action_space)
        assert ours.action_space.n == theirs.action_space.n
        ends = []
        for env in (ours, theirs):
            env.reset(seed=0)
            is_over = length = 0
            while not is_over:
                _, _, terminated, truncated, _ = env.step(0)
                is_over, length = terminated or truncated, length + 1
            ends.append((length, terminated, truncated))
    assert ends[0] == ends[1]


def test_only_task_and_horizon_differ():
    shapes = set()
    for name in THEIRS:
        config = RECIPES[name]()
        same = dataclasses.replace(config.learner, gamma=0.0)
        shapes.add((same, config.policy, config.env.num_envs, config.total_steps, config.segment_length))
    assert len(shapes) == 1


@pytest.mark.parametrize("name", THEIRS)
def test_a_first_update_learns_something(name, tmp_path):
    config = dataclasses.replace(RECIPES[name](), device="cpu", seed=1)
    with LocalEngine(config, tmp_path) as engine:
        before = [parameter.clone() for parameter in engine.model.parameters()]
        engine.update()
        assert engine.step == config.env.num_envs * config.segment_length
        is_changed = [not old.equal(new) for old, new in zip(before, engine.model.parameters(), strict=True)]
        assert all(is_changed)
