"""The clock against a loop over the steps of every row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.memory.contract.clock import Clock, last_marked

SEGMENTS = st.integers(1, 4).flatmap(
    lambda rows: st.integers(1, 17).flatmap(
        lambda time: st.tuples(
            st.lists(st.integers(0, 40), min_size=rows, max_size=rows),
            st.lists(st.lists(st.booleans(), min_size=time, max_size=time), min_size=rows, max_size=rows),
        )
    )
)


def count_steps(age: int, starts: list[bool], size: int) -> dict[str, list[int]]:
    """Return the times of one row, step by step."""
    times: dict[str, list[int]] = {
        name: [] for name in ("stream", "episode_start", "step", "episode", "chunk", "position", "last_start")
    }
    step, episode, episode_start, last = age, 0, 0, -1
    for t, start in enumerate(starts):
        if start:
            step, episode, episode_start, last = 0, episode + 1, age + t, t
        now = {
            "stream": age + t,
            "episode_start": episode_start,
            "step": step,
            "episode": episode,
            "last_start": last,
        }
        now |= {"chunk": step // size, "position": step % size}
        for name, value in now.items():
            times[name].append(value)
        step += 1
    return times | {"after": [step]}


@given(segment=SEGMENTS, size=st.integers(1, 7))
def test_a_loop_counts_the_same(segment, size):
    age, start = torch.tensor(segment[0]), torch.tensor(segment[1])
    clock = Clock.from_starts(age, start)
    actual = {name: getattr(clock, name) for name in ("stream", "episode_start", "step", "episode")}
    actual |= {"chunk": clock.chunk_index(size), "position": clock.chunk_position(size)}
    actual |= {"after": clock.age_after[:, None], "last_start": last_marked(start)}
    rows = [count_steps(row_age, starts, size) for row_age, starts in zip(*segment, strict=True)]
    for name, value in actual.items():
        assert value.dtype == torch.int64
        assert value.tolist() == [row[name] for row in rows], name


@given(segment=SEGMENTS)
def test_without_starts_it_is_the_clock_of_none(segment):
    age, none = torch.tensor(segment[0]), torch.zeros_like(torch.tensor(segment[1]))
    without_starts, clock = Clock.from_age(age, none.shape[1]), Clock.from_starts(age, none)
    for name in ("stream", "episode_start", "step", "episode", "age_after"):
        assert torch.equal(getattr(without_starts, name), getattr(clock, name)), name


@given(segment=SEGMENTS, data=st.data())
def test_a_segment_in_two_has_the_times_of_the_whole(segment, data):
    age, start = torch.tensor(segment[0]), torch.tensor(segment[1])
    cut = data.draw(st.integers(1, start.shape[1]))
    whole, first = Clock.from_starts(age, start), Clock.from_starts(age, start[:, :cut])
    assert torch.equal(first.step, whole.step[:, :cut])
    if cut < start.shape[1]:
        second = Clock.from_starts(first.age_after, start[:, cut:])
        assert torch.equal(second.step, whole.step[:, cut:])
        assert torch.equal(second.age_after, whole.age_after)


@pytest.mark.parametrize("starts", [True, False])
def test_it_can_be_traced(starts):
    def times(age, start):
        clock = Clock.from_starts(age, start) if starts else Clock.from_age(age, start.shape[1])
        return clock.step, clock.episode_start, clock.age_after

    age, start = torch.tensor([3, 0, 7]), torch.tensor([[False, True], [True, False], [False, False]])
    compiled_times = torch.compile(times, fullgraph=True, backend="eager")
    for actual, expected in zip(compiled_times(age, start), times(age, start), strict=True):
        assert torch.equal(actual, expected)
