"""Chunk summaries and writing steps, both deprecated, compared with loops over single steps."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.kernels import chunk_summary, write_steps

KINDS: list[Any] = ["mean", "last", "max"]
pytestmark = pytest.mark.filterwarnings("ignore:kernels:DeprecationWarning")


def summary(steps, kind) -> Any:
    """Return the summary of steps `[count, width]`; count is at least 1."""
    if kind == "mean":
        return sum(steps[1:], steps[0]) / len(steps)
    if kind == "last":
        return steps[-1]
    best = steps[0]
    for step in steps[1:]:
        best = torch.where(step > best, step, best)
    return best


def gradients(outputs, inputs):
    weights = [torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out) for out in outputs]
    return torch.autograd.grad(outputs, inputs, weights, materialize_grads=True)


def draw(seed, *shape):
    """Return random integers with many equal maxima."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, shape, generator=generator).double()


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 999), whole=st.booleans())
def test_summaries_are_of_the_first_steps_alone(kind, seed, whole):
    contents = draw(seed, 2, 3, 4, 2, 5)
    lengths = torch.randint(0, 6, (2, 3), generator=torch.Generator().manual_seed(seed))
    if whole:
        lengths = torch.full((2, 3), 4)
    else:
        contents[torch.arange(4) >= lengths[..., None]] = math.nan
    contents.requires_grad_()
    out = chunk_summary(contents, None if whole else lengths, kind=kind)
    rows = [
        [
            summary(list(contents[b, m, : lengths[b, m]]), kind) if lengths[b, m] else torch.zeros(2, 5)
            for m in range(3)
        ]
        for b in range(2)
    ]
    expected = torch.stack([torch.stack([cell.double() for cell in row]) for row in rows])
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients([out], contents), gradients([expected], contents))


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 999),
    steps=st.integers(0, 20),
    cut=st.integers(1, 9),
    in_place=st.booleans(),
)
def test_a_ring_holds_the_present_chunks(kind, seed, steps, cut, in_place):
    chunks, length = 3, 4
    generator = torch.Generator().manual_seed(seed)
    x, contents, summaries = draw(seed, 2, steps, 2), draw(seed + 1, 2, 3, 4, 2), draw(seed + 2, 2, 3, 2)
    start = torch.rand(2, steps, generator=generator) < 0.2
    store, table, clock = contents.clone(), summaries.clone(), torch.zeros(2, dtype=torch.long)
    for b in range(2):
        present: list[torch.Tensor] = []
        for t in range(steps):
            if start[b, t]:
                clock[b] = 0
            slot, offset = int(clock[b]) // length % chunks, int(clock[b]) % length
            present = [x[b, t]] if offset == 0 else [*present, x[b, t]]
            store[b, slot, offset] = x[b, t]
            table[b, slot] = summary(present, kind)
            clock[b] += 1
    result: Any = (contents.clone(), summaries.clone(), torch.zeros(2, dtype=torch.long))
    for first in range(0, steps, cut):
        piece = slice(first, first + cut)
        previous = result
        result = write_steps(
            *previous[:2], x[:, piece], previous[2], start[:, piece], kind=kind, in_place=in_place
        )
        assert (result[0] is previous[0]) is in_place
    for value, right in zip(result, (store, table, clock), strict=True):
        torch.testing.assert_close(value, right)


@pytest.mark.parametrize("kind", KINDS)
def test_writing_is_differentiable(kind):
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 2, 3, 2), (1, 2, 2), (1, 7, 2))
    tensors = [torch.randn(*s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    start = torch.tensor([[False, False, True, False, False, False, False]])
    assert torch.autograd.gradcheck(
        lambda contents, summaries, x: write_steps(
            contents, summaries, x, torch.tensor([4]), start, kind=kind
        )[:2],
        tensors,
    )


def test_mistakes_are_named_and_both_functions_warn_of_their_removal():
    contents, x, time = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 4), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match="kind='sum'"):
        chunk_summary(contents, kind="sum")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="contents have shape"):
        chunk_summary(contents[0])
    with pytest.raises(ValueError, match="do not match"):
        write_steps(contents, contents[:, :, 0], x[..., :3], time)
    with pytest.raises(ValueError, match="would lose a gradient"):
        write_steps(contents, contents[:, :, 0], x.requires_grad_(), time, in_place=True)
    with pytest.warns(DeprecationWarning, match=r"contents\.mean"):
        chunk_summary(contents)
    with pytest.warns(DeprecationWarning, match="write_steps is deprecated"):
        write_steps(contents, contents[:, :, 0], x.detach(), time)
