"""Sequential and independent steps, and the allocation of divergence limits."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from scrubjay.agents import GAMATR, GAMATRConfig
from scrubjay.agents.rl.trust_region import flatten, mean_kl
from scrubjay.agents.teams.batch import TeamBatch
from scrubjay.agents.teams.steps import (
    ModeContext,
    agent_step,
    allocate_kl,
    compute_detached,
    independent_steps,
    kl_limits,
    likelihood_ratio,
    natural_gradients,
    sequential_steps,
)

from .games import climbing, make_policy, play


def context_of(learner: GAMATR, batch: TeamBatch) -> ModeContext:
    return ModeContext(learner.policy, batch, learner.config, learner.agents, learner.generator)


def test_a_later_agent_is_taught_by_the_product_of_earlier_ratios() -> None:
    # Replayed by hand: the same steps, with advantages multiplied by ratios looked up from probabilities.
    policy, twin = make_policy(), make_policy()
    learner = GAMATR(policy, GAMATRConfig(), seed=3)
    batch = learner.batch(play(policy, climbing))
    order = torch.randperm(3, generator=torch.Generator().manual_seed(3)).tolist()
    sequential_steps(context_of(learner, batch))

    def chance(agent: int) -> Tensor:
        log_probs = compute_detached(partial(twin.distribution, batch.segment, agent)).log_probs  # pyright: ignore[reportAttributeAccessIssue]
        return log_probs.exp().gather(-1, batch.segment.actions[:, :, agent, None]).squeeze(-1)

    before = [chance(agent) for agent in range(3)]
    factor = torch.ones_like(before[0])
    for agent in order:
        agent_step(context_of(learner, batch)._replace(policy=twin), agent, 0.01, factor)
        factor = factor * chance(agent) / before[agent]
    for ours, replayed_parameter in zip(policy.actor_parameters(), twin.actor_parameters(), strict=True):
        torch.testing.assert_close(ours, replayed_parameter, rtol=1e-4, atol=1e-5)


def test_allocated_limits_are_the_best_split() -> None:
    gains, total = [0.5, 2.0, 0.1], 0.03
    limits = allocate_kl(gains, total)

    def improvement(split: list[float]) -> float:
        return sum(math.sqrt(2 * limit * gain) for limit, gain in zip(split, gains, strict=True))

    assert sum(limits) == pytest.approx(total)
    assert improvement(limits) == pytest.approx(math.sqrt(2 * total * sum(gains)))
    others = torch.distributions.Dirichlet(torch.ones(3)).sample((200,)) * total
    assert max(improvement(split) for split in others.tolist()) <= improvement(limits)
    assert allocate_kl([0.0, 0.0], 0.02) == [0.01, 0.01]


def test_allocated_budgets_follow_the_gains() -> None:
    # Only agent 0 is paid for what it does.
    policy = make_policy()
    learner = GAMATR(
        policy, GAMATRConfig(mode="independent", kl_budget="allocated", normalize_advantage=False)
    )
    segment = play(policy, lambda actions: actions.float() * torch.tensor([1.0, 0.0, 0.0]))
    segment.values.zero_()
    batch = learner.batch(segment)
    gains = [natural.gain for natural in natural_gradients(context_of(learner, batch), range(3))]
    assert gains[0] > 0
    assert gains[1:] == [0.0, 0.0]
    old = compute_detached(partial(policy.distribution, segment))
    learner.update(segment)
    kl = mean_kl(old, compute_detached(partial(policy.distribution, segment)), batch.weights)
    assert 0.02 < float(kl[0]) <= 0.03
    assert (kl[1:] == 0).all()


def test_equal_budgets_are_everybodys_own() -> None:
    policy = make_policy()
    learner = GAMATR(policy, GAMATRConfig(kl_limit=0.02))
    batch = learner.batch(play(policy, climbing))
    naturals = natural_gradients(context_of(learner, batch), range(3))
    assert kl_limits(naturals, learner.config) == [0.02] * 3
    allocated_limits = kl_limits(naturals, GAMATRConfig(kl_limit=0.02, kl_budget="allocated"))
    assert sum(allocated_limits) == pytest.approx(0.06)
    assert len({round(limit, 6) for limit in allocated_limits}) == 3


def test_independent_steps_do_not_see_each_other() -> None:
    both, alone = make_policy(agents=2), make_policy(agents=2)
    config = GAMATRConfig(mode="independent")
    learner = GAMATR(both, config)
    context = context_of(learner, learner.batch(play(both, climbing)))
    independent_steps(context)
    for agent in (1, 0):
        agent_step(context._replace(policy=alone), agent, config.kl_limit)
    assert torch.equal(flatten(both.actor_parameters()), flatten(alone.actor_parameters()))


def test_ratios_are_one_where_nothing_moved_or_nobody_lived() -> None:
    policy = make_policy()
    alive = torch.rand(64, 4, 3, generator=torch.Generator().manual_seed(5)) < 0.7
    learner = GAMATR(policy, GAMATRConfig())
    batch = learner.batch(play(policy, climbing, alive=alive))
    torch.testing.assert_close(likelihood_ratio(policy, batch, 1), torch.ones(64, 4), rtol=1e-4, atol=1e-5)
    agent_step(context_of(learner, batch), 1, 0.05)
    ratios = likelihood_ratio(policy, batch, 1)
    assert (ratios[~alive[:, :, 1]] == 1).all()
    assert (ratios[alive[:, :, 1]] - 1).abs().max() > 0.05
