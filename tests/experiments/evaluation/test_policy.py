"""Evaluation of one agent: whole episodes, fairly shared, with intervals by hand."""

import numpy as np
import pytest
import torch

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.experiments import EnvConfig, evaluate
from scrubjay.experiments.evaluation.policy import MAX_ENVS, EpisodeScores, split_episodes
from scrubjay.memory import make_config


def test_evaluation_is_reproducible_fair_and_leaves_no_trace(finished_run):
    policy = finished_run.policy
    before = torch.get_rng_state()
    first, again = (evaluate(policy, finished_run.config.env, 70, seed=4) for _ in range(2))
    assert first == again
    assert torch.equal(before, torch.get_rng_state())
    assert len(first.returns) == len(first.lengths) == len(first.successes) == 70
    longer = EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 9})
    assert max(evaluate(policy, longer, 5).lengths) <= 10
    assert evaluate(policy, longer, 40, seed=1, deterministic=False) != evaluate(policy, longer, 40, seed=1)
    with pytest.raises(ValueError, match="episodes=0"):
        evaluate(policy, longer, 0)


@pytest.mark.parametrize("name", ["hcam", "landmark", "gru"])
def test_what_is_played_is_what_the_policy_does_by_single_acts(name):
    """By steps in place, though, which are quicker."""
    env = EnvConfig("scrubjay/RepeatPrevious-v0", {"k": 2}, num_envs=3)
    envs = env.make_vector(3)
    policy = PolicyConfig(memory=make_config(name, dim=16)).build(Spaces.from_env(envs)).eval()
    observations, _ = envs.reset(seed=5)
    state, returns, over = None, np.zeros(3), False
    while not over:  # all episodes of the task are of one length
        actions, state = policy.act(observations, state)
        observations, rewards, terminated, _, _ = envs.step(actions)
        returns += rewards
        over = terminated.all()
    envs.close()
    assert evaluate(policy, env, 3, seed=5).returns == pytest.approx(returns)


def test_reaching_a_choice_is_told_apart_from_choosing_right(finished_run):
    short = EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 2})
    scores = evaluate(finished_run.policy, short, 200, deterministic=False)
    arrivals, successes = scores.measures["reached"], scores.successes
    assert all(arrival >= success for arrival, success in zip(arrivals, successes, strict=True))
    # A right choice pays 1. A wrong choice after an arrival without delay pays 0.
    wrong = [arrival - success for arrival, success in zip(arrivals, successes, strict=True)]
    assert 0 < sum(wrong) < 200
    assert scores.summary()["reached"] == sum(arrivals) / 200
    assert "reached" not in EpisodeScores((0.0,), (1,), ()).summary()


def test_evaluation_summary_by_hand():
    summary = EpisodeScores((1.0, 0.0, 1.0, 0.0), (2, 4, 4, 2), (1.0, 0.0, 1.0, 0.0)).summary()
    assert summary["episodic_return"] == summary["success"] == 0.5
    assert summary["episodic_length"] == 3
    assert summary["success_low"] + summary["success_high"] == pytest.approx(1)
    summary = EpisodeScores((0.0, 0.0), (1, 1), (0.25, 0.75)).summary()
    assert summary["success"] == 0.5
    assert "success" not in EpisodeScores((0.0,), (1,), ()).summary()


@pytest.mark.parametrize("episodes", [1, MAX_ENVS - 1, MAX_ENVS, MAX_ENVS + 1, 3 * MAX_ENVS + 5])
def test_episodes_are_shared_out_evenly_to_the_last(episodes):
    shares = split_episodes(episodes)
    assert sum(shares) == episodes
    assert len(shares) == min(episodes, MAX_ENVS)
    assert shares == sorted(shares, reverse=True)
    assert shares[0] - shares[-1] <= 1


def test_the_policy_goes_on_training_and_what_never_ends_is_said(finished_run):
    policy = finished_run.policy
    endless = EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 50})
    try:
        policy.train()
        with pytest.raises(ValueError, match="no episode ended within 3 steps"):
            evaluate(policy, endless, 2, max_steps=3)
        assert policy.training
    finally:
        policy.eval()


def test_success_that_is_yes_or_no_has_an_interval_within_it():
    always = EpisodeScores((1.0,) * 20, (1,) * 20, (1.0,) * 20).summary()
    assert 0.8 < always["success_low"] < always["success_high"] <= 1
    assert always["episodic_return_low"] == always["episodic_return_high"] == 1
