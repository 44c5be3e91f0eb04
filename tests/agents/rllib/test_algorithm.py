"""RLlib algorithms and configs, without a cluster."""

from __future__ import annotations

import pytest

from scrubjay.agents.rllib import SegmentConfig, SegmentGAMATR, SegmentPPO, SegmentTraining

from .configs import ppo_config, team_config

pytestmark = pytest.mark.requires("mpe2")


@pytest.mark.parametrize(
    ("algorithm", "config"),
    [
        (SegmentPPO, ppo_config()),
        (SegmentGAMATR, team_config()),
        (SegmentTraining, SegmentConfig().segments(segment_length=8)),
    ],
)
def test_configs_name_their_algorithm_and_keep_what_is_not_given(algorithm, config):
    assert config.algo_class is algorithm
    assert type(algorithm.get_default_config()) is type(config)
    new_config = config.copy().segments(num_envs=7)
    assert (new_config.num_envs, new_config.segment_length, new_config.policy) == (7, 8, config.policy)
