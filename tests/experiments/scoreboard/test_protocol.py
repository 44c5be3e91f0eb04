"""The protocol: its seeds follow from its entropy, its tasks are disjoint, and a loss is Welch's."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from scrubjay.experiments import RECIPES
from scrubjay.experiments.scoreboard.protocol import (
    DEMO,
    DEVELOPMENT,
    DEVELOPMENT_SEEDS,
    ENTROPY,
    SEEDS,
    TASKS,
    TEST,
    TEST_SEEDS,
    difference,
    draw_seeds,
    is_loss,
)
from scrubjay.experiments.scoreboard.tasks import SCOREBOARD

ROOT = Path(__file__).parents[3]
MODULES = {"popgym": "popgym", "minigrid": "minigrid", "bsuite": "bsuite", "gymnasium": "mujoco"}
"""Module that each package of a task provides."""


def package(task):
    return re.split(r"\W", task.package)[0]


def test_nobody_chose_the_seeds():
    """They are the stream of the entropy, and this digest was committed with them."""
    assert [int(seed) for seed in np.random.SeedSequence(ENTROPY).generate_state(40)] == list(SEEDS)
    assert len(set(SEEDS)) == 40
    assert not set(SEEDS) & {*DEVELOPMENT_SEEDS, *range(1000)}
    assert SEEDS[:5] == TEST_SEEDS == draw_seeds(5)
    digest = hashlib.sha256(repr(SEEDS).encode()).hexdigest()
    assert digest == "feb13764ea01f00f45c8c417d088cb5464fb99a0f29f8f5b7e3c8868360a334e"


def test_development_test_and_scoreboard_are_disjoint():
    assert (len(DEVELOPMENT), len(TEST), len(SCOREBOARD)) == (4, 8, 8)
    assert set(TASKS) - {task.name for task in (*DEVELOPMENT, *TEST, *SCOREBOARD)} == {"memory-s11"}
    settings = {(task.env_id, *sorted(task.kwargs.items())) for task in TASKS.values()}
    assert len(settings) == len(TASKS) == 21
    assert {package(task) for task in TEST} == {"bsuite", "minigrid", "gymnasium"}
    assert {package(task) for task in DEVELOPMENT} == {"", "popgym"}
    assert DEMO in RECIPES


def test_make_installs_every_package():
    makefile = (ROOT / "Makefile").read_text()
    line = next(line for line in makefile.splitlines() if "[bench,popgym]" in line)
    for task in TASKS.values():
        assert f"'{task.package}'" in line or package(task) in ("", "popgym")


@pytest.mark.filterwarnings("ignore")  # MuJoCo and old environments warn
@pytest.mark.parametrize("name", TASKS)
def test_every_task_can_be_played_to_the_end_of_an_episode(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log
    task = TASKS[name]
    if task.package:
        pytest.importorskip(MODULES[package(task)])
    config = task.env(1)
    config.try_out()
    with config.make() as env:
        env.reset(seed=0)
        env.action_space.seed(0)
        ends = (any(env.step(env.action_space.sample())[2:4]) for _ in range(task.episode_steps))
        assert any(ends), f"the episode is longer than {task.episode_steps} steps"


def test_the_difference_is_that_of_welch():
    ours, theirs = np.random.default_rng(0).normal(size=(2, 7)) * np.array([[1], [3]])
    gap, low, high = difference(ours.tolist(), theirs.tolist())
    variances = ours.var(ddof=1) / 7, theirs.var(ddof=1) / 7
    freedom = sum(variances) ** 2 / sum(v**2 / 6 for v in variances)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(variances))
    np.testing.assert_allclose([low, high], [float(gap - half), float(gap + half)])
    assert gap == pytest.approx(ours.mean() - theirs.mean())


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([0.0, 0.1, 0.0], [1.0, 0.9, 1.0], True),
        ([0.0, 1.0, 0.5], [0.6, 0.7, 0.4], False),  # lower, but within the interval
        ([1.0, 0.9], [0.0, 0.1], False),
        ([0.0, 0.0], [1.0, 1.0], True),  # scores that do not vary
        ([1.0, 1.0], [1.0, 1.0], False),
        ([0.0], [1.0, 1.0, 1.0], False),  # a single score decides nothing
    ],
)
def test_a_loss_is_a_difference_beyond_its_interval(ours, theirs, expected):
    assert is_loss(ours, theirs) is expected
