"""MATRL's small game: how far each agent should follow its own step, given that the others follow theirs.

Wen et al. 2021 (arXiv 2106.06828). Every agent m has an old policy and the new one that its own trust region
gave. Mixing them by p_m, per action, makes the likelihood ratio `1 + p_m (r_m - 1)`, r_m that of the new
policy; so the gain of agent i under a mixture p is, on experience from the old policies, the mean of
`prod_m (1 + p_m (r_m - 1)) A_i`: linear in every p_m, so each agent has two pure strategies and all 2^N
payoffs need not be listed. Only abstracts of the paper were to be had; estimating payoffs on the batch is our
choice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from scrubjay.agents.rl.trust_region import TrustRegionStep, flatten, mean_kl, place
from scrubjay.agents.teams.batch import TeamBatch
from scrubjay.agents.teams.config import GAMATRSettings
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.agents.teams.steps import frozen, independent_steps

Gains = Callable[[Float[Tensor, "agents"]], Float[Tensor, "agents"]]


def metagame_steps(
    policy: TeamPolicy, batch: TeamBatch, config: GAMATRSettings
) -> tuple[list[TrustRegionStep], dict[str, float]]:
    """Take independent steps, then go back towards the old weights by the equilibrium of old against new.

    Mixed policies are approached by interpolating weights, which is the mixture to first order.
    """
    agents = range(policy.num_agents)
    before = [flatten(policy.actor_parameters(agent)).detach() for agent in agents]
    old = [frozen(partial(policy.distribution, batch.segment, agent)) for agent in agents]
    steps = independent_steps(policy, batch, config, agents)
    ratios = torch.stack(
        [batch.log_ratio(step.policy, agent).exp() for agent, step in enumerate(steps)], dim=2
    )
    gains = game_gains(ratios, batch.advantages, batch.weights)
    mixture = equilibrium(gains, policy.num_agents)
    for agent, share in enumerate(mixture.tolist()):
        if share == 1 or not steps[agent].accepted:
            continue
        parameters = policy.actor_parameters(agent)
        after = flatten(parameters).detach()
        limit = float(steps[agent].kl)
        for _ in range(config.backtracks + 1):
            place(parameters, before[agent].lerp(after, share) if share > 0 else before[agent])
            new = frozen(partial(policy.distribution, batch.segment, agent))
            kl = mean_kl(old[agent], new, batch.weights[:, :, agent])
            if kl <= limit:  # the rule; where the divergence is not convex along the line, shorten on
                break
            share *= config.shrink
        else:
            place(parameters, before[agent])
            kl, new, share = torch.zeros_like(kl), old[agent], 0.0
        steps[agent] = steps[agent]._replace(kl=kl, accepted=share > 0, policy=new)
    metrics = {"metagame/mixture": mixture.mean().item(), "metagame/regret": regret(gains, mixture)}
    return steps, metrics


def game_gains(
    ratios: Float[Tensor, "batch time agents"],
    advantages: Float[Tensor, "batch time agents"],
    weights: Float[Tensor, "batch time agents"],
) -> Gains:
    """Return the function that says, for a mixture, what each agent gains by being new rather than old."""
    count = weights.sum(dim=(0, 1)).clamp_min(1)
    stakes = (ratios - 1) * advantages * weights

    def gains(mixture: Tensor) -> Tensor:
        factors = 1 + mixture.to(ratios) * (ratios - 1)
        others = torch.stack([_without(factors, agent) for agent in range(ratios.shape[2])], dim=2)
        return ((others * stakes).sum(dim=(0, 1)) / count).to("cpu", mixture.dtype)

    return gains


def equilibrium(gains: Gains, agents: int, sweeps: int = 10, plays: int = 300) -> Float[Tensor, "agents"]:
    """Return shares of the new policies from which no agent gains by deviating, as far as plays bring it.

    Best responses in turn, from all new, end in a pure equilibrium where there is one on their way, always if
    the agents' interests agree. If they cycle, fictitious play follows; it converges for two agents (Miyasawa
    1961).
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
    """Return what the agent that would gain most by deviating from the mixture would gain."""
    gain = gains(mixture)
    return float(torch.maximum(gain * (1 - mixture), -gain * mixture).max())


def _without(factors: Tensor, agent: int) -> Tensor:
    return torch.cat([factors[:, :, :agent], factors[:, :, agent + 1 :]], dim=2).prod(dim=2)
