"""The chunk plan of a segment against a loop over its steps."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.parts.chunks import plan_chunks, push, take, written_slots


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
