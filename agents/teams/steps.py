"""Updates of a team's actors: trust-region steps, independent or sequential, and clipped steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scrubjay.agents.rl.distributions import Distribution
from scrubjay.agents.rl.learner import gradient_step, minibatches
from scrubjay.agents.rl.trust_region import (
    NaturalGradient,
    TrustRegionStep,
    WeightedDistribution,
    flatten,
    natural_gradient,
    snapshot,
    trust_region_step,
)
from scrubjay.agents.teams.batch import TeamBatch, select_agent
from scrubjay.agents.teams.config import GAMATRSettings
from scrubjay.agents.teams.policy import TeamPolicy

Surrogate = Callable[[Distribution], Tensor]


class ModeContext(NamedTuple):
    """Arguments of an update of a team's actors."""

    policy: TeamPolicy
    batch: TeamBatch
    config: GAMATRSettings
    agents: Sequence[int]
    """Agents to update: all, unless the mode has `supports_subset`."""
    generator: torch.Generator
    """Source of random numbers."""
    optimizer: Any = None
    """Optimizer of all actors if the mode has `uses_optimizer`; else None."""


ModeResult = tuple[list[TrustRegionStep], dict[str, float]]
"""Trust-region steps and other metrics of an update of a team's actors."""


def independent_steps(context: ModeContext) -> ModeResult:
    """Update every actor of `context.agents` on its own surrogate, as if the other agents were fixed.

    A shared actor takes one step for all agents, within the divergence limit of every agent.
    """
    if context.policy.config.shared:
        return [agent_step(context, None, context.config.kl_limit)], {}
    naturals = natural_gradients(context, context.agents)
    limits = kl_limits(naturals, context.config)
    return [
        agent_step(context, agent, limit, natural=natural)
        for agent, natural, limit in zip(context.agents, naturals, limits, strict=True)
    ], {}


def sequential_steps(context: ModeContext) -> ModeResult:
    """Update the actors in random order, each conditioned on the previous updates: HATRPO.

    As in Kuba et al. 2022 (arXiv 2109.11251), the advantages of an agent are multiplied by the policy ratios
    of all agents that were updated before. A shared actor is updated N times, once for each of N agents.
    After update k the divergence of each agent from the sampling policy may be at most (k/N)^2 times the
    limit, so that N equal updates reach the limit.
    """
    policy, batch, config = context.policy, context.batch, context.config
    order = torch.randperm(policy.num_agents, generator=context.generator).tolist()
    if policy.config.shared:
        return _shared_sequence(context, order), {}
    limits = [config.kl_limit] * len(order)
    if config.kl_budget == "allocated":
        limits = kl_limits(natural_gradients(context, range(policy.num_agents)), config)
    factor = torch.ones_like(batch.weights[:, :, 0])
    steps = []
    for agent in order:
        step = agent_step(context, agent, limits[agent], factor)
        if step.is_accepted:
            factor = factor * batch.log_ratio(step.policy, agent).exp()
        steps.append(step)
    return steps, {}


def _shared_sequence(context: ModeContext, order: list[int]) -> list[TrustRegionStep]:
    batch, config = context.batch, context.config
    parameters, distribution, _ = _objective(context, None)
    old, origin = None, flatten(parameters).detach()
    ratios = torch.ones_like(batch.weights)
    steps = []
    for position, agent in enumerate(order, start=1):
        factor = ratios[:, :, order[: position - 1]].prod(dim=2)
        own = batch.surrogate(agent, factor, config.entropy_coefficient)

        def surrogate(team: Distribution, own: Surrogate = own, agent: int = agent) -> Tensor:
            return own(team.agent(agent))

        natural = natural_gradient(
            parameters, distribution, surrogate, batch.weights, config, _sample(context, None)
        )
        old = natural.policy if old is None else old
        step = trust_region_step(
            parameters,
            distribution,
            surrogate,
            old,
            batch.weights,
            config,
            config.kl_limit * (position / len(order)) ** 2,
            displacement=flatten(parameters).detach() - origin if position > 1 else None,
            natural=natural,
        )
        if step.is_accepted:
            # Of all agents, since a step of the shared weights also changes the previous ones.
            ratios = batch.log_ratio(step.policy).exp()
        steps.append(step)
    return steps


def agent_step(
    context: ModeContext,
    agent: int | None,
    kl_limit: float,
    factor: Tensor | None = None,
    natural: NaturalGradient | None = None,
) -> TrustRegionStep:
    """Take one trust-region step of an agent with a separate actor, or of all agents with a shared actor.

    Args:
        context: Policy, batch and config.
        agent: Agent to update; None for all agents of a shared actor.
        kl_limit: Maximum mean divergence, in nats.
        factor: Factor by which the advantages are multiplied, `[batch time]`; None for a factor of 1.
        natural: Natural gradient at the current weights; None to compute it here.
    """
    if natural is None:
        natural = _natural_gradient(context, agent, factor)
    objective, weights = _objective(context, agent, factor), select_agent(context.batch.weights, agent)
    return trust_region_step(*objective, None, weights, context.config, kl_limit, natural=natural)


