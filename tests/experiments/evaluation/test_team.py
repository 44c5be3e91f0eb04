"""Evaluation of teams: each row plays its share, and episodes are in the order of rows."""

import dataclasses

import numpy as np
import pytest
import torch

from scrubjay.experiments.evaluation.team import PolicyActor, TeamScores, evaluate_team, list_rules
from scrubjay.experiments.tasks.teams import TeamEnvConfig

ENV = TeamEnvConfig(kwargs={"num_users": 4, "max_steps": 6}, num_envs=4)


def test_judging_does_not_depend_on_how_many_rows_play():
    follow = list_rules(ENV)["follow"](0)
    few, many = (evaluate_team(follow, ENV, episodes, seed=3) for episodes in (2, 5))
    np.testing.assert_allclose(few.returns, many.returns[:2], rtol=1e-6)
    with pytest.raises(ValueError, match="episodes=0"):
        evaluate_team(follow, ENV, 0)


def test_episodes_are_in_the_order_of_rows_however_long_they_are():
    env = dataclasses.replace(ENV, kwargs={"num_users": 4, "max_steps": 30, "drop_probability": 0.2})
    scores = evaluate_team(list_rules(env)["follow"](0), env, 3, seed=3)
    alone = [evaluate_team(list_rules(env)["follow"](0), env, 1, seed=3 + row) for row in range(3)]
    assert list(scores.lengths) == [int(one.lengths[0]) for one in alone]
    assert sorted(scores.lengths) != list(scores.lengths)


def test_an_episode_that_does_not_end_is_no_score():
    with pytest.raises(ValueError, match="did not end within 5 steps"):
        evaluate_team(list_rules(ENV)["follow"](0), ENV, 2, max_steps=5)
    assert list(evaluate_team(list_rules(ENV)["follow"](0), ENV, 2, max_steps=6).lengths) == [6, 6]


def test_a_summary_sums_over_agents_and_averages_what_was_measured():
    returns = np.array([[1.0, 2.0], [3.0, 6.0]])
    scores = TeamScores(returns, np.array([4, 6]), {"jain": np.array([0.25, 0.75])})
    summary = scores.summary()
    assert (summary["episodic_return"], summary["episodic_length"], summary["jain"]) == (6.0, 5.0, 0.5)
    assert summary["episodic_return_low"] < 6 < summary["episodic_return_high"]


def test_a_policy_begins_anew_where_an_episode_does():
    """What an actor remembers of the last episode does not reach into the next."""

    class Remembering:
        def act(self, observations, alive, state, start, deterministic):
            calls.append((state, start.tolist(), deterministic))
            return "actions", (state or 0) + 1

    calls = []
    actor = PolicyActor(Remembering(), deterministic=False)  # pyright: ignore[reportArgumentType]
    for start in ([True], [False], [True]):
        assert actor(None, {}, np.ones((1, 2)), np.array(start)) == "actions"
    assert calls == [(None, [True], False), (1, [False], False), (2, [True], False)]


def test_judging_leaves_no_trace():
    before = torch.get_rng_state()
    first, again = (evaluate_team(list_rules(ENV)["random"](5), ENV, 3, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first.returns, again.returns)
    assert torch.equal(before, torch.get_rng_state())
