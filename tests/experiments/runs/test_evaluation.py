"""Evaluation of one agent: whole episodes, fairly shared, with intervals by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.rollout import ActorInput
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.agents.teams.policy import TeamPolicyStep
from scrubjay.agents.teams.sampler import TeamPolicyActor
from scrubjay.experiments import EnvConfig, evaluate
from scrubjay.experiments.runs.evaluation import (
    MAX_ENVS,
    EpisodeScores,
    evaluate_team,
    split_episodes,
)
from scrubjay.experiments.tasks.teams import TeamEnvConfig, find_known_team
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
    envs = env.make_batch(3)
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


def test_the_interval_of_a_share_lies_between_0_and_1():
    summary = EpisodeScores((1.0,) * 4, (1,) * 4, (1.0, 1.0, 1.0, 0.9)).summary()
    assert (summary["success"], summary["success_high"]) == (0.975, 1.0)
    assert 0.9 < summary["success_low"] < 0.975


def test_success_that_is_yes_or_no_has_an_interval_within_it():
    always = EpisodeScores((1.0,) * 20, (1,) * 20, (1.0,) * 20).summary()
    assert 0.8 < always["success_low"] < always["success_high"] <= 1
    assert always["episodic_return_low"] == always["episodic_return_high"] == 1


ENV = TeamEnvConfig(kwargs={"num_users": 4, "max_steps": 6}, num_envs=4)


def make_rule(name, seed):
    return find_known_team(ENV.id).rules()[name](seed)


def test_judging_does_not_depend_on_how_many_rows_play():
    follow = make_rule("follow", 0)
    few, many = (evaluate_team(follow, ENV, episodes, seed=3) for episodes in (2, 5))
    np.testing.assert_allclose(few.returns, many.returns[:2], rtol=1e-6)
    with pytest.raises(ValueError, match="episodes=0"):
        evaluate_team(follow, ENV, 0)


def test_episodes_are_in_the_order_of_rows_however_long_they_are():
    env = dataclasses.replace(ENV, kwargs={"num_users": 4, "max_steps": 30, "drop_probability": 0.2})
    scores = evaluate_team(make_rule("follow", 0), env, 3, seed=3)
    alone = [evaluate_team(make_rule("follow", 0), env, 1, seed=3 + row) for row in range(3)]
    assert list(scores.lengths) == [int(one.lengths[0]) for one in alone]
    assert sorted(scores.lengths) != list(scores.lengths)


def test_an_episode_that_does_not_end_is_no_score():
    with pytest.raises(ValueError, match="did not end within 5 steps"):
        evaluate_team(make_rule("follow", 0), ENV, 2, max_steps=5)
    assert list(evaluate_team(make_rule("follow", 0), ENV, 2, max_steps=6).lengths) == [
        6,
        6,
    ]


def test_a_summary_sums_over_agents_and_averages_what_was_measured():
    returns = np.array([[1.0, 2.0], [3.0, 6.0]])
    scores = EpisodeScores(returns, (4, 6), measures={"jain": (0.25, 0.75)})
    summary = scores.summary()
    assert (summary["episodic_return"], summary["episodic_length"], summary["jain"]) == (6.0, 5.0, 0.5)
    assert summary["episodic_return_low"] < 6 < summary["episodic_return_high"]


def test_a_policy_begins_anew_where_an_episode_does():
    """What an actor remembers of the last episode does not reach into the next."""

    class Remembering:
        device = torch.device("cpu")
        spaces = Spaces(Box(0, 1, (1,)), Box(0, 1, (1,)), 2)
        env_actions = staticmethod(lambda action: action)

        def initial_state(self, rows):
            return rows

        def step(self, observation, alive, state, start, generator, deterministic, estimates_values):
            assert not estimates_values, "an evaluation needs no values"
            calls.append((state, None if start is None else start.tolist(), deterministic))
            return TeamPolicyStep("actions", None, None, state + 1)  # pyright: ignore[reportArgumentType]

    calls = []
    actor = TeamPolicyActor(Remembering(), deterministic=False)  # pyright: ignore[reportArgumentType]
    for start in ([True], [False], [True]):
        inputs = ActorInput({"": np.zeros((1, 2, 1))}, np.array(start), np.ones((1, 2), bool))
        assert actor.act(inputs).actions == "actions"
    assert calls == [(1, [True], False), (2, None, False), (3, [True], False)]


def test_judging_leaves_no_trace():
    before = torch.get_rng_state()
    first, again = (evaluate_team(make_rule("random", 5), ENV, 3, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first.returns, again.returns)
    assert torch.equal(before, torch.get_rng_state())


FLOCK = """
from scrubjay.envs import uav
from scrubjay.envs.teams import ParallelTeams

parallel_env = uav.parallel_env

class Teams(ParallelTeams):
    def step(self, actions):
        step = super().step(actions)
        return step._replace(infos={"is_success": step.dones * [1.0, *[0.0] * (self.num_envs - 1)]})

def teams(num_envs, **kwargs):
    return Teams(lambda: parallel_env(**kwargs), num_envs)
"""


def test_the_success_of_a_users_team_is_a_rate_over_episodes(tmp_path, monkeypatch):
    """The first environment succeeds in the last step of its episode, all others fail."""
    (tmp_path / "flock.py").write_text(FLOCK)
    monkeypatch.syspath_prepend(str(tmp_path))
    env = dataclasses.replace(ENV, id="flock:parallel_env")

    def stay(env, observations, alive, start):
        return np.zeros((*alive.shape, 3), dtype=np.int64)

    scores = evaluate_team(stay, env, 4)
    assert scores.successes == (1.0, 0.0, 0.0, 0.0)
    assert scores.summary()["success"] == 0.25
    assert scores.measures == {}
