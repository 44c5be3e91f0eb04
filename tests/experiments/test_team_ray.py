"""The Ray engine of teams: the local engine's run, on processes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from scrubjay.agents.gamatr import GAMATRConfig
from scrubjay.agents.rllib import SegmentGAMATR, SegmentGAMATRConfig
from scrubjay.agents.team_policy import TeamPolicyConfig
from scrubjay.experiments import RayOptions, Run, resume, train
from scrubjay.experiments.checkpoint import load_training, load_weights
from scrubjay.experiments.team_engine import TeamEngine
from scrubjay.experiments.team_ray_engine import TeamRayEngine
from scrubjay.experiments.team_task import TeamTaskConfig
from scrubjay.experiments.teams import TeamEnvConfig
from scrubjay.memory import make_config

pytestmark = pytest.mark.usefixtures("cluster")

TINY = TeamTaskConfig(
    recipe="tiny",
    env=TeamEnvConfig(kwargs={"max_steps": 6}, num_envs=4),
    policy=TeamPolicyConfig(memory=make_config("gru", dim=16), graph_rounds=1),
    learner=GAMATRConfig(minibatches=2),
    total_steps=192,
    segment_length=8,
    device="cpu",
    eval_episodes=2,
)


SEPARATE = dataclasses.replace(TINY, policy=dataclasses.replace(TINY.policy, shared=False))
CLIPPED = dataclasses.replace(TINY, learner=dataclasses.replace(TINY.learner, mode="clip"))


@pytest.mark.parametrize("config", [SEPARATE, CLIPPED], ids=["separate", "clip"])
def test_without_further_processes_it_is_the_local_run_bit_for_bit(config, tmp_path, assert_same):
    local = train(config, tmp_path / "local")
    assert_same(train(config, tmp_path / "ray", ray=RayOptions(0, 0)), local)


def test_one_runner_and_one_learner_elsewhere_go_on_with_a_local_run_to_the_same_end(tmp_path, assert_same):
    whole = train(TINY, tmp_path / "whole")
    run = Run.create(TINY, tmp_path / "stopped")
    with TeamEngine(TINY, run.path) as engine:
        for _ in range(3):
            engine.update()
        engine.save()
    assert_same(resume(run.path, ray=RayOptions(num_env_runners=1, num_learners=1)), whole)


@pytest.mark.slow  # three processes begin
def test_two_runners_and_a_learner_of_their_own_learn_from_every_row(tmp_path):
    run = Run.create(TINY, tmp_path / "run")
    with TeamRayEngine(TINY, run.path, RayOptions(num_env_runners=2, num_learners=1)) as engine:
        born = {name: value.clone() for name, value in engine.model.state_dict().items()}
        for _ in range(2):
            engine.update()
        engine.save()
        algorithm: Any = engine.algorithm
        samples = algorithm.call_runners(lambda runner: runner.sample())
    assert [row["step"] for row in run.metrics()] == [32, 64]
    assert all(0 <= row["losses/kl_max"] <= 1.01 * TINY.learner.kl_limit for row in run.metrics())
    assert run.latest is not None
    weights = load_weights(run.latest)
    assert {name.partition(".")[0] for name in born if not torch.equal(born[name], weights[name])} == {
        "actors",
        "critic",
    }
    training = load_training(run.latest)
    assert [state["first_row"] for state in training["samplers"]] == [0, 2]
    # A row is a whole team, whoever samples it.
    assert [tuple(sample.segment.rewards.shape) for sample in samples] == [(2, 8, 2)] * 2


def test_several_learners_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"num_learners=2: .*use 0 or 1"):
        train(TINY, tmp_path / "run", ray=RayOptions(num_env_runners=1, num_learners=2))
    assert not (tmp_path / "run").exists()


def test_rllibs_own_checkpoints_hold_the_learner(tmp_path, assert_equal):
    config = SegmentGAMATRConfig().segments(
        team_env=CLIPPED.env.make_teams,
        num_envs=4,
        segment_length=8,
        policy=CLIPPED.policy,
        gamatr=CLIPPED.learner,
    )
    algorithm: Any = config.build_algo()
    algorithm.train()
    expected = algorithm.last_update.parts
    path = algorithm.save_to_path(tmp_path / "checkpoint")
    algorithm.stop()
    restored: Any = SegmentGAMATR.from_checkpoint(path)
    assert_equal(restored._call_learners(lambda learner: learner.get_parts())[0], expected)
    restored.train()
    after = restored.last_update.parts
    restored.stop()
    for name, state in expected["learner"]["actor_optimizer"]["state"].items():
        assert after["learner"]["actor_optimizer"]["state"][name]["step"] == 2 * state["step"]
