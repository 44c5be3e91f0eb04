"""Distribution of environments among env runners and learners, seeds, and validation of configs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents import GAMATRConfig, PPOConfig, TeamPolicyConfig
from scrubjay.agents.rl.learner import SingleProcess
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.agents.rllib import (
    SegmentConfig,
    SegmentGAMATRConfig,
    SegmentPPOConfig,
    TeamModule,
)
from scrubjay.agents.rllib.module import SegmentModule
from scrubjay.agents.teams.sampler import make_sampler
from scrubjay.experiments import EnvConfig

from .configs import ppo_config, team_config

pytestmark = pytest.mark.requires("mpe2")


@given(num_envs=st.integers(1, 100), num_runners=st.integers(1, 100))
def test_every_row_belongs_to_one_runner_and_shares_are_even(num_envs, num_runners):
    config = SegmentPPOConfig().segments(num_envs=num_envs).env_runners(num_env_runners=num_runners)
    shares = [config.get_row_range(index) for index in range(1, num_runners + 1)]
    rows = [row for first, count in shares for row in range(first, first + count)]
    assert rows == list(range(num_envs))
    counts = [count for _, count in shares]
    assert max(counts) - min(counts) <= 1
    assert config.get_row_range(0) == (0, num_envs)


def test_more_processes_than_rows_are_refused_by_name():
    config = SegmentPPOConfig().segments(envs=EnvConfig().make_batch, num_envs=2)
    with pytest.raises(ValueError, match="num_env_runners=3 is more than num_envs=2"):
        config.copy().env_runners(num_env_runners=3).validate()
    with pytest.raises(ValueError, match="num_learners=3 is more than num_envs=2"):
        config.copy().learners(num_learners=3).validate()


def test_what_is_given_says_who_learns_and_in_what_module():
    def module_of(config):
        return config.get_default_rl_module_spec().module_class

    assert module_of(SegmentConfig()) is SegmentModule
    assert SegmentConfig().learner == SegmentPPOConfig().learner == PPOConfig()
    team = SegmentConfig().segments(policy=TeamPolicyConfig(), learner=GAMATRConfig(minibatches=3))
    assert module_of(team) is module_of(SegmentGAMATRConfig()) is TeamModule
    assert team.min_rows == 3
    with pytest.raises(ValueError, match=r"envs is not set; call segments\(envs=\.\.\.\)"):
        team.validate()


def test_an_environment_is_needed():
    with pytest.raises(ValueError, match="envs is not set"):
        SegmentPPOConfig().validate()
    with pytest.raises(ValueError, match="envs is not set"):
        SegmentGAMATRConfig().validate()


def test_an_update_needs_a_row_for_every_minibatch_and_learner():
    config = ppo_config()
    assert config.min_rows == 2
    assert config.copy().learners(num_learners=3).min_rows == 3
    too_many = config.copy().segments(learner=PPOConfig(num_minibatches=5))
    with pytest.raises(ValueError, match="num_envs=4: must be at least 5, one for each minibatch"):
        too_many.validate()


def test_samplers_of_one_seed_see_the_same_and_of_two_do_not():
    config = ppo_config()
    assert config.envs is not None
    envs = config.envs(4)
    policy = config.policy.build(Spaces.from_env(envs))
    segments = [make_sampler(envs, policy, 8, seed).collect() for seed in (5, 5, 6)]
    assert segments[0].num_steps == 4 * 8
    assert torch.equal(segments[0].actions, segments[1].actions)
    assert not torch.equal(segments[0].actions, segments[2].actions)
    envs.close()


def test_learners_draw_minibatches_by_the_seed_of_the_config():
    results = []
    for seed in (3, 3, 4):
        config = ppo_config().segments(learner_seed=seed)
        assert config.envs is not None
        envs = config.envs(4)
        torch.manual_seed(0)
        policy = config.policy.build(Spaces.from_env(envs))
        segment = make_sampler(envs, policy, 8).collect()
        config.learner.build(policy, config.learner_seed, SingleProcess()).update(segment)
        results.append(torch.cat([part.flatten() for part in policy.parameters()]).detach())
        envs.close()
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_more_minibatches_than_rows_are_refused_by_name():
    with pytest.raises(ValueError, match="num_envs=3: must be at least 4, one for each minibatch"):
        SegmentGAMATRConfig().segments(num_envs=3, learner=GAMATRConfig(minibatches=4)).validate()


def test_several_learners_of_a_trust_region_are_refused():
    with pytest.raises(ValueError, match=r"num_learners=2: .* use 0 \(in the driver process\) or 1"):
        team_config().learners(num_learners=2).validate()
    for number in (0, 1):
        team_config().learners(num_learners=number).validate()
