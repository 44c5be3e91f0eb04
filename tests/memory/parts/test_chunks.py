"""The chunk plan of a segment against a loop over its steps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.kernels import sink_slot
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.parts.chunks import compute_slot_steps, plan_chunks, push, take, written_slots


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1_000),
    chunk_size=st.integers(1, 5),
    num_chunks=st.integers(1, 4),
    before=st.lists(st.integers(0, 23), min_size=1, max_size=3),
    time=st.integers(1, 30),
    rate=st.sampled_from([0.0, 0.1, 0.6]),
)
def test_a_plan_is_what_a_loop_over_steps_finds(seed, chunk_size, num_chunks, before, time, rate):
    torch.manual_seed(seed)
    age = torch.tensor(before)
    start = torch.rand(len(before), time) < rate
    # A step is identified by its number in its row; steps before the segment are negative.
    chunks = [
        [
            list(range(first - age_of_row, first - age_of_row + chunk_size))
            for first in range(0, age_of_row // chunk_size * chunk_size, chunk_size)
        ]
        for age_of_row in before
    ]
    store = torch.zeros(len(before), num_chunks, chunk_size)
    for row, its in enumerate(chunks):
        for slot, chunk in enumerate(reversed(its[-num_chunks:])):
            store[row, -1 - slot] = torch.tensor(chunk, dtype=torch.float32)
    plan = plan_chunks(Clock.from_starts(age, start), chunk_size, num_chunks, chunk_size)
    history = torch.arange(-chunk_size, time).float().expand(len(before), -1)
    table = torch.cat([store[:, plan.num_unwritten :], take(history, plan.steps)], dim=1)
    for row, its in enumerate(chunks):
        open_chunk = list(range(-(before[row] % chunk_size), 0))
        for t in range(time):
            if start[row, t]:
                its.clear()
                open_chunk.clear()
            assert table[row][plan.readable[row, t]].tolist() == its[-num_chunks:]
            assert len(its[-num_chunks:]) <= plan.max_readable
            open_chunk.append(t)
            if len(open_chunk) == chunk_size:
                its.append(list(open_chunk))
                open_chunk.clear()
        after = plan.store(table, num_chunks)[row]
        empty = num_chunks - len(its[-num_chunks:])
        assert (after[:empty] == 0).all()
        assert after[empty:].tolist() == its[-num_chunks:]
        age_after = Clock.from_starts(age, start).age_after
        assert (
            written_slots(age_after, chunk_size, num_chunks)[row].long()
            == (torch.arange(num_chunks) >= empty)
        ).all()


def test_push_drops_the_oldest_item_of_the_selected_rows():
    store, item = torch.arange(6.0).view(2, 3), torch.tensor([10.0, 11.0])
    result = push(store, item, torch.tensor([True, False]))
    assert result.tolist() == [[1, 2, 10], [3, 4, 5]]
    assert push(store, item, torch.tensor([False, False])) is store


@pytest.mark.parametrize(("num_sinks", "window"), [(0, 1), (0, 5), (1, 1), (4, 3), (3, 8)])
def test_slots_hold_what_was_written_last(num_sinks, window):
    slots = torch.full((num_sinks + window,), -1)
    expected = [slots.clone()]
    for step in range(3 * (num_sinks + window)):
        slots[sink_slot(torch.tensor([step]), num_sinks, window)] = step
        expected.append(slots.clone())
    # One row per age.
    assert torch.equal(
        compute_slot_steps(torch.arange(len(expected)), num_sinks, window), torch.stack(expected)
    )


def test_slots_hold_the_first_steps_and_the_last():
    for count in range(40):
        slot_steps = compute_slot_steps(torch.tensor([count]), 3, 5)[0]
        steps = {step for step in range(count) if step < 3 or step >= count - 5}
        assert sorted(slot_steps[slot_steps >= 0].tolist()) == sorted(steps)
