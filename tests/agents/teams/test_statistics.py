"""Normalized observations of teams: living agents only, consistent segments, and best responses."""

from __future__ import annotations

import pytest
import torch

from scrubjay.agents import GAMATR, GAMATRConfig, TeamPolicy, TeamSampler
from scrubjay.agents.teams.best_response import best_response, separate

from .games import climbing, play
from .games import make_policy as make_player
from .test_best_response import CONFIG, LENGTH, make_env, make_policy


def statistics(policy: TeamPolicy) -> list[torch.Tensor]:
    assert policy.normalizer is not None
    return [value.clone() for value in policy.normalizer.state_dict().values()]


@pytest.mark.parametrize("mode", ["sequential", "clip"])
@pytest.mark.parametrize("memory", ["gru", "none"])
def test_segments_agree_with_the_policy_that_sampled_them(mode: str, memory: str) -> None:
    policy = make_player(agents=3, memory=memory, normalize_observations=True)
    learner = GAMATR(policy, GAMATRConfig(mode=mode, critic_epochs=1, epochs=1))
    alive = torch.rand(64, 4, 3, generator=torch.Generator().manual_seed(0)) < 0.6
    for seed in range(3):
        segment = play(policy, climbing, alive=alive, seed=seed)
        log_probs = policy.distribution(segment).log_prob(segment.actions)
        torch.testing.assert_close(log_probs[alive], segment.log_probs[alive], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(policy.values(segment)[alive], segment.values[alive], atol=1e-5, rtol=1e-5)
        before = statistics(policy)
        segment.observations = segment.observations * 3 + 1  # pyright: ignore[reportOperatorIssue]
        segment.observations[~alive] = torch.nan
        learner.update(segment)
        assert not torch.equal(before[0], statistics(policy)[0])
    torch.testing.assert_close(
        statistics(policy)[2], torch.full((3,), 3.0 * int(alive.sum()) + 1e-4, dtype=torch.float64)
    )


def test_a_sampled_segment_of_teams_is_consistent_after_updates() -> None:
    policy = make_policy(normalize_observations=True)
    sampler, learner = TeamSampler(make_env(), policy, LENGTH, seed=3), GAMATR(policy, CONFIG)
    for _ in range(2):
        segment = sampler.collect()
        log_probs = policy.distribution(segment).log_prob(segment.actions)
        torch.testing.assert_close(log_probs, segment.log_probs, atol=1e-4, rtol=1e-4)
        learner.update(segment)


def test_a_best_response_keeps_the_statistics_of_the_team() -> None:
    policy = make_policy(normalize_observations=True)
    GAMATR(policy, CONFIG).update(TeamSampler(make_env(), policy, LENGTH, seed=3).collect())
    expected = statistics(policy)
    assert all(map(torch.equal, statistics(separate(policy)), expected))
    schedule = GAMATRConfig(
        mode="clip", critic_epochs=1, minibatches=2, clip_end=0.1, entropy_end=0.01, anneal_steps=99
    )
    team = best_response(policy, 1, make_env, schedule, 32, LENGTH)
    assert all(map(torch.equal, statistics(team), expected))


def test_a_saved_team_has_its_statistics(tmp_path) -> None:
    policy = make_policy(normalize_observations=True)
    GAMATR(policy, CONFIG).update(TeamSampler(make_env(), policy, LENGTH, seed=3).collect())
    policy.save_pretrained(tmp_path)
    assert all(map(torch.equal, statistics(TeamPolicy.from_pretrained(tmp_path)), statistics(policy)))
