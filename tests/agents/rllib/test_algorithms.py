"""SegmentPPO and SegmentGAMATR: samplers, learners and validation of configs."""

from __future__ import annotations

import pytest
import torch

from scrubjay.agents import GAMATRConfig, PPOConfig
from scrubjay.agents.rl.learner import SingleProcess
from scrubjay.agents.rllib import SegmentGAMATRConfig

from .configs import ppo_config, team_config


def test_an_update_needs_a_row_for_every_minibatch_and_learner():
    config = ppo_config()
    assert config.min_rows == 2
    assert config.copy().learners(num_learners=3).min_rows == 3
    too_many = config.copy().segments(ppo=PPOConfig(num_minibatches=5))
    with pytest.raises(ValueError, match="num_envs=4: must be at least 5, one for each minibatch"):
        too_many.validate()


def test_samplers_of_one_seed_see_the_same_and_of_two_do_not():
    config = ppo_config()
    envs = config.make_envs(4)
    policy = config.make_policy(envs)
    segments = [config.make_sampler(envs, policy, seed).collect() for seed in (5, 5, 6)]
    assert segments[0].num_steps == 4 * 8
    assert torch.equal(segments[0].actions, segments[1].actions)
    assert not torch.equal(segments[0].actions, segments[2].actions)
    envs.close()


def test_learners_draw_minibatches_by_the_seed_of_the_config():
    results = []
    for seed in (3, 3, 4):
        config = ppo_config().segments(minibatch_seed=seed)
        envs = config.make_envs(4)
        torch.manual_seed(0)
        policy = config.make_policy(envs)
        segment = config.make_sampler(envs, policy, 0).collect()
        config.make_learner(policy, SingleProcess()).update(segment)
        results.append(torch.cat([part.flatten() for part in policy.parameters()]).detach())
        envs.close()
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_more_minibatches_than_rows_are_refused_by_name():
    with pytest.raises(ValueError, match="num_envs=3: must be at least 4, one for each minibatch"):
        SegmentGAMATRConfig().segments(num_envs=3, gamatr=GAMATRConfig(minibatches=4)).validate()


def test_several_learners_of_a_trust_region_are_refused():
    with pytest.raises(ValueError, match=r"num_learners=2: .* use 0 \(in the driver process\) or 1"):
        team_config().learners(num_learners=2).validate()
    for number in (0, 1):
        team_config().learners(num_learners=number).validate()
