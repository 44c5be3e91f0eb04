"""Clipped policy-gradient updates of a team's actors: MAPPO and HAPPO."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scrubjay.agents.teams.batch import TeamBatch
from scrubjay.agents.teams.config import GAMATRSettings
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.agents.teams.steps import likelihood_ratio


def clipped_steps(
    policy: TeamPolicy,
    batch: TeamBatch,
    config: GAMATRSettings,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Update all actors together on the clipped loss: MAPPO (Yu et al. 2022, arXiv 2103.01955)."""
    _descend(policy, batch, config, optimizer, generator, None, batch.advantages)


def clipped_sequence(
    policy: TeamPolicy,
    batch: TeamBatch,
    config: GAMATRSettings,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Update one actor after another on the clipped loss, in random order: HAPPO (arXiv 2109.11251).

    The advantages of an agent are multiplied by the policy ratios of all agents that were updated before.
    """
    order = torch.randperm(policy.num_agents, generator=generator).tolist()
    for position, agent in enumerate(order):
        factor = torch.ones_like(batch.weights[:, :, agent])
        for earlier in order[:position]:  # recomputed, since a shared actor has changed
            factor = factor * likelihood_ratio(policy, batch, earlier)
        _descend(policy, batch, config, optimizer, generator, agent, batch.advantages[:, :, agent] * factor)


def _descend(
    policy: TeamPolicy,
    batch: TeamBatch,
    config: GAMATRSettings,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    agent: int | None,
    advantages: Tensor,
) -> None:
    parameters = policy.actor_parameters(agent)
    for _ in range(config.epochs):
        for index in torch.randperm(batch.segment.num_rows, generator=generator).tensor_split(
            config.minibatches
        ):
            index = index.to(advantages.device)
            part, gains = batch.rows(index), advantages[index]
            distribution = policy.distribution(part.segment, agent)
            ratios = part.log_ratio(distribution, agent).exp()
            clipped_ratios = ratios.clamp(1 - config.clip, 1 + config.clip)
            loss = -part.mean(torch.minimum(ratios * gains, clipped_ratios * gains), agent)
            loss = loss - config.entropy_coefficient * part.mean(distribution.entropy(), agent)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            optimizer.step()
