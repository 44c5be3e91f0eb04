"""Where the steps of a segment go in a ring."""

import pytest
import torch

from scrubjay.kernels.summary.vectorised import plan_writes, rows_of, surviving


@pytest.mark.parametrize("steps", [2, 7, 40])
@pytest.mark.parametrize("starts", [False, True])
def test_the_plan_is_what_writing_one_by_one_leaves(steps, starts):
    generator = torch.Generator().manual_seed(steps)
    chunks, length = 3, 4
    time = torch.tensor([0, 5, 30])
    start = torch.rand(3, steps, generator=generator) < 0.2 if starts else None
    plan = plan_writes(time, start, steps, chunks, length)
    assert plan.source is not None
    assert plan.survives is not None
    for b in range(3):
        clock, places, last = int(time[b]), {}, {}
        for t in range(steps):
            clock = 0 if start is not None and start[b, t] else clock
            slot, offset = clock // length % chunks, clock % length
            assert (plan.slot[b, t], plan.offset[b, t]) == (slot, offset)
            places[slot, offset], last[slot] = t, t
            clock += 1
        assert plan.time[b] == clock
        for entry, slot in enumerate(plan.touched[b].tolist()):
            assert plan.last[b, entry] == last.get(slot, -1)
            held = [places.get((slot, offset), -1) for offset in range(length)]
            assert plan.source[b, entry].tolist() == held
        alive = plan.survives[b].nonzero().flatten().tolist()
        assert sorted(places.values()) == alive
    # Those that survive have each a row of their own, and the others are zeroed.
    rows = rows_of(plan, chunks, length)[plan.survives.flatten()]
    assert len(rows.unique()) == len(rows)
    assert torch.equal(surviving(torch.ones(3, steps, 1), plan)[..., 0] == 1, plan.survives)
