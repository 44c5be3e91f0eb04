"""RLlib's learner makes the updates of scrubjay's learners."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from ray.rllib.core.learner.training_data import TrainingData

from scrubjay.agents.rl.spaces import Spaces
from scrubjay.agents.rllib.runner import SegmentRunner
from scrubjay.experiments import EnvConfig

from .configs import ppo_config, team_config

pytestmark = pytest.mark.requires("mpe2")


@pytest.mark.one_in(4, rest="slow")
@pytest.mark.parametrize(
    "config",
    [
        ppo_config(),
        ppo_config("hcam"),
        ppo_config(separate_critic=True, normalize_observations=True),
        ppo_config().segments(envs=EnvConfig("Taxi-v3").make_batch),
        team_config(),
        team_config(shared=False),
        team_config("clip"),
    ],
    ids=[
        "ppo",
        "ppo-in-place",
        "ppo-separate-normalized",
        "ppo-masks",
        "gamatr",
        "gamatr-separate",
        "gamatr-clip",
    ],
)
def test_rllibs_learner_makes_the_update_that_ours_makes(config, assert_equal):
    """Metrics, weights and learner states are equal bit for bit, with pickled configs and segments."""
    runner = SegmentRunner(config=pickle.loads(pickle.dumps(config)), worker_index=0)
    policy = config.policy.build(Spaces.from_env(runner.envs))
    learner = config.build_learner(spaces=runner.get_spaces())
    local: Any = config.learner.build(policy, seed=3)
    learner.set_parts({"policy": policy.state_dict(), "learner": None})
    initial_weights = {name: value.clone() for name, value in policy.state_dict().items()}
    for _ in range(2):
        segment: Any = runner.sample(policy.state_dict()).segment
        expected = local.update(segment)
        rows = torch.arange(4)
        sent_segment = pickle.loads(
            pickle.dumps(type(segment).cat([segment.rows(rows[:3]), segment.rows(rows[3:])]))
        )
        answer = learner.update(training_data=TrainingData(batch=sent_segment), return_state=True)
        assert_equal(answer["metrics"], expected)
        assert_equal(answer["parts"]["policy"], dict(policy.state_dict()))
        assert_equal(answer["parts"]["learner"], local.get_state())
    runner.stop()
    assert any(not torch.equal(value, initial_weights[name]) for name, value in policy.state_dict().items())
