"""Consensus updates of MATRPO: agents agree on a joint step and exchange only likelihood ratios.

Li and He 2020 (arXiv 2010.07916). Every agent k models the actions of all agents, based on its own
observation. A_k is the advantage of agent k. l_k is the change of the agent's log-probabilities of the
sampled actions, `[batch time agents]`. E is the mean over the batch. The joint step of a common policy is
split among the agents: agent k maximizes E[A_k sum(l_k)] within its trust region, subject to l_k = l_j for
each neighbor j.
This problem is solved by the alternating direction method of multipliers (ADMM), with a penalty p and a dual
variable u for each edge. An edge connects two neighbors, a first agent and a second agent.
In every round each agent k changes its weights by the step s that maximizes

    E[(A_k + sum of pulls) J s] - (q_k + p d) s'Hs / 2,    with l_k = J s and H = E[J'J].

J is the derivative of the agent's log-probabilities at the old weights. d is the number of the agent's edges.
q_k limits the size of the step; the last paragraph defines it.
Each edge adds one pull: p m - u for its first agent, and p m + u for its second agent. m is the mean of the
changes l of both agents after the previous round. At the end of the round u grows by
p (l_first - l_second) / 2.

The graph of the log-probabilities at the old weights is computed once. H is the empirical Fisher information
of the sampled actions. The product of H and a vector takes a finite difference of log-probabilities and one
backward pass, for any memory.

Details that are our own: neighbors form a ring. q_k is chosen so that the step of an agent without neighbors
reaches the limit of the trust region. The published code takes a step of this length in every round.
Backtracking limits the exact divergence of the agent's joint model. If the sum of the surrogates has not
improved, all agents return to the old weights.
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
    set_parameters,
    snapshot,
)
from scrubjay.agents.teams.batch import TeamBatch
from scrubjay.agents.teams.config import GAMATRSettings
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.agents.teams.steps import ModeContext, ModeResult, compute_detached


def consensus_steps(context: ModeContext) -> ModeResult:
    """Update all actors by `config.consensus_rounds` rounds of consensus on a ring of agents."""
    policy, batch, config = context.policy, context.batch, context.config
    members = [Member(policy, batch, config, agent) for agent in range(policy.num_agents)]
    edges = ring(len(members))
    penalty = config.consensus_penalty
    duals = {edge: torch.zeros_like(batch.weights) for edge in edges}
    gaps: list[Tensor] = []
    for _ in range(config.consensus_rounds):
        pulls = [torch.zeros_like(batch.weights) for _ in members]
        for (first, second), dual in duals.items():
            both = members[first].mask * members[second].mask
            half_gap = (members[first].change - members[second].change) * both / 2
            # The mean of both changes; if one of the agents is not alive, the change of the other.
            pulls[first] += penalty * (members[first].change - half_gap) - dual
            pulls[second] += penalty * (members[second].change + half_gap) + dual
        for member, pull in zip(members, pulls, strict=True):
            member.move(pull, penalty * sum(member.agent in edge for edge in edges))
        gaps = []
        for first, second in edges:
            both = members[first].mask * members[second].mask
            gap = (members[first].change - members[second].change) * both
            duals[first, second] += penalty / 2 * gap
            gaps.append(gap)
    gains = [member.gain() for member in members]
    is_accepted = sum(gains) > 0
    if not is_accepted:
        for member in members:
            member.go_back()
    steps = [
        TrustRegionStep(
            is_accepted, member.kl, gain if is_accepted else 0.0, gain, 0, member.residual, member.policy
        )
        for member, gain in zip(members, gains, strict=True)
    ]
    return steps, {"consensus/disagreement": _size(gaps) / max(_size([m.change for m in members]), 1e-8)}


def ring(agents: int) -> list[tuple[int, int]]:
    """Return the edges of a ring of `agents` agents. Two agents have one edge, and one agent has none."""
    return [(agent, agent + 1) for agent in range(agents - 1)] + ([(0, agents - 1)] if agents > 2 else [])


class Member:
    """State of one agent in the consensus rounds, with the autograd graph of the old policy."""

    def __init__(self, policy: TeamPolicy, batch: TeamBatch, config: GAMATRSettings, agent: int) -> None:
        self.agent, self.batch, self.config = agent, batch, config
        self.parameters = policy.actor_parameters(agent)
        self.distribution = partial(policy.distribution, batch.segment, agent)
        self.origin = flatten(self.parameters).detach()
        current = self.distribution()
        self.before = current.log_prob(batch.segment.actions)
        """Log-probabilities of all agents' actions under the old weights, with their graph."""
        self.old = self.policy = snapshot(current)
        self.mask = batch.weights * batch.weights[:, :, agent, None]
        """1 where both this agent and the acting agent were alive, else 0."""
        self.count = batch.weights[:, :, agent].sum().clamp_min(1)
        self.change = torch.zeros_like(self.mask)
        """Change l of the log-probabilities."""
        self.kl = torch.zeros((), dtype=self.mask.dtype, device=self.mask.device)
        self.residual = 0.0
        _, square = self._solve(torch.zeros_like(self.mask))
        self.multiplier = math.sqrt(square / (2 * config.kl_limit))

    def move(self, pull: Tensor, coupling: float) -> None:
        """Replace the agent's step by a new step from the old weights, within the trust region.

        The new step maximizes the surrogate with `pull` added to the advantages. `pull`, `[batch, time,
        agents]`, draws the agent's joint model toward the models of its neighbors on the ring. `coupling` is
        the penalty coefficient multiplied by the number of these neighbors. A larger `coupling` makes the
        step shorter.
        """
        self.go_back()  # the graphs are those of the old weights
        direction, square = self._solve(pull)
        stiffness = self.multiplier + coupling
        if not square > 0 or not stiffness > 0:
            return
        scale = 1 / stiffness
        for _ in range(self.config.backtracks + 1):
            set_parameters(self.parameters, self.origin.add(direction, alpha=scale))
            new = compute_detached(self.distribution)
            kl = (self.old.kl(new) * self.mask).sum() / self.count
            if kl <= self.config.kl_limit:
                change = new.log_prob(self.batch.segment.actions) - self.before.detach()
                self.change, self.kl, self.policy = change.masked_fill(self.mask == 0, 0), kl, new
                return
            ratio = float((self.config.kl_limit / kl).sqrt())
            scale *= 0.95 * ratio if ratio > 0 else self.config.shrink
        self.go_back()

    def go_back(self) -> None:
        """Undo the step: restore the old weights."""
        set_parameters(self.parameters, self.origin)
        self.change, self.kl = torch.zeros_like(self.change), torch.zeros_like(self.kl)
        self.policy = self.old

    def gain(self) -> float:
        """Return the improvement of the agent's surrogate: the mean of `(ratio - 1) * advantage`.

        `ratio` is the likelihood ratio of the agent's new joint model to the old one, for the sampled joint
        action.
        """
        ratio = self.change.sum(dim=2).exp()
        return float(self.batch.mean((ratio - 1) * self.batch.advantages[:, :, self.agent], self.agent))

    def _solve(self, pull: Tensor) -> tuple[Tensor, float]:
        """Return the solution x of `(H + damping) x = b`, and x'Hx.

        H is the empirical Fisher information. b is the gradient of the surrogate with `pull` added to the
        advantages.
        """
        pull = (pull + self.batch.advantages[:, :, self.agent, None]) * self.mask / self.count
        gradient = self._vector_jacobian(pull)
        direction, residual = conjugate_gradient(
            lambda vector: self._product(vector).add_(vector, alpha=self.config.damping),
            gradient,
            self.config.cg_iterations,
            self.config.cg_tolerance,
        )
        self.residual = float(residual.norm() / gradient.norm().clamp_min(1e-30))
        square = float(direction @ (gradient - residual).sub_(direction, alpha=self.config.damping))
        return direction, max(square, 0.0)

    def _product(self, vector: Tensor) -> Tensor:
        along = derivative_along(
            self.parameters, lambda: self.distribution().log_prob(self.batch.segment.actions), vector
        )
        return self._vector_jacobian(along * self.mask / self.count)

    def _vector_jacobian(self, weights: Tensor) -> Tensor:
        return flatten(grad(self.before, self.parameters, weights, retain_graph=True, materialize_grads=True))


def _size(values: list[Tensor]) -> float:
    return float(torch.stack(values).square().mean().sqrt()) if values else 0.0
