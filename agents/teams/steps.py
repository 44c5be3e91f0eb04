"""Trust-region steps of a team's actors: each for itself, or one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from scrubjay.agents.rl.distributions import Distribution
from scrubjay.agents.rl.trust_region import (
    Experience,
    NaturalGradient,
    TrustRegionStep,
    flatten,
    natural_gradient,
    snapshot,
    trust_region_step,
)
from scrubjay.agents.teams.batch import TeamBatch, of_agent
from scrubjay.agents.teams.config import GAMATRSettings
from scrubjay.agents.teams.policy import TeamPolicy

Surrogate = Callable[[Distribution], Tensor]


def independent_steps(
    policy: TeamPolicy, batch: TeamBatch, config: GAMATRSettings, agents: Sequence[int]
) -> list[TrustRegionStep]:
    """Let every actor of `agents` improve its own surrogate as if the others stayed as they are.

    A shared actor takes one step for all, within every agent's limit.
    """
    if policy.config.shared:
        return [agent_step(policy, batch, config, None, config.kl_limit)]
    naturals = natural_gradients(policy, batch, config, agents)
    return [
        agent_step(policy, batch, config, agent, limit, natural=natural)
        for agent, natural, limit in zip(agents, naturals, kl_limits(naturals, config), strict=True)
    ]


def sequential_steps(
    policy: TeamPolicy, batch: TeamBatch, config: GAMATRSettings, generator: torch.Generator
) -> list[TrustRegionStep]:
    """Let the actors improve in random order, each knowing what those before it have become.

    HATRPO (Kuba et al. 2022, arXiv 2109.11251): an agent's advantages are multiplied by the ratios of those
    before it. A shared actor moves once for every agent; the order's k-th step of N may bring any agent's
    divergence from the sampling policy up to (k/N)^2 of the limit, so that N equal steps just reach it.
    """
    order = torch.randperm(policy.num_agents, generator=generator).tolist()
    if policy.config.shared:
        return _shared_sequence(policy, batch, config, order)
    limits = [config.kl_limit] * len(order)
    if config.kl_budget == "allocated":
        limits = kl_limits(natural_gradients(policy, batch, config, range(policy.num_agents)), config)
    factor = torch.ones_like(batch.weights[:, :, 0])
    steps = []
    for agent in order:
        step = agent_step(policy, batch, config, agent, limits[agent], factor)
        if step.accepted:
            factor = factor * batch.log_ratio(step.policy, agent).exp()
        steps.append(step)
    return steps


def _shared_sequence(
    policy: TeamPolicy, batch: TeamBatch, config: GAMATRSettings, order: list[int]
) -> list[TrustRegionStep]:
    parameters = policy.actor_parameters()
    distribution = partial(policy.distribution, batch.segment)
    old, origin = None, flatten(parameters).detach()
    ratios = torch.ones_like(batch.weights)
    steps = []
    for place, agent in enumerate(order, start=1):
        factor = ratios[:, :, order[: place - 1]].prod(dim=2)
        own = batch.surrogate(agent, factor, config.entropy_coefficient)

        def surrogate(team: Distribution, own: Surrogate = own, agent: int = agent) -> Tensor:
            return own(team.agent(agent))

        natural = natural_gradient(
            parameters, distribution, surrogate, batch.weights, config, _sample(policy, batch, config)
        )
        old = natural.policy if old is None else old
        step = trust_region_step(
            parameters,
            distribution,
            surrogate,
            old,
            batch.weights,
            config,
            config.kl_limit * (place / len(order)) ** 2,
            moved=flatten(parameters).detach() - origin if place > 1 else None,
            natural=natural,
        )
        if step.accepted:
            # Of all agents: those before have moved with the common weights once more.
            ratios = batch.log_ratio(step.policy).exp()
        steps.append(step)
    return steps


def agent_step(
    policy: TeamPolicy,
    batch: TeamBatch,
    config: GAMATRSettings,
    agent: int | None,
    kl_limit: float,
    factor: Tensor | None = None,
    natural: NaturalGradient | None = None,
) -> TrustRegionStep:
    """Take one step of an agent that has an actor of its own, or of all by their common one.

    Args:
        policy: Whose actors move.
        batch: What it learns from.
        config: Settings of the step.
        agent: The one that moves; None for all, by a shared actor.
        kl_limit: The greatest mean divergence, in nats.
        factor: Multiplies advantages, `[batch time]`; None for 1.
        natural: The direction, if already known.
    """
    arguments = (
        policy.actor_parameters(agent),
        partial(policy.distribution, batch.segment, agent),
        batch.surrogate(agent, factor, config.entropy_coefficient),
    )
    weights = of_agent(batch.weights, agent)
    if natural is None:
        natural = natural_gradient(*arguments, weights, config, _sample(policy, batch, config, agent))
    return trust_region_step(*arguments, None, weights, config, kl_limit, natural=natural)


def natural_gradients(
    policy: TeamPolicy, batch: TeamBatch, config: GAMATRSettings, agents: Sequence[int]
) -> list[NaturalGradient]:
    """Return the natural gradients of these agents' own surrogates, all under the present weights."""
    return [
        natural_gradient(
            policy.actor_parameters(agent),
            partial(policy.distribution, batch.segment, agent),
            batch.surrogate(agent, entropy_coefficient=config.entropy_coefficient),
            batch.weights[:, :, agent],
            config,
            _sample(policy, batch, config, agent),
        )
        for agent in agents
    ]


def _sample(
    policy: TeamPolicy, batch: TeamBatch, config: GAMATRSettings, agent: int | None = None
) -> Experience | None:
    """Return the rows that tell the curvature, evenly spaced; None for all."""
    count = max(1, round(config.curvature_share * batch.segment.num_rows))
    if count >= batch.segment.num_rows:
        return None
    index = torch.linspace(0, batch.segment.num_rows - 1, count, device=batch.weights.device).long()
    segment = batch.segment.rows(index)
    return partial(policy.distribution, segment, agent), of_agent(batch.weights, agent)[index]


def kl_limits(naturals: list[NaturalGradient], config: GAMATRSettings) -> list[float]:
    """Return every agent's limit."""
    if config.kl_budget == "equal":
        return [config.kl_limit] * len(naturals)
    return allocate_kl([natural.gain for natural in naturals], config.kl_limit * len(naturals))


def allocate_kl(gains: Sequence[float], total: float) -> list[float]:
    """Return each agent's limit such that the sum of predicted improvements is largest.

    An agent whose natural gradient gains q = g'F^-1 g improves by sqrt(2 d q) at a divergence of d. The sum
    over agents, with the d summing to `total`, is largest where all slopes sqrt(q / 2d) are equal: d
    proportional to q. By Cauchy and Schwarz the sum is then sqrt(2 total sum(q)), and no other split reaches
    it. If nobody gains, all get the same.
    """
    whole = sum(gains)
    if not whole > 0:
        return [total / len(gains)] * len(gains)
    return [total * gain / whole for gain in gains]


def ratio(policy: TeamPolicy, batch: TeamBatch, agent: int) -> Tensor:
    """Return how much likelier an agent's actions have become, `[batch, time]`; 1 where it was not alive."""
    return batch.log_ratio(frozen(partial(policy.distribution, batch.segment, agent)), agent).exp()


def frozen(distribution: Callable[[], Distribution]) -> Distribution:
    """Return the distribution as it is now, without gradients."""
    with torch.no_grad():
        return snapshot(distribution())
