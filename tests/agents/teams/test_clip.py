"""Clipped updates, of all agents together and of one agent after another."""

from __future__ import annotations

import pytest
import torch

from scrubjay.agents import GAMATR, GAMATRConfig
from scrubjay.agents.rl.trust_region import flatten
from scrubjay.agents.teams.steps import ModeContext, clipped_sequence, clipped_steps

from .games import climbing, make_policy, play

CONFIG = GAMATRConfig(mode="clip", epochs=1, minibatches=1)


def descend(way, **config):
    """Return the actors' weights before and after one clipped update with SGD, the policy and the batch."""
    policy = make_policy(agents=2)
    batch = GAMATR(policy, CONFIG).batch(play(policy, climbing))
    before = flatten(policy.actor_parameters()).detach()
    optimizer = torch.optim.SGD(policy.actor_parameters(), lr=1e-2)
    settings = GAMATRConfig(**{"mode": "clip", "epochs": 1, "minibatches": 1} | config)
    way(ModeContext(policy, batch, settings, range(2), torch.Generator().manual_seed(0), optimizer))
    return before, flatten(policy.actor_parameters()).detach(), policy, batch


def test_the_first_step_is_the_plain_policy_gradient() -> None:
    # Nothing is clipped yet where the ratio is 1.
    before, after, *_ = descend(clipped_steps, max_grad_norm=1e9)
    policy = make_policy(agents=2)
    batch = GAMATR(policy, CONFIG).batch(play(policy, climbing))
    score = policy.distribution(batch.segment).log_prob(batch.segment.actions)
    gradient = torch.autograd.grad(batch.mean(score * batch.advantages), policy.actor_parameters())
    torch.testing.assert_close(after - before, 1e-2 * flatten(list(gradient)), rtol=1e-3, atol=1e-6)


def test_gradients_are_shortened_to_their_norm() -> None:
    before, after, *_ = descend(clipped_steps, max_grad_norm=1e-3)
    torch.testing.assert_close((after - before).norm(), torch.tensor(1e-5), rtol=1e-2, atol=0)


@pytest.mark.slow
def test_what_has_moved_beyond_the_clip_is_pushed_no_further() -> None:
    *_, policy, batch = descend(clipped_steps, epochs=400, clip=1e-3, max_grad_norm=1e9)
    ratios = batch.log_ratio(policy.distribution(batch.segment)).exp()
    *_, freer, batch = descend(clipped_steps, epochs=400, clip=0.5, max_grad_norm=1e9)
    further = batch.log_ratio(freer.distribution(batch.segment)).exp()
    assert (ratios - 1).abs().mean() < 0.5 * (further - 1).abs().mean()


def test_a_sequence_moves_every_actor() -> None:
    *_, policy, _ = descend(clipped_sequence)
    start = make_policy(agents=2)
    for agent in range(2):
        change = flatten(policy.actor_parameters(agent)) - flatten(start.actor_parameters(agent))
        assert change.abs().max() > 0
