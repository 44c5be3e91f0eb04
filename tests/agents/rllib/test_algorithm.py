"""The parts in RLlib's hands, where no cluster is needed to see what they do."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from mpe2 import simple_spread_v3
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.training_data import TrainingData

from scrubjay.agents import PPO, PolicyConfig, PPOConfig, TeamPolicyConfig
from scrubjay.agents.rllib import (
    MemoryModule,
    SegmentGAMATR,
    SegmentGAMATRConfig,
    SegmentPPO,
    SegmentPPOConfig,
    TeamModule,
)
from scrubjay.agents.rllib.runner import SegmentRunner
from scrubjay.agents.teams.gamatr import GAMATR, GAMATRConfig
from scrubjay.envs.teams import ParallelTeams
from scrubjay.experiments import EnvConfig
from scrubjay.memory import list_memories, make_config

BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)


@given(num_envs=st.integers(1, 100), num_runners=st.integers(1, 100))
def test_every_row_belongs_to_one_runner_and_shares_are_even(num_envs, num_runners):
    config = SegmentPPOConfig().segments(num_envs=num_envs).env_runners(num_env_runners=num_runners)
    shares = [config.rows_of(index) for index in range(1, num_runners + 1)]
    rows = [row for first, count in shares for row in range(first, first + count)]
    assert rows == list(range(num_envs))
    counts = [count for _, count in shares]
    assert max(counts) - min(counts) <= 1
    assert config.rows_of(0) == (0, num_envs)


def test_more_processes_than_rows_are_refused_by_name():
    config = SegmentPPOConfig().segments(vector_env=EnvConfig().make_vector, num_envs=2)
    with pytest.raises(ValueError, match="num_env_runners=3 is more than num_envs=2"):
        config.copy().env_runners(num_env_runners=3).validate()
    with pytest.raises(ValueError, match="num_learners=3 is more than num_envs=2"):
        config.copy().learners(num_learners=3).validate()


def test_more_minibatches_than_rows_are_refused_by_name():
    with pytest.raises(ValueError, match="num_envs=3: an update takes at least 4 rows"):
        SegmentGAMATRConfig().segments(num_envs=3, gamatr=GAMATRConfig(minibatches=4)).validate()


def test_an_environment_is_needed():
    with pytest.raises(ValueError, match="vector_env is not set"):
        SegmentPPOConfig().validate()
    with pytest.raises(ValueError, match="team_env is not set"):
        SegmentGAMATRConfig().validate()


def make_teams(num_envs):
    return ParallelTeams(lambda: simple_spread_v3.parallel_env(N=3, max_cycles=5), num_envs)


def ppo_config():
    return SegmentPPOConfig().segments(
        vector_env=EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 2}).make_vector,
        num_envs=4,
        segment_length=8,
        policy=PolicyConfig(memory=make_config("gru", dim=16)),
        ppo=PPOConfig(num_minibatches=2),
        minibatch_seed=3,
    )


def team_config(mode: Any = "sequential", shared=True):
    return SegmentGAMATRConfig().segments(
        team_env=make_teams,
        num_envs=4,
        segment_length=8,
        policy=TeamPolicyConfig(memory=make_config("gru", dim=16), graph_rounds=1, shared=shared),
        gamatr=GAMATRConfig(mode=mode, minibatches=2),
        learner_seed=3,
    )


def ours(config, policy) -> Any:
    if isinstance(config, SegmentPPOConfig):
        return PPO(policy, config.ppo, seed=3)
    return GAMATR(policy, config.gamatr, seed=3)


@pytest.mark.parametrize(
    "config",
    [ppo_config(), team_config(), team_config(shared=False), team_config("clip")],
    ids=["ppo", "gamatr", "gamatr-separate", "gamatr-clip"],
)
def test_rllibs_learner_makes_the_update_that_ours_makes(config, assert_equal):
    """Bit for bit, whole batches and what is remembered of them included, after a way through processes."""
    runner = SegmentRunner(config=pickle.loads(pickle.dumps(config)), worker_index=0)
    policy = config.make_policy(runner.envs)
    learner = config.build_learner(spaces=runner.get_spaces())
    local = ours(config, policy)
    learner.set_parts({"policy": policy.state_dict(), "learner": None})
    born = {name: value.clone() for name, value in policy.state_dict().items()}
    for _ in range(2):
        segment: Any = runner.sample(policy.state_dict()).segment
        expected = local.update(segment)
        rows = torch.arange(4)
        sent = pickle.loads(pickle.dumps(type(segment).cat([segment.rows(rows[:3]), segment.rows(rows[3:])])))
        answer = learner.update(training_data=TrainingData(batch=sent), return_state=True)
        assert_equal(answer["metrics"], expected)
        assert_equal(answer["parts"]["policy"], dict(policy.state_dict()))
        assert_equal(answer["parts"]["learner"], local.get_state())
    runner.stop()
    assert any(not torch.equal(value, born[name]) for name, value in policy.state_dict().items())


def test_several_learners_of_a_trust_region_are_refused():
    with pytest.raises(ValueError, match=r"num_learners=2: .* use 0, in the driver, or 1"):
        team_config().learners(num_learners=2).validate()
    for number in (0, 1):
        team_config().learners(num_learners=number).validate()


@pytest.mark.parametrize(
    ("algorithm", "config"), [(SegmentPPO, ppo_config()), (SegmentGAMATR, team_config())]
)
def test_configs_name_their_algorithm_and_keep_what_is_not_given(algorithm, config):
    assert config.algo_class is algorithm
    assert type(algorithm.get_default_config()) is type(config)
    changed = config.copy().segments(num_envs=7)
    assert (changed.num_envs, changed.segment_length, changed.policy) == (7, 8, config.policy)


def module(memory="gru", action_space=None):
    torch.manual_seed(0)
    return MemoryModule(
        observation_space=BOX,
        action_space=action_space or spaces.Discrete(4),
        model_config={"policy": PolicyConfig(memory=make_config(memory, dim=16)), "max_seq_len": 8},
    )


@pytest.mark.parametrize("memory", [name for name in list_memories() if name != "none"])
def test_module_steps_as_it_learns(memory):
    """What RLlib samples step by step, with the state it was handed, is what it later trains on at once."""
    one = module(memory)
    observations = torch.rand(2, 9, 3) * 2 - 1
    born = {
        name: torch.as_tensor(value).expand(2, *value.shape)
        for name, value in one.get_initial_state().items()
    }
    whole = one.forward_train({Columns.OBS: observations, Columns.STATE_IN: born})
    state, logits = born, []
    for step in range(9):
        out = one.forward_exploration(
            {Columns.OBS: observations[:, step : step + 1], Columns.STATE_IN: state}
        )
        state = out[Columns.STATE_OUT]
        logits.append(out[Columns.ACTION_DIST_INPUTS])
    torch.testing.assert_close(
        torch.cat(logits, dim=1), whole[Columns.ACTION_DIST_INPUTS], rtol=1e-4, atol=1e-5
    )
    values = one.compute_values({Columns.OBS: observations, Columns.STATE_IN: born})
    assert values.shape == (2, 9)
    torch.testing.assert_close(
        values, one.compute_values({}, embeddings=whole[Columns.EMBEDDINGS]), rtol=1e-4, atol=1e-5
    )
    assert one.is_stateful()


def test_a_module_that_remembers_nothing_has_no_time_axis():
    one = module("none")
    assert not one.is_stateful()
    out = one.forward_train({Columns.OBS: torch.zeros(5, 3)})
    assert out[Columns.ACTION_DIST_INPUTS].shape == (5, 4)
    assert one.compute_values({Columns.OBS: torch.zeros(5, 3)}).shape == (5,)


@pytest.mark.parametrize(
    ("space", "numbers"),
    [(spaces.Discrete(4), 4), (spaces.MultiDiscrete([3, 2]), 6), (spaces.Box(-1, 1, (2,), np.float32), 4)],
)
def test_rllib_draws_from_the_policy_it_is_given(space, numbers):
    one = module(action_space=space)
    state = {name: torch.as_tensor(value)[None] for name, value in one.get_initial_state().items()}
    out = one.forward_inference({Columns.OBS: torch.zeros(1, 1, 3), Columns.STATE_IN: state})
    inputs = out[Columns.ACTION_DIST_INPUTS]
    assert inputs.shape == (1, 1, numbers)
    drawn = one.get_exploration_action_dist_cls().from_logits(inputs[:, 0])
    features = out[Columns.EMBEDDINGS][:, 0]
    ours = one.policy.actor(features)
    action = ours.mode()
    torch.testing.assert_close(drawn.logp(action), ours.log_prob(action), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_built_is_refused_by_name():
    with pytest.raises(TypeError, match=r"model_config\['policy'\] is 'gru': expected a PolicyConfig"):
        MemoryModule(observation_space=BOX, action_space=BOX, model_config={"policy": "gru"})
    with pytest.raises(TypeError, match="expected a TeamPolicyConfig"):
        TeamModule(observation_space=BOX, action_space=BOX, model_config={"policy": PolicyConfig()})
    with pytest.raises(TypeError, match="expected tuples with one part per agent"):
        TeamModule(observation_space=BOX, action_space=BOX, model_config={"policy": TeamPolicyConfig()})
    for space in (spaces.MultiBinary(2), spaces.Discrete(3, start=1)):
        with pytest.raises(TypeError, match="RLlib has no distribution"):
            module(action_space=space)
