"""Environments are distributed among env runners and learners, or the config raises an error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents import GAMATRConfig, PPOConfig, TeamPolicyConfig
from scrubjay.agents.rllib import (
    MemoryModule,
    SegmentConfig,
    SegmentGAMATRConfig,
    SegmentPPOConfig,
    TeamModule,
)
from scrubjay.experiments import EnvConfig


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
    config = SegmentPPOConfig().segments(vector_env=EnvConfig().make_vector, num_envs=2)
    with pytest.raises(ValueError, match="num_env_runners=3 is more than num_envs=2"):
        config.copy().env_runners(num_env_runners=3).validate()
    with pytest.raises(ValueError, match="num_learners=3 is more than num_envs=2"):
        config.copy().learners(num_learners=3).validate()


def test_what_is_given_says_who_learns_and_in_what_module():
    assert SegmentConfig().module_class is MemoryModule
    assert SegmentConfig().learner == SegmentPPOConfig().ppo == PPOConfig()
    team = SegmentConfig().segments(policy=TeamPolicyConfig(), learner=GAMATRConfig(minibatches=3))
    assert team.module_class is SegmentGAMATRConfig().module_class is TeamModule
    assert team.min_rows == 3
    with pytest.raises(ValueError, match=r"envs is not set; call segments\(envs=\.\.\.\)"):
        team.validate()


def test_an_environment_is_needed():
    with pytest.raises(ValueError, match="vector_env is not set"):
        SegmentPPOConfig().validate()
    with pytest.raises(ValueError, match="team_env is not set"):
        SegmentGAMATRConfig().validate()
