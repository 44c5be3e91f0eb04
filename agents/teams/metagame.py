"""Metagame of MATRL: its equilibrium determines how each agent mixes its old and its new policy.

Wen et al. 2021 (arXiv 2106.06828). Every agent m has an old policy and a new policy, the result of a step in
its own trust region. The agent mixes both policies: it takes each action from the new policy with probability
p_m. The likelihood ratio of this mixture to the old policy is `1 + p_m (r_m - 1)`, where r_m is the ratio of
the new policy to the old policy. The gain of agent i is estimated on samples of the old policies. It is the
mean of `prod_m (1 + p_m (r_m - 1)) A_i`, where A_i is the agent's advantage. This gain is linear in every
p_m. Each agent therefore has two pure strategies, and the 2^N payoffs of N agents need not be enumerated.
Only abstracts of the paper were available to us; the estimate of payoffs on the batch is our choice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from scrubjay.agents.rl.trust_region import flatten, mean_kl, set_parameters
from scrubjay.agents.teams.steps import ModeContext, ModeResult, compute_detached, independent_steps

Gains = Callable[[Float[Tensor, "agents"]], Float[Tensor, "agents"]]


def metagame_steps(context: ModeContext) -> ModeResult:
    """Take independent steps, then interpolate each actor between its old and its new weights.

    The share of the new weights is the probability of the new policy at the equilibrium of the metagame.
    To first order, a policy with interpolated weights is the same as a mixed policy.
    """
    policy, batch, config = context.policy, context.batch, context.config
    agents = range(policy.num_agents)
    before = [flatten(policy.actor_parameters(agent)).detach() for agent in agents]
    old = [compute_detached(partial(policy.distribution, batch.segment, agent)) for agent in agents]
    steps, _ = independent_steps(context)
    ratios = torch.stack(
        [batch.log_ratio(step.policy, agent).exp() for agent, step in enumerate(steps)], dim=2
    )
    gains = game_gains(ratios, batch.advantages, batch.weights)
    mixture = equilibrium(gains, policy.num_agents)
    for agent, share in enumerate(mixture.tolist()):
        if share == 1 or not steps[agent].is_accepted:
            continue
        parameters = policy.actor_parameters(agent)
        after = flatten(parameters).detach()
        limit = float(steps[agent].kl)
        for _ in range(config.backtracks + 1):
            set_parameters(parameters, before[agent].lerp(after, share) if share > 0 else before[agent])
            new = compute_detached(partial(policy.distribution, batch.segment, agent))
            kl = mean_kl(old[agent], new, batch.weights[:, :, agent])
            if kl <= limit:  # usually true; if the divergence is not convex along the line, backtrack
                break
            share *= config.shrink
        else:
            set_parameters(parameters, before[agent])
            kl, new, share = torch.zeros_like(kl), old[agent], 0.0
        steps[agent] = steps[agent]._replace(kl=kl, is_accepted=share > 0, policy=new)
    metrics = {"metagame/mixture": mixture.mean().item(), "metagame/regret": regret(gains, mixture)}
    return steps, metrics


def game_gains(
    ratios: Float[Tensor, "batch time agents"],
    advantages: Float[Tensor, "batch time agents"],
    weights: Float[Tensor, "batch time agents"],
) -> Gains:
    """Return a function that computes how much each agent gains by its new policy instead of its old one.

    The argument of the function is a mixture: the probability of the new policy for each agent. All other
    agents follow the mixture.
    """
    count = weights.sum(dim=(0, 1)).clamp_min(1)
    stakes = (ratios - 1) * advantages * weights

    def gains(mixture: Tensor) -> Tensor:
        factors = 1 + mixture.to(ratios) * (ratios - 1)
        others = torch.stack([_without(factors, agent) for agent in range(ratios.shape[2])], dim=2)
        return ((others * stakes).sum(dim=(0, 1)) / count).to("cpu", mixture.dtype)

    return gains


def equilibrium(gains: Gains, agents: int, sweeps: int = 10, plays: int = 300) -> Float[Tensor, "agents"]:
    """Compute an approximate Nash equilibrium: the probability of the new policy for each agent.

    At first all agents use their new policies. One agent after another then changes to its best response,
    in at most `sweeps` rounds. If the agents share their interests, these rounds end at a pure equilibrium.
    If no equilibrium is reached, fictitious play follows; `plays` is its number of rounds. Fictitious play
    converges for two agents (Miyasawa 1961).
    """
    mixture = torch.ones(agents)
    for _ in range(sweeps):
        previous = mixture.clone()
        for agent in range(agents):
            mixture[agent] = float(gains(mixture)[agent] >= 0)
        if torch.equal(mixture, previous):
            return mixture
    for play in range(1, plays + 1):
        mixture += ((gains(mixture) >= 0).to(mixture) - mixture) / (play + 1)
    return mixture


def regret(gains: Gains, mixture: Float[Tensor, "agents"]) -> float:
    """Return the largest gain that a single agent could make by deviating from the mixture."""
    gain = gains(mixture)
    return float(torch.maximum(gain * (1 - mixture), -gain * mixture).max())


def _without(factors: Tensor, agent: int) -> Tensor:
    return torch.cat([factors[:, :, :agent], factors[:, :, agent + 1 :]], dim=2).prod(dim=2)
