"""A model's own window or chunk, read at any cut and with padding, against one mask over everything."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.memory.context.layers.own import OwnWindow
from scrubjay.memory.context.parts.scoring import Scoring
from scrubjay.memory.context.policies.base import Step

LENGTH = 23


def step_of(time, begin, end):
    before, after = ((time[:, :column] >= 0).sum(dim=1) for column in (begin, end))
    own = time[:, begin:end]
    return Step(own, own, begin, before, after, bool((time < 0).any()), None)


def naive(query, keys, values, time, policy, scoring):
    column = torch.arange(LENGTH)
    age = column[:, None] - column
    seen = (age >= 0) & (age < policy.window) & (time >= 0)[:, None]
    if policy.chunked:
        seen &= time[:, :, None] // policy.window == time[:, None] // policy.window
    seen |= age == 0
    groups = keys.shape[1]
    scores = query.unflatten(1, (groups, -1)) @ keys[:, :, None].mT * scoring.scale
    if scoring.cap is not None:
        scores = scoring.cap * torch.tanh(scores / scoring.cap)
    scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
    weights = scores.exp()
    total = weights.sum(dim=-1, keepdim=True)
    if scoring.sinks is not None:
        total = total + scoring.sinks.exp().view(groups, -1, 1, 1)
    return ((weights / total) @ values[:, :, None]).flatten(1, 2)


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("special", [False, True])
@given(
    st.lists(st.integers(1, LENGTH - 1), max_size=8),
    st.integers(1, LENGTH + 3),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_it_reads_what_the_mask_lets_it_see(special, padding, cuts, window, chunked, grad):
    torch.manual_seed(0)
    query = torch.randn(2, 4, LENGTH, 8, dtype=torch.float64)
    keys, values = (torch.randn(2, 2, LENGTH, 8, dtype=torch.float64) for _ in range(2))
    column = torch.arange(LENGTH)
    time = torch.stack([column - padding, column])
    time = torch.where(time < 0, -1, time)
    policy = OwnWindow(window, chunked)
    sinks = torch.randn(4, dtype=torch.float64)
    scoring = Scoring(0.3, 1.5, sinks) if special else Scoring(0.3)
    memory, out, begin = policy.build(), [], 0
    with torch.set_grad_enabled(grad):
        for end in [*sorted(set(cuts)), LENGTH]:
            query_, keys_, values_ = (x[:, :, begin:end] for x in (query, keys, values))
            out.append(memory.attend(query_, keys_, values_, step_of(time, begin, end), scoring))
            begin = end
    torch.testing.assert_close(torch.cat(out, dim=2), naive(query, keys, values, time, policy, scoring))
    held = memory.state["keys"].shape[2]
    assert held == min(window, LENGTH)
    again = policy.build()
    again.restore(memory.saved())
    assert again.saved()["time"].tolist() == time[:, LENGTH - held :].tolist()


def test_what_is_dropped_does_not_come_back():
    memory = OwnWindow(4).build()
    time = torch.arange(LENGTH)[None]
    x = torch.randn(1, 1, LENGTH, 8)
    memory.attend(x[:, :, :3], x[:, :, :3], x[:, :, :3], step_of(time, 0, 3), Scoring(1.0))
    memory.crop(1, torch.tensor([3]))
    assert memory.state["time"].tolist() == [[0, 1]]
    memory.attend(x[:, :, 2:6], x[:, :, 2:6], x[:, :, 2:6], step_of(time, 2, 6), Scoring(1.0))
    with pytest.raises(ValueError, match="own window of 4"):
        memory.crop(1, torch.tensor([6]))
