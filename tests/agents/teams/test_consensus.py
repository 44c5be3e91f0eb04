"""Consensus of neighbors on a ring."""

from __future__ import annotations

import pytest
import torch

from scrubjay.agents import GAMATR, GAMATRConfig
from scrubjay.agents.rl.trust_region import flatten
from scrubjay.agents.teams.consensus import Member, ring

from .games import climbing, play, policy_for


@pytest.mark.slow
def test_consensus_brings_neighbours_together() -> None:
    disagreements = []
    for rounds in (1, 4, 16):
        policy = policy_for("consensus")
        config = GAMATRConfig(mode="consensus", consensus_rounds=rounds, cg_tolerance=1e-4, damping=1e-3)
        segment = play(policy, climbing)
        disagreements.append(GAMATR(policy, config).update(segment)["consensus/disagreement"])
    assert disagreements == sorted(disagreements, reverse=True)
    assert disagreements[-1] < 0.5 * disagreements[0]


@pytest.mark.slow
def test_those_who_never_meet_have_nothing_to_agree_on() -> None:
    alive = torch.zeros(64, 4, 2, dtype=torch.bool)
    alive[::2, :, 0] = alive[1::2, :, 1] = True
    metrics = []
    for penalty, rounds in ((1e-6, 1), (100.0, 10)):
        config = GAMATRConfig(
            mode="consensus",
            consensus_penalty=penalty,
            consensus_rounds=rounds,
            kl_limit=1e-4,
            cg_iterations=20,
            cg_tolerance=1e-3,
            damping=1e-4,
        )
        policy = policy_for("consensus", agents=2)
        metrics.append(GAMATR(policy, config).update(play(policy, climbing, alive=alive)))
    for name in ("losses/kl", "losses/improvement"):
        assert metrics[1][name] == pytest.approx(metrics[0][name], rel=0.1)


@pytest.mark.parametrize("agents", range(1, 6))
def test_a_ring_joins_everybody_with_two(agents: int) -> None:
    edges = ring(agents)
    assert len(set(edges)) == len(edges)
    assert all(first < second for first, second in edges)
    degrees = [sum(agent in edge for edge in edges) for agent in range(agents)]
    assert degrees == [min(2, agents - 1)] * agents


def test_a_member_goes_back_bit_for_bit_and_moves_within_its_limit() -> None:
    policy = policy_for("consensus")
    config = GAMATRConfig(mode="consensus")
    batch = GAMATR(policy, config).batch(play(policy, climbing))
    member = Member(policy, batch, config, agent=1)
    before = flatten(member.parameters).detach()
    member.move(torch.zeros_like(batch.weights), coupling=0.0)
    assert not torch.equal(flatten(member.parameters), before)
    assert 0 < float(member.kl) <= config.kl_limit
    assert member.gain() > 0
    member.go_back()
    assert torch.equal(flatten(member.parameters), before)
    assert member.gain() == float(member.kl) == 0


def test_the_more_neighbours_hold_on_to_it_the_less_a_member_moves() -> None:
    policy = policy_for("consensus")
    config = GAMATRConfig(mode="consensus")
    batch = GAMATR(policy, config).batch(play(policy, climbing))
    member = Member(policy, batch, config, agent=0)
    divergences = []
    for coupling in (0.0, member.multiplier, 8 * member.multiplier):
        member.move(torch.zeros_like(batch.weights), coupling)
        divergences.append(float(member.kl))
    # The step is divided by 1, 2 and 9, and the divergence goes with its square.
    assert divergences == sorted(divergences, reverse=True)
    assert divergences[2] == pytest.approx(divergences[0] / 81, rel=0.3)
