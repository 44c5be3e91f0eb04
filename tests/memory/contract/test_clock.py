"""The clock against a loop that walks through every row and counts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.memory.contract.clock import Clock, latest

SEGMENTS = st.integers(1, 4).flatmap(
    lambda rows: st.integers(1, 17).flatmap(
        lambda time: st.tuples(
            st.lists(st.integers(0, 40), min_size=rows, max_size=rows),
            st.lists(st.lists(st.booleans(), min_size=time, max_size=time), min_size=rows, max_size=rows),
        )
    )
)


def walked(age: int, starts: list[bool], size: int) -> dict[str, list[int]]:
    """One row, step by step."""
    told: dict[str, list[int]] = {
        name: [] for name in ("stream", "birth", "step", "episode", "chunk", "place", "latest")
    }
    step, episode, birth, last = age, 0, 0, -1
    for t, start in enumerate(starts):
        if start:
            step, episode, birth, last = 0, episode + 1, age + t, t
        now = {"stream": age + t, "birth": birth, "step": step, "episode": episode, "latest": last}
        now |= {"chunk": step // size, "place": step % size}
        for name, value in now.items():
            told[name].append(value)
        step += 1
    return told | {"after": [step]}


@given(segment=SEGMENTS, size=st.integers(1, 7))
def test_a_loop_counts_the_same(segment, size):
    age, start = torch.tensor(segment[0]), torch.tensor(segment[1])
    clock = Clock.of(age, start)
    found = {name: getattr(clock, name) for name in ("stream", "birth", "step", "episode")}
    found |= {"chunk": clock.chunk(size), "place": clock.place(size)}
    found |= {"after": clock.after[:, None], "latest": latest(start)}
    rows = [walked(row_age, starts, size) for row_age, starts in zip(*segment, strict=True)]
    for name, value in found.items():
        assert value.dtype == torch.int64
        assert value.tolist() == [row[name] for row in rows], name


@given(segment=SEGMENTS)
def test_without_starts_it_is_the_clock_of_none(segment):
    age, none = torch.tensor(segment[0]), torch.zeros_like(torch.tensor(segment[1]))
    silent, clock = Clock.running(age, none.shape[1]), Clock.of(age, none)
    for name in ("stream", "birth", "step", "episode", "after"):
        assert torch.equal(getattr(silent, name), getattr(clock, name)), name


@given(segment=SEGMENTS, data=st.data())
def test_a_segment_in_two_has_the_times_of_the_whole(segment, data):
    age, start = torch.tensor(segment[0]), torch.tensor(segment[1])
    cut = data.draw(st.integers(1, start.shape[1]))
    whole, first = Clock.of(age, start), Clock.of(age, start[:, :cut])
    assert torch.equal(first.step, whole.step[:, :cut])
    if cut < start.shape[1]:
        second = Clock.of(first.after, start[:, cut:])
        assert torch.equal(second.step, whole.step[:, cut:])
        assert torch.equal(second.after, whole.after)


@pytest.mark.parametrize("starts", [True, False])
def test_it_can_be_traced(starts):
    def times(age, start):
        clock = Clock.of(age, start) if starts else Clock.running(age, start.shape[1])
        return clock.step, clock.birth, clock.after

    age, start = torch.tensor([3, 0, 7]), torch.tensor([[False, True], [True, False], [False, False]])
    compiled = torch.compile(times, fullgraph=True, backend="eager")
    for found, expected in zip(compiled(age, start), times(age, start), strict=True):
        assert torch.equal(found, expected)
