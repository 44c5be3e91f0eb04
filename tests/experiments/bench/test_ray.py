"""Scaling model of the Ray benchmark, checked against sums by hand."""

import dataclasses

import pytest

from scrubjay.experiments.bench.ray import Constants, ScalingModel, build_config, speed_table

CONSTANTS = Constants(
    steps=10,
    row_bytes=1000,
    weight_bytes=4000,
    sample_seconds=0.5,
    gather_seconds=0.01,
    learn_seconds=0.25,
)


def test_an_iteration_is_sampling_gathering_and_learning_in_turn():
    plan = ScalingModel(runners=4, constants=CONSTANTS, num_envs=8, bytes_per_second=1e5)
    assert plan.sampling == 8 * 0.5  # all runners at once
    assert plan.gathering == pytest.approx(4 * (8 * (0.01 + 0.01) + 0.04))
    learning = 4 * 8 * 0.25
    assert plan.steps_per_second(1) == pytest.approx(320 / (plan.sampling + plan.gathering + learning))
    assert plan.steps_per_second(4) == pytest.approx(320 / (plan.sampling + plan.gathering + learning / 4))


@pytest.mark.parametrize(("runners", "learners"), [(1, 1), (2, 1), (4, 2), (64, 32)])
def test_as_many_learners_as_learn_what_all_runners_sample(runners, learners):
    assert ScalingModel(runners, CONSTANTS, 8, 1e9).learners == learners


def test_no_number_of_runners_goes_beyond_what_the_driver_lets_through():
    ceiling = CONSTANTS.ceiling(1e6)
    speeds = [ScalingModel(n, CONSTANTS, 8, 1e6).steps_per_second(10**6) for n in (1, 10, 1000, 100_000)]
    assert speeds == sorted(speeds)
    assert speeds[-1] < ceiling
    faster = dataclasses.replace(CONSTANTS, gather_seconds=0.0)
    assert faster.ceiling(1e6) > ceiling


def test_speeds_are_told_beside_the_local_engine_and_rllibs_fastest():
    text = speed_table({"local": 100.0, "RLlib, 1": 20.0, "RLlib, 2": 40.0, "Ray, 2": 200.0})
    rows = {line.strip("| ").split(" | ")[0]: line.strip("| ").split(" | ")[1:] for line in text.splitlines()}
    assert rows["local"] == ["100", "1.00x", "2.5x"]
    assert rows["Ray, 2"] == ["200", "2.00x", "5.0x"]
    assert rows["RLlib, 1"] == ["20", "0.20x", "0.5x"]


def test_the_shared_config_never_ends_by_itself():
    config = build_config("lstm")
    assert (config.recipe, config.label) == ("key-to-door", "lstm")
    assert config.total_steps >= 10**9
