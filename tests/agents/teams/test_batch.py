"""Advantages per agent, and weights of agents that are alive."""

from __future__ import annotations

import torch

from scrubjay.agents import GAMATR, GAMATRConfig, TeamSegment, generalized_advantage
from scrubjay.agents.teams.batch import normalize_advantages, team_advantages

from .games import climbing, make_policy, play


def test_advantages_are_each_agents_own_and_end_with_it() -> None:
    torch.manual_seed(0)
    rows, time, agents = 2, 6, 3
    terminated = torch.rand(rows, time, agents) < 0.2
    truncated = torch.rand(rows, time) < 0.2
    segment = TeamSegment(
        observations=torch.zeros(rows, time, agents, 3),
        alive=torch.ones(rows, time, agents, dtype=torch.bool),
        actions=torch.zeros(rows, time, agents, dtype=torch.long),
        log_probs=torch.zeros(rows, time, agents),
        values=torch.randn(rows, time, agents),
        rewards=torch.randn(rows, time, agents),
        starts=torch.zeros(rows, time, dtype=torch.bool),
        terminated=terminated,
        truncated=truncated,
        bootstrap_values=torch.randn(rows, time, agents) * truncated[..., None],
        last_values=torch.randn(rows, agents),
        state={},
    )
    advantages, returns = team_advantages(segment, 0.9, 0.8)
    for agent in range(agents):
        expected = generalized_advantage(
            segment.rewards[..., agent],
            segment.values[..., agent],
            segment.last_values[..., agent],
            segment.bootstrap_values[..., agent],
            terminated[..., agent],
            truncated,
            0.9,
            0.8,
        )
        torch.testing.assert_close(advantages[..., agent], expected[0])
        torch.testing.assert_close(returns[..., agent], expected[1])


def test_normalization_is_over_each_agents_life() -> None:
    values = torch.randn(5, 7, 2) * torch.tensor([1.0, 100.0]) + 3
    weights = (torch.rand(5, 7, 2) < 0.6).float()
    result = normalize_advantages(values, weights)
    for agent in range(2):
        living = result[..., agent][weights[..., agent] > 0]
        torch.testing.assert_close(living.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
        torch.testing.assert_close(living.std(correction=0), torch.tensor(1.0), atol=1e-5, rtol=0)
    assert (result[weights == 0] == 0).all()


def test_team_advantage_is_the_mean_of_the_living() -> None:
    policy = make_policy()
    alive = torch.rand(64, 4, 3, generator=torch.Generator().manual_seed(5)) < 0.7
    segment = play(policy, lambda actions: actions.float(), alive=alive)
    config = GAMATRConfig(advantage="team", normalize_advantage=False)
    team = GAMATR(policy, config).batch(segment).advantages
    own = GAMATR(policy, GAMATRConfig(normalize_advantage=False)).batch(segment).advantages
    for row, t, agent in alive.nonzero()[:20].tolist():
        expected = own[row, t][alive[row, t]].mean()
        torch.testing.assert_close(team[row, t, agent], expected)
    assert (team[~alive] == 0).all()


def test_means_are_over_the_living_and_zero_over_nobody() -> None:
    policy = make_policy()
    alive = torch.rand(64, 4, 3, generator=torch.Generator().manual_seed(5)) < 0.7
    alive[:, :, 2] = False
    batch = GAMATR(policy, GAMATRConfig()).batch(play(policy, climbing, alive=alive))
    values = torch.randn(64, 4, 3)
    torch.testing.assert_close(batch.mean(values), values[alive].mean())
    torch.testing.assert_close(batch.mean(values[:, :, 0], 0), values[:, :, 0][alive[:, :, 0]].mean())
    assert batch.mean(values[:, :, 2], 2) == 0


def test_where_nothing_moved_the_surrogate_is_the_mean_advantage() -> None:
    policy = make_policy()
    batch = GAMATR(policy, GAMATRConfig(normalize_advantage=False)).batch(play(policy, climbing))
    distribution = policy.distribution(batch.segment, 1)
    factor = torch.rand(64, 4)
    plain = batch.surrogate(1)(distribution)
    torch.testing.assert_close(plain, batch.mean(batch.advantages[:, :, 1], 1))
    torch.testing.assert_close(
        batch.surrogate(1, factor)(distribution), batch.mean(batch.advantages[:, :, 1] * factor, 1)
    )
    bonus = batch.surrogate(1, entropy_coefficient=0.5)(distribution) - plain
    torch.testing.assert_close(bonus, 0.5 * distribution.entropy().mean())


def test_rows_are_those_of_every_part() -> None:
    policy = make_policy()
    batch = GAMATR(policy, GAMATRConfig()).batch(play(policy, climbing))
    index = torch.tensor([5, 0, 63])
    part = batch.rows(index)
    assert part.segment.num_rows == 3
    for name in ("advantages", "weights", "log_probs"):
        assert torch.equal(getattr(part, name), getattr(batch, name)[index])
    assert torch.equal(part.segment.actions, batch.segment.actions[index])
