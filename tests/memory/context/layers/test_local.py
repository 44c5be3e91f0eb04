"""A model's own window or chunks, for any split into calls and with padding, against one full mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.memory.context.layers.local import LocalWindowPolicy
from scrubjay.memory.context.policies.base import Step
from scrubjay.memory.context.policies.dense import Scoring

pytestmark = pytest.mark.requires("transformers")

LENGTH = 23


def step_of(time, begin, end):
    before, after = ((time[:, :column] >= 0).sum(dim=1) for column in (begin, end))
    own = time[:, begin:end]
    return Step(own, own, begin, before, after, bool((time < 0).any()), None)


def naive(query, keys, values, time, policy, scoring):
    column = torch.arange(LENGTH)
    age = column[:, None] - column
    visible = (age >= 0) & (age < policy.window) & (time >= 0)[:, None]
    if policy.is_chunked:
        visible &= time[:, :, None] // policy.window == time[:, None] // policy.window
    visible |= age == 0
    groups = keys.shape[1]
    scores = query.unflatten(1, (groups, -1)) @ keys[:, :, None].mT * scoring.scale
    if scoring.cap is not None:
        scores = scoring.cap * torch.tanh(scores / scoring.cap)
    scores = scores.masked_fill(~visible[:, None, None], float("-inf"))
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
def test_local_attention_equals_masked_attention(special, padding, cuts, window, is_chunked, grad):
    torch.manual_seed(0)
    query = torch.randn(2, 4, LENGTH, 8, dtype=torch.float64)
    keys, values = (torch.randn(2, 2, LENGTH, 8, dtype=torch.float64) for _ in range(2))
    column = torch.arange(LENGTH)
    time = torch.stack([column - padding, column])
    time = torch.where(time < 0, -1, time)
    policy = LocalWindowPolicy(window, is_chunked)
    sinks = torch.randn(4, dtype=torch.float64)
    scoring = Scoring(0.3, 1.5, sinks) if special else Scoring(0.3)
    memory, out, begin = policy.build(), [], 0
    with torch.set_grad_enabled(grad):
        for end in [*sorted(set(cuts)), LENGTH]:
            query_, keys_, values_ = (x[:, :, begin:end] for x in (query, keys, values))
            out.append(memory.attend(query_, keys_, values_, step_of(time, begin, end), scoring))
            begin = end
    torch.testing.assert_close(torch.cat(out, dim=2), naive(query, keys, values, time, policy, scoring))
    columns = memory.state["keys"].shape[2]
    assert columns == min(window, LENGTH)
    again = policy.build()
    again.load_state_dict(memory.state_dict())
    assert again.state_dict()["time"].tolist() == time[:, LENGTH - columns :].tolist()


def test_crop_raises_after_eviction():
    memory = LocalWindowPolicy(4).build()
    time = torch.arange(LENGTH)[None]
    x = torch.randn(1, 1, LENGTH, 8)
    memory.attend(x[:, :, :3], x[:, :, :3], x[:, :, :3], step_of(time, 0, 3), Scoring(1.0))
    memory.crop(1, torch.tensor([3]))
    assert memory.state["time"].tolist() == [[0, 1]]
    memory.attend(x[:, :, 2:6], x[:, :, 2:6], x[:, :, 2:6], step_of(time, 2, 6), Scoring(1.0))
    with pytest.raises(ValueError, match="own window of 4"):
        memory.crop(1, torch.tensor([6]))
