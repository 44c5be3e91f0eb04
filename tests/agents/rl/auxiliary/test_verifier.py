"""The verifier on solvable cases: features that determine the future identify it, others guess."""

import math

import pytest
import torch
from gymnasium import spaces

from scrubjay.agents.rl.auxiliary.verifier import Verifier

from .test_next_observation import make_segment


def make_constant_segment(numbers, time):
    """Return a segment in which each environment shows its number at every step of one episode."""
    places = torch.as_tensor(numbers)[:, None].expand(-1, time).contiguous()
    starts = torch.zeros(places.shape, dtype=torch.bool)
    starts[:, 0] = True
    return make_segment(places, torch.zeros_like(places), starts)


def one_hot(numbers, time):
    return torch.nn.functional.one_hot(torch.as_tensor(numbers), 16).float()[:, None].expand(-1, time, -1)


def verifier(batch):
    torch.manual_seed(0)
    return Verifier(spaces.Discrete(batch), spaces.Discrete(2), 16)


def fit(features, segment):
    head = verifier(len(segment.starts))
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-2)
    for _ in range(120):
        optimizer.zero_grad()
        loss = head(features, segment)
        loss.backward()
        optimizer.step()
    return loss.item()


def test_who_kept_it_tells_its_own_future_from_that_of_others():
    segment = make_constant_segment(range(8), 20)
    assert fit(one_hot(range(8), 20), segment) < 0.05
    # The same for all rows says of none which is its own, however long one learns.
    assert fit(torch.ones(8, 20, 16), segment) == pytest.approx(math.log(8), abs=1e-3)


def test_rows_that_show_the_same_cannot_be_told_apart():
    twice = [0, 0, 1, 1, 2, 2, 3, 3]
    assert fit(one_hot(twice, 20), make_constant_segment(twice, 20)) == pytest.approx(math.log(2), abs=0.05)


def test_steps_are_asked_for_what_follows_in_their_episode():
    segment = make_constant_segment(range(3), 12)
    segment.starts[1, 6] = True
    features = torch.randn(3, 12, 16, requires_grad=True)
    has_gradient = torch.autograd.grad(verifier(3)(features, segment), features)[0].abs().sum(-1) > 0
    # One and four steps later lie within; sixteen do not.
    assert has_gradient[0].tolist() == [True] * 11 + [False]
    assert has_gradient[1].tolist() == [True] * 5 + [False] + [True] * 5 + [False]


@pytest.mark.parametrize(("batch", "time"), [(1, 12), (3, 1)])
def test_alone_or_without_a_future_it_costs_nothing(batch, time):
    head = verifier(batch)
    features = torch.randn(batch, time, 16, requires_grad=True)
    loss = head(features, make_constant_segment(range(batch), time))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, features)[0].any()
