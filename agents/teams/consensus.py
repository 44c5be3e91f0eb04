"""MATRPO's consensus: agents that exchange nothing but likelihood ratios agree on one joint step.

Li and He 2020 (arXiv 2010.07916). Every agent k models the actions of all, given what it sees itself; l_k is
by how much its log-probabilities of the actions taken have changed, `[batch time agents]`. The joint step of
a common policy is split into the agents' own: each improves E[A_k sum(l_k)] within its trust region, and l_k
= l_j for neighbours k and j. This is solved by alternating directions, with a dual u per edge and p the
penalty: in every round agent k, of d edges, with m the mean of an edge's two l at the end of the last round,
moves to

    argmax_s  E[(A_k + sum over edges of (p m -+ u)) J s] - (q_k + p d) s'Hs / 2,    l_k = J s,  H = E[J'J],

and then u += p (l_k - l_j) / 2. All is linear at the old weights, where the graphs are computed once; H is
the Fisher information by the actions taken, multiplied by vectors through a difference of log-probabilities
and one backward pass, for any memory.

Ours: neighbours form a ring; q_k is the multiplier with which the agent's step, were it alone, ends at the
border of its trust region (the published code always goes there); the divergence, of all that the agent
models together, is kept exactly by shortening; and should the surrogates' sum not have grown, everybody goes
back.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.autograd import grad

from scrubjay.agents.rl.trust_region import (
    TrustRegionStep,
    conjugate_gradient,
    derivative_along,
    flatten,
    place,
    snapshot,
)
from scrubjay.agents.teams.batch import TeamBatch
from scrubjay.agents.teams.config import GAMATRSettings
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.agents.teams.steps import frozen


def consensus_steps(
    policy: TeamPolicy, batch: TeamBatch, config: GAMATRSettings
) -> tuple[list[TrustRegionStep], dict[str, float]]:
    """Let the ring of agents agree on a step, in `config.consensus_rounds` rounds."""
    members = [Member(policy, batch, config, agent) for agent in range(policy.num_agents)]
    edges = ring(len(members))
    penalty = config.consensus_penalty
    duals = {edge: torch.zeros_like(batch.weights) for edge in edges}
    gaps: list[Tensor] = []
    for _ in range(config.consensus_rounds):
        pulls = [torch.zeros_like(batch.weights) for _ in members]
        for (first, second), dual in duals.items():
            both = members[first].seen * members[second].seen
            half_gap = (members[first].change - members[second].change) * both / 2
            # Their mean, or where one of them is not there what the other has by itself.
            pulls[first] += penalty * (members[first].change - half_gap) - dual
            pulls[second] += penalty * (members[second].change + half_gap) + dual
        for member, pull in zip(members, pulls, strict=True):
            member.move(pull, penalty * sum(member.agent in edge for edge in edges))
        gaps = []
        for first, second in edges:
            both = members[first].seen * members[second].seen
            gap = (members[first].change - members[second].change) * both
            duals[first, second] += penalty / 2 * gap
            gaps.append(gap)
    gains = [member.gain() for member in members]
    accepted = sum(gains) > 0
    if not accepted:
        for member in members:
            member.go_back()
    steps = [
        TrustRegionStep(
            accepted, member.kl, gain if accepted else 0.0, gain, 0, member.residual, member.policy
        )
        for member, gain in zip(members, gains, strict=True)
    ]
    return steps, {"consensus/disagreement": _size(gaps) / max(_size([m.change for m in members]), 1e-8)}


def ring(agents: int) -> list[tuple[int, int]]:
    """Return the edges of a ring, each once; of two agents the one between them, of one none."""
    return [(agent, agent + 1) for agent in range(agents - 1)] + ([(0, agents - 1)] if agents > 2 else [])


class Member:
    """An agent on its way from its old policy, whose graph it keeps."""

    def __init__(self, policy: TeamPolicy, batch: TeamBatch, config: GAMATRSettings, agent: int) -> None:
        self.agent, self.batch, self.config = agent, batch, config
        self.parameters = policy.actor_parameters(agent)
        self.distribution = partial(policy.distribution, batch.segment, agent)
        self.origin = flatten(self.parameters).detach()
        current = self.distribution()
        self.before = current.log_prob(batch.segment.actions)
        """Its log-probabilities of everybody's actions under the old weights, with their graph."""
        self.old = self.policy = snapshot(current)
        self.seen = batch.weights * batch.weights[:, :, agent, None]
        """1 where it was alive, and so was who acted."""
        self.count = batch.weights[:, :, agent].sum().clamp_min(1)
        self.change = torch.zeros_like(self.seen)
        """l, by how much these have grown."""
        self.kl = torch.zeros((), dtype=self.seen.dtype, device=self.seen.device)
        self.residual = 0.0
        _, square = self._solve(torch.zeros_like(self.seen))
        self.multiplier = math.sqrt(square / (2 * config.kl_limit))

    def move(self, pull: Tensor, coupling: float) -> None:
        """Go from the old weights to where advantages and neighbours pull, within the trust region."""
        self.go_back()  # where the graphs belong
        direction, square = self._solve(pull)
        stiffness = self.multiplier + coupling
        if not square > 0 or not stiffness > 0:
            return
        scale = 1 / stiffness
        for _ in range(self.config.backtracks + 1):
            place(self.parameters, self.origin.add(direction, alpha=scale))
            new = frozen(self.distribution)
            kl = (self.old.kl(new) * self.seen).sum() / self.count
            if kl <= self.config.kl_limit:
                change = new.log_prob(self.batch.segment.actions) - self.before.detach()
                self.change, self.kl, self.policy = change.masked_fill(self.seen == 0, 0), kl, new
                return
            room = float((self.config.kl_limit / kl).sqrt())
            scale *= 0.95 * room if room > 0 else self.config.shrink
        self.go_back()

    def go_back(self) -> None:
        """Return to the old weights."""
        place(self.parameters, self.origin)
        self.change, self.kl = torch.zeros_like(self.change), torch.zeros_like(self.kl)
        self.policy = self.old

    def gain(self) -> float:
        """Return what the exact surrogate, with the ratio of joint actions, has gained."""
        ratio = self.change.sum(dim=2).exp()
        return float(self.batch.mean((ratio - 1) * self.batch.advantages[:, :, self.agent], self.agent))

    def _solve(self, pull: Tensor) -> tuple[Tensor, float]:
        """Return x = (H + damping)^-1 b, b by the advantages and the pull, and x'Hx."""
        pull = (pull + self.batch.advantages[:, :, self.agent, None]) * self.seen / self.count
        wanted = self._pulled(pull)
        direction, residual = conjugate_gradient(
            lambda vector: self._product(vector).add_(vector, alpha=self.config.damping),
            wanted,
            self.config.cg_iterations,
            self.config.cg_tolerance,
        )
        self.residual = float(residual.norm() / wanted.norm().clamp_min(1e-30))
        square = float(direction @ (wanted - residual).sub_(direction, alpha=self.config.damping))
        return direction, max(square, 0.0)

    def _product(self, vector: Tensor) -> Tensor:
        along = derivative_along(
            self.parameters, lambda: self.distribution().log_prob(self.batch.segment.actions), vector
        )
        return self._pulled(along * self.seen / self.count)

    def _pulled(self, weights: Tensor) -> Tensor:
        return flatten(grad(self.before, self.parameters, weights, retain_graph=True, materialize_grads=True))


def _size(values: list[Tensor]) -> float:
    return float(torch.stack(values).square().mean().sqrt()) if values else 0.0