def natural_gradients(context: ModeContext, agents: Sequence[int]) -> list[NaturalGradient]:
    """Return the natural gradient of the surrogate of each agent in `agents`, at the current weights."""
    return [_natural_gradient(context, agent) for agent in agents]


def _natural_gradient(
    context: ModeContext, agent: int | None, factor: Tensor | None = None
) -> NaturalGradient:
    objective, weights = _objective(context, agent, factor), select_agent(context.batch.weights, agent)
    return natural_gradient(*objective, weights, context.config, _sample(context, agent))


def _objective(context: ModeContext, agent: int | None, factor: Tensor | None = None) -> tuple[Any, Any, Any]:
    """Return parameters, distribution and surrogate of an agent, or of all agents with a shared actor."""
    policy, batch = context.policy, context.batch
    return (
        policy.actor_parameters(agent),
        partial(policy.distribution, batch.segment, agent),
        batch.surrogate(agent, factor, context.config.entropy_coefficient),
    )


def _sample(context: ModeContext, agent: int | None) -> WeightedDistribution | None:
    """Return the action distribution and the sample weights from which the Fisher information is computed.

    Both belong to a part of the batch: the fraction `config.curvature_share` of the environments, evenly
    spaced. Returns None if this part is the whole batch.
    """
    segment, weights = context.batch.segment, context.batch.weights
    count = max(1, round(context.config.curvature_share * segment.num_rows))
    if count >= segment.num_rows:
        return None
    index = torch.linspace(0, segment.num_rows - 1, count, device=weights.device).long()
    part = partial(context.policy.distribution, segment.rows(index), agent)
    return part, select_agent(weights, agent)[index]


def kl_limits(naturals: list[NaturalGradient], config: GAMATRSettings) -> list[float]:
    """Return the divergence limit of every agent."""
    if config.kl_budget == "equal":
        return [config.kl_limit] * len(naturals)
    return allocate_kl([natural.gain for natural in naturals], config.kl_limit * len(naturals))


def allocate_kl(gains: Sequence[float], total: float) -> list[float]:
    """Return one divergence limit per agent, such that the sum of predicted improvements is largest.

    The sum of the limits is `total`. The gain q of an agent is g'F^-1 g, with the gradient g of its surrogate
    and its Fisher information F. At a divergence d the predicted improvement of this agent is sqrt(2 d q).
    The sum over agents is largest where the derivatives sqrt(q / 2d) of all agents are equal, so d is
    proportional to q. By the Cauchy-Schwarz inequality this maximum is sqrt(2 total sum(q)), and it is
    unique. If all gains are 0, the limits are equal.
    """
    whole = sum(gains)
    if not whole > 0:
        return [total / len(gains)] * len(gains)
    return [total * gain / whole for gain in gains]


def likelihood_ratio(policy: TeamPolicy, batch: TeamBatch, agent: int) -> Tensor:
    """Return the ratio of an agent's current policy to its sampling policy, `[batch, time]`.

    The ratio is 1 where the agent was not alive.
    """
    return batch.log_ratio(compute_detached(partial(policy.distribution, batch.segment, agent)), agent).exp()


def compute_detached(distribution: Callable[[], Distribution]) -> Distribution:
    """Compute the distribution without gradients; later changes of parameters do not affect it."""
    with torch.no_grad():
        return snapshot(distribution())


def clipped_steps(context: ModeContext) -> ModeResult:
    """Update all actors together on the clipped loss: MAPPO (Yu et al. 2022, arXiv 2103.01955)."""
    _descend(context, None, context.batch.advantages)
    return [], {}


def clipped_sequence(context: ModeContext) -> ModeResult:
    """Update one actor after another on the clipped loss, in random order: HAPPO (arXiv 2109.11251).

    The advantages of an agent are multiplied by the policy ratios of all agents that were updated before.
    """
    policy, batch = context.policy, context.batch
    order = torch.randperm(policy.num_agents, generator=context.generator).tolist()
    for position, agent in enumerate(order):
        factor = torch.ones_like(batch.weights[:, :, agent])
        for earlier in order[:position]:  # recomputed, since a shared actor has changed
            factor = factor * likelihood_ratio(policy, batch, earlier)
        _descend(context, agent, batch.advantages[:, :, agent] * factor)
    return [], {}


def _descend(context: ModeContext, agent: int | None, advantages: Tensor) -> None:
    config, batch = context.config, context.batch
    for index in minibatches(batch.segment.num_rows, config.epochs, config.minibatches, context.generator):
        index = index.to(advantages.device)
        part, gains = batch.rows(index), advantages[index]
        distribution = context.policy.distribution(part.segment, agent)
        ratios = part.log_ratio(distribution, agent).exp()
        clipped_ratios = ratios.clamp(1 - config.clip, 1 + config.clip)
        loss = -part.mean(torch.minimum(ratios * gains, clipped_ratios * gains), agent)
        loss = loss - config.entropy_coefficient * part.mean(distribution.entropy(), agent)
        gradient_step(context.optimizer, loss, config.max_grad_norm)
