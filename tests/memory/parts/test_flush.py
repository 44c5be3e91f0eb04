"""A flush plan keeps every step and separates episodes."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.memory.parts.flush import FlushPlan


@given(batch=st.integers(1, 6), time=st.integers(1, 30), rate=st.floats(0, 1), seed=st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_a_plan_flushes_right_before_every_start_and_loses_no_step(batch, time, rate, seed):
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(batch, time, generator=generator) < rate
    plan = FlushPlan.from_starts(start)
    flushes = start[:, 1:].sum(dim=1)
    if plan is None:
        assert not flushes.any()
        return
    longest = time + int(flushes.max())
    expected = torch.zeros(longest, batch, 4)
    for b in range(batch):
        place = 0
        for t in range(time):
            if t > 0 and start[b, t]:
                expected[place, b, 2] = 1
                place += 1
            expected[place, b, 0] = 1 + b * time + t
            expected[place, b, 1] = 1
            place += 1
        expected[place:, b, 3] = 1
    x = 1 + torch.arange(batch * time, dtype=torch.float32).view(batch, time, 1)
    assert torch.equal(plan.expand(x), expected)
    assert torch.equal(plan.collect(expected[..., :1]), x)
