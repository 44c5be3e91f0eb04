"""MATRPO's consensus: agents that exchange nothing but likelihood ratios agree on one joint step.

Li and He 2020 (arXiv 2010.07916). Every agent k models the actions of all, given what it sees itself;
l_k is by how much its log-probabilities of the actions taken have changed, `[batch time agents]`. The joint step
of a common policy is split into the agents' own, that maximise E[exp(sum l_k) A_k] in their trust regions
subject to l_k = l_j for neighbours k and j, by alternating directions with one dual u per edge. In each round,
with m the mean of an edge's two l and r the `penalty`, agent k solves, linear at the old weights, the
problem whose gradient is that of E[(A_k + sum over edges (r m -+ u)) l_k] and whose curvature is `r` times the
number of edges times the Fisher information; then u += r (l_k - l_j) / 2.

Ours: the neighbours form a ring; E[l^2] is taken as the Fisher information's quadratic form, which makes the
inner problem one natural gradient of known length (theirs always goes to the border); and should the
sum of all surrogates not have grown in the end, everybody goes back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd import grad

from scrubjay.agents.distributions import Distribution
from scrubjay.agents.gamatr_config import GAMATRConfig
from scrubjay.agents.team_batch import TeamBatch
from scrubjay.agents.team_policy import TeamPolicy
from scrubjay.agents.team_steps import frozen
from scrubjay.agents.trust_region import (
    Product,
    TrustRegionStep,
    conjugate_gradient,
    fisher_product,
    flatten,
    place,
    snapshot,
)


@dataclass
class _Member:
    """An agent in the ring, with the graph of its old policy."""

    agent: int
    parameters: list
    origin: Tensor
    old: Distribution
    before: Tensor
    """Its log-probabilities of everybody's actions, with their graph."""
    product: Product
    seen: Tensor
    """1 where it was alive, by whose action: `[batch, time, agents]`."""
    count: Tensor
    change: Tensor
    """l."""
    kl: Tensor
    new: Distribution


def consensus_steps(
    policy: TeamPolicy, batch: TeamBatch, config: GAMATRConfig
) -> tuple[list[TrustRegionStep], dict[str, float]]:
    """Let the ring of agents agree on a step, in `config.consensus_rounds` rounds."""
    members = [_member(policy, batch, config, agent) for agent in range(policy.num_agents)]
    edges = ring(len(members))
    duals = {edge: torch.zeros_like(batch.weights) for edge in edges}
    disagreements = []
    for _ in range(config.consensus_rounds):
        for member in members:
            _move(policy, batch, config, member, members, duals)
        gaps = {}
        for first, second in edges:
            both = members[first].seen * members[second].seen
            gaps[first, second] = (members[first].change - members[second].change) * both
            duals[first, second] = duals[first, second] + config.consensus_penalty / 2 * gaps[first, second]
        if edges:
            disagreements.append(torch.stack([gap.square().mean() for gap in gaps.values()]).mean().sqrt())
    improvements = [_improvement(batch, member) for member in members]
    accepted = sum(improvements) > 0
    if not accepted:
        for member in members:
            _stay(member)
    steps = [
        TrustRegionStep(accepted, member.kl, gain if accepted else 0.0, gain, 0, 0.0, member.new)
        for member, gain in zip(members, improvements, strict=True)
    ]
    return steps, {"consensus/disagreement": float(disagreements[-1]) if disagreements else 0.0}


def ring(agents: int) -> list[tuple[int, int]]:
    """Return the edges of a ring, each once; of two agents the one between them, of one none."""
    return [(agent, agent + 1) for agent in range(agents - 1)] + ([(0, agents - 1)] if agents > 2 else [])


def _member(policy: TeamPolicy, batch: TeamBatch, config: GAMATRConfig, agent: int) -> _Member:
    parameters = policy.actor_parameters(agent)
    distribution = partial(policy.distribution, batch.segment, agent)
    with torch.backends.cudnn.flags(enabled=False):
        current = distribution()
        before = current.log_prob(batch.segment.actions)
        seen = batch.weights * batch.weights[:, :, agent, None]
        product = fisher_product(parameters, distribution, current, seen, config.curvature)
    count = batch.weights[:, :, agent].sum().clamp_min(1)
    # Means over this agent's steps, of sums over the actions of all: the divergence of a joint policy.
    scale = seen.sum().clamp_min(1) / count
    return _Member(
        agent,
        parameters,
        flatten(parameters).detach(),
        snapshot(current),
        before,
        lambda vector: product(vector) * scale,
        seen,
        count,
        torch.zeros_like(seen),
        torch.zeros((), dtype=seen.dtype, device=seen.device),
        snapshot(current),
    )


def _move(
    policy: TeamPolicy,
    batch: TeamBatch,
    config: GAMATRConfig,
    member: _Member,
    members: list[_Member],
    duals: dict[tuple[int, int], Tensor],
) -> None:
    penalty = config.consensus_penalty
    pull = batch.advantages[:, :, member.agent, None].expand_as(member.seen)
    degree = 0
    for (first, second), dual in duals.items():
        if member.agent not in (first, second):
            continue
        degree += 1
        sign = 1 if member.agent == first else -1
        pull = pull - sign * dual + penalty / 2 * (members[first].change + members[second].change)
    place(member.parameters, member.origin)  # where the graphs belong
    objective = (member.before * (pull * member.seen)).sum() / member.count
    gradient = flatten(grad(objective, member.parameters, retain_graph=True, materialize_grads=True))
    direction, residual = conjugate_gradient(
        lambda vector: member.product(vector).add_(vector, alpha=config.damping),
        gradient,
        config.cg_iterations,
        config.cg_tolerance,
    )
    square = float(direction @ (gradient - residual).sub_(direction, alpha=config.damping))
    if not square > 0:
        _stay(member)
        return
    scale = math.sqrt(2 * config.kl_limit / square)
    if degree:
        scale = min(scale, 1 / (penalty * degree))
    for _ in range(config.backtracks + 1):
        place(member.parameters, member.origin.add(direction, alpha=scale))
        new = frozen(partial(policy.distribution, batch.segment, member.agent))
        kl = (member.old.kl(new) * member.seen).sum() / member.count
        if kl <= config.kl_limit:
            change = new.log_prob(batch.segment.actions) - member.before.detach()
            member.change, member.kl, member.new = change.masked_fill(member.seen == 0, 0), kl, new
            return
        scale *= min(config.shrink, 0.95 * float((config.kl_limit / kl).sqrt()))
    _stay(member)


def _stay(member: _Member) -> None:
    place(member.parameters, member.origin)
    member.change, member.kl = torch.zeros_like(member.change), torch.zeros_like(member.kl)
    member.new = member.old


def _improvement(batch: TeamBatch, member: _Member) -> float:
    ratio = member.change.sum(dim=2).exp()
    return float(batch.mean((ratio - 1) * batch.advantages[:, :, member.agent], member.agent))
