"""The metagame of old and new policies."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from scrubjay.agents import GAMATR, GAMATRConfig
from scrubjay.agents.rl.trust_region import flatten
from scrubjay.agents.teams.metagame import equilibrium, game_gains, regret

from .games import make_policy, play


def test_the_metagame_follows_new_policies_that_all_profit_from() -> None:
    generator = torch.Generator().manual_seed(0)
    ratios = torch.rand(50, 4, 3, generator=generator) + 0.5
    advantages = (ratios - 1).sum(dim=2, keepdim=True).expand(-1, -1, 3)
    gains = game_gains(ratios, advantages, torch.ones(50, 4, 3))
    mixture = equilibrium(gains, 3)
    assert torch.equal(mixture, torch.ones(3))
    assert regret(gains, mixture) == 0


def test_the_metagame_stays_where_moving_hurts() -> None:
    generator = torch.Generator().manual_seed(0)
    ratios = torch.rand(50, 4, 2, generator=generator) + 0.5
    signs = torch.tensor([1.0, -1.0])
    gains = game_gains(ratios, (ratios - 1) * signs, torch.ones(50, 4, 2))
    assert torch.equal(equilibrium(gains, 2), torch.tensor([1.0, 0.0]))


def test_the_metagames_gains_are_those_of_listed_payoffs() -> None:
    generator = torch.Generator().manual_seed(0)
    ratios = torch.rand(30, 2, 3, generator=generator) + 0.5
    advantages = torch.randn(30, 2, 3, generator=generator)
    weights = torch.ones(30, 2, 3)
    mixture = torch.tensor([0.2, 0.9, 0.5])
    payoffs = torch.zeros(3, 2)  # of each agent when old and when new
    for bits in itertools.product((0, 1), repeat=3):
        likelihood = torch.stack(
            [ratios[:, :, m] if bit else torch.ones(30, 2) for m, bit in enumerate(bits)]
        )
        worth = (likelihood.prod(dim=0)[..., None] * advantages).mean(dim=(0, 1))
        for agent in range(3):
            chance = math.prod(
                float(mixture[m] if bit else 1 - mixture[m]) for m, bit in enumerate(bits) if m != agent
            )
            payoffs[agent, bits[agent]] += chance * worth[agent]
    gains = game_gains(ratios, advantages, weights)(mixture)
    torch.testing.assert_close(gains, payoffs[:, 1] - payoffs[:, 0])


def test_a_game_without_pure_equilibrium_is_mixed() -> None:
    # Matching pennies: the first gains where the second is new, the second where the first is old.
    def gains(mixture: Tensor) -> Tensor:
        return torch.stack([mixture[1] - 0.3, 0.6 - mixture[0]])

    mixture = equilibrium(gains, 2, plays=3000)
    torch.testing.assert_close(mixture, torch.tensor([0.6, 0.3]), atol=0.03, rtol=0)
    assert regret(gains, mixture) < 0.03


def test_metagame_goes_back_to_the_old_policy_bit_for_bit() -> None:
    # Independent steps towards agreement by switching: if both switch, nothing is won; the game lets one
    # stay.
    policy = make_policy(agents=2)
    for parameter in policy.actor_parameters():
        torch.nn.init.zeros_(parameter)
    before = [flatten(policy.actor_parameters(agent)).detach() for agent in range(2)]
    segment = play(
        policy, lambda actions: (actions[:, :, :1] != actions[:, :, 1:]).float().expand(actions.shape)
    )
    metrics = GAMATR(policy, GAMATRConfig(mode="metagame", kl_limit=0.5)).update(segment)
    shares = [not torch.equal(flatten(policy.actor_parameters(agent)), before[agent]) for agent in range(2)]
    assert metrics["metagame/mixture"] == pytest.approx(sum(shares) / 2)
    assert metrics["metagame/regret"] == 0
