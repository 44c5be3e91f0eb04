"""Triton's chunk summaries against the definition, under the interpreter."""

from typing import Any

import pytest
import torch
from torch.library import opcheck

from scrubjay.kernels import summary
from scrubjay.kernels.dispatch import force
from scrubjay.kernels.summary import gpu
from scrubjay.kernels.summary.op import chunk_summary, write_steps

KINDS: list[Any] = ["mean", "last", "max"]
DTYPES = [torch.float32, torch.float16]
NAMES = ("contents", "summaries", "x")
SIZES = [
    {"batch": 2, "chunks": 3, "length": 7, "steps": 20, "width": 40},
    {"batch": 2, "chunks": 2, "length": 4, "steps": 30, "width": 5},  # wraps three times
    {"batch": 3, "chunks": 5, "length": 1, "steps": 4, "width": 3},
    {"batch": 1, "chunks": 1, "length": 70, "steps": 75, "width": 65},  # two blocks of steps
    {"batch": 1, "chunks": 2, "length": 3, "steps": 5, "width": 130},  # two blocks of width
    {"batch": 3, "chunks": 4, "length": 5, "steps": 1, "width": 40},
    {"batch": 1, "chunks": 1, "length": 1, "steps": 1, "width": 1},
]


def name_sizes(sizes) -> str:
    return "-".join(f"{name[0].upper()}{size}" for name, size in sizes.items())


def draw(sizes, dtype=torch.float32, starts=0.15, seed=0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    batch, chunks, length, steps, width = sizes.values()

    def values(*shape):
        # Few distinct values, so that maxima are often equal.
        return (torch.randint(-6, 7, shape, generator=generator) / 4).to(dtype)

    return {
        "contents": values(batch, chunks, length, width).requires_grad_(),
        "summaries": values(batch, chunks, width).requires_grad_(),
        "x": values(batch, steps, width).requires_grad_(),
        "time": torch.randint(0, 3 * chunks * length, (batch,), generator=generator),
        "start": torch.rand(batch, steps, generator=generator) < starts,
    }


def draw_lengths(sizes, seed=0) -> torch.Tensor:
    shape = (sizes["batch"], sizes["chunks"])
    return torch.randint(0, sizes["length"] + 2, shape, generator=torch.Generator().manual_seed(seed))


def with_gradients(outputs, inputs) -> list[torch.Tensor]:
    differentiable = [out for out in outputs if out.is_floating_point()]
    weights = [torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out) for out in differentiable]
    return [*outputs, *torch.autograd.grad(differentiable, inputs, weights, materialize_grads=True)]


def assert_same(found, wanted) -> None:
    for one, other in zip(found, wanted, strict=True):
        tolerance = 2e-3 if one.dtype == torch.float16 else 1e-5
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def check_summaries(sizes, kind, dtype, lengths) -> None:
    contents = draw(sizes, dtype)["contents"]
    results = {
        path: with_gradients([chunk_summary(contents, lengths, kind=kind, implementation=path)], [contents])
        for path in ("triton", "torch")
    }
    assert_same(results["triton"], results["torch"])
    with torch.no_grad():
        assert_same(
            results["triton"][:1], [chunk_summary(contents, lengths, kind=kind, implementation="reference")]
        )


def check_writing(sizes, kind, dtype, **options) -> None:
    arguments = draw(sizes, dtype, **options)
    inputs = [arguments[name] for name in NAMES]
    results = {
        path: with_gradients(write_steps(**arguments, kind=kind, implementation=path), inputs)
        for path in ("triton", "reference")
    }
    assert_same(results["triton"], results["reference"])


@pytest.mark.parametrize("sizes", SIZES, ids=name_sizes)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("poisoned")
def test_summaries_equal_the_definition(kind, dtype, sizes):
    check_summaries(sizes, kind, dtype, draw_lengths(sizes))
    check_summaries(sizes, kind, dtype, None)


@pytest.mark.parametrize("sizes", SIZES, ids=name_sizes)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("poisoned")
def test_writing_equals_the_definition(kind, dtype, sizes):
    check_writing(sizes, kind, dtype)
    check_writing(sizes, kind, dtype, starts=0.0, seed=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("poisoned")
def test_steps_beyond_the_length_may_hold_nan_and_nan_within_shows(kind):
    sizes = SIZES[0]
    contents, lengths = draw(sizes)["contents"].detach(), draw_lengths(sizes)
    clean = chunk_summary(contents, lengths, kind=kind, implementation="triton")
    contents[torch.arange(7) >= lengths[..., None]] = float("nan")
    assert torch.equal(chunk_summary(contents, lengths, kind=kind, implementation="triton"), clean)
    contents.requires_grad_()
    found = with_gradients([chunk_summary(contents, None, kind=kind, implementation="triton")], [contents])
    wanted = with_gradients([chunk_summary(contents, None, kind=kind, implementation="torch")], [contents])
    torch.testing.assert_close(found, wanted, equal_nan=True)


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("poisoned")
def test_nan_is_neither_spread_nor_hidden_by_writing(kind, steps):
    arguments: dict[str, Any] = {
        "contents": torch.full((2, 4, 3, 2), float("nan")),
        "summaries": torch.full((2, 4, 2), float("nan")),
        "x": torch.arange(2.0 * steps * 2).view(2, steps, 2),
        "time": torch.tensor([3, 19]),
    }
    arguments["x"][0, 0, 0] = float("nan")
    found = write_steps(**arguments, kind=kind, implementation="triton")
    torch.testing.assert_close(
        found, write_steps(**arguments, kind=kind, implementation="reference"), equal_nan=True
    )


@pytest.mark.parametrize("steps", [1, 9])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("poisoned")
def test_in_place_writes_through_views_and_equals_the_functional(kind, steps):
    arguments = draw({"batch": 2, "chunks": 3, "length": 4, "steps": steps, "width": 6})
    expected = write_steps(**arguments, kind=kind, implementation="reference")
    store = torch.zeros(4, 5, 2, 4, 6)
    contents, summaries = store[::2, 1:4, 1], torch.zeros(2, 3, 2, 6)[:, :, 1]
    with torch.no_grad(), force("triton"):
        contents.copy_(arguments["contents"])
        summaries.copy_(arguments["summaries"])
        x = arguments["x"].mT.contiguous().mT
        rest = (x, arguments["time"].int(), arguments["start"])
        out = write_steps(contents, summaries, *rest, kind=kind, in_place=True)
    assert out[0] is contents
    assert out[1] is summaries
    assert out[2].dtype == torch.int32
    assert_same((*out[:2], out[2].long()), expected)
    assert store[:, :, 0].count_nonzero() == store[1::2].count_nonzero() == 0
    across = contents.mT.contiguous().mT
    with pytest.raises(ValueError, match="last dimension must be contiguous"):
        write_steps(across, summaries, x.detach(), *rest[1:], in_place=True, implementation="triton")


@pytest.mark.parametrize("steps", [1, 9])
@pytest.mark.usefixtures("poisoned")
def test_half_precision_contents_keep_float32_summaries(steps):
    arguments = draw({"batch": 2, "chunks": 3, "length": 4, "steps": steps, "width": 6}, torch.float16)
    arguments["summaries"] = arguments["summaries"].detach().float()
    out = write_steps(**arguments, implementation="triton")
    assert (out[0].dtype, out[1].dtype) == (torch.float16, torch.float32)
    assert_same(out, write_steps(**arguments, implementation="reference"))


@pytest.mark.parametrize("kind", ["max"])  # on the other paths, in test_chunk_summary.py, every kind
def test_the_ops_are_registered_as_torch_wants_them(kind):
    sizes = {"batch": 2, "chunks": 2, "length": 3, "steps": 4, "width": 2}
    arguments, lengths = draw(sizes), draw_lengths(sizes)
    contents = arguments["contents"]
    opcheck(torch.ops.scrubjay.chunk_summary, (contents, lengths, kind, "triton"))
    grad = torch.randn(2, 2, 2)
    opcheck(torch.ops.scrubjay.chunk_summary_backward, (grad, contents.detach(), lengths, kind))
    opcheck(torch.ops.scrubjay.write_steps, (*arguments.values(), kind, "triton"))
    cache = [value.detach() for value in arguments.values()]
    opcheck(torch.ops.scrubjay.write_steps_, (*cache, kind, "triton"))


def test_a_second_derivative_of_a_summary_is_refused_and_of_writing_is_right():
    arguments = draw({"batch": 1, "chunks": 2, "length": 3, "steps": 4, "width": 2})
    out = chunk_summary(arguments["contents"], implementation="triton")
    (first,) = torch.autograd.grad(out.square().sum(), arguments["contents"], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        first.sum().backward()
    seconds = []
    for path in ("triton", "torch"):
        _, summaries, _ = write_steps(**arguments, implementation=path)
        (first,) = torch.autograd.grad(summaries.square().sum(), arguments["x"], create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), arguments["x"])[0])
    torch.testing.assert_close(*seconds)


def test_stores_of_more_than_2_to_the_31_elements():
    """Strides below 2**31 whose products are not; the memory between is never touched."""
    stride = 2**30 + 64
    sizes = {"batch": 3, "chunks": 2, "length": 3, "steps": 5, "width": 4}
    arguments = draw(sizes, torch.float16)
    storage = torch.empty(2 * stride + 64, dtype=torch.float16)
    contents = storage.as_strided((3, 2, 3, 4), (stride, 12, 4, 1))
    contents.copy_(arguments["contents"].detach())
    lengths = draw_lengths(sizes)
    leaf = contents.detach().requires_grad_()
    found = with_gradients([chunk_summary(leaf, lengths, kind="max", implementation="triton")], [leaf])
    small = contents.contiguous().requires_grad_()
    wanted = with_gradients([chunk_summary(small, lengths, kind="max", implementation="torch")], [small])
    assert_same(found, wanted)
    for steps in (5, 1):
        x, start = arguments["x"][:, :steps].detach(), arguments["start"][:, :steps]
        rest = (arguments["summaries"].detach(), x, arguments["time"], start)
        expected = write_steps(contents.contiguous(), *rest, implementation="reference")
        cache = (contents, rest[0].clone(), *rest[1:])
        assert_same(write_steps(*cache, in_place=True, implementation="triton"), expected)


LATEST = "tl.max(tl.where(tile == tile_best[None, :], step[:, None], 0)"


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("mean", "(step < count)[:, None]", "(step < length)[:, None]"),
        ("mean", "tl.maximum(count, 1)", "tl.maximum(length, 1)"),
        ("last", "(count - 1).to", "(length - 1).to"),
        ("max", "tile_best > best", "tile_best >= best"),
        ("max", "tl.min(tl.where(tile == tile_best[None, :], step[:, None], 2147483647)", LATEST),
        ("mean", "(offset <= last_offset)", "(offset < length)"),
        ("mean", "(last_offset + 1)", "(last_offset + 2)"),
        ("mean", "carried = tl.maximum(last_offset - last_step, 0)", "carried = last_offset"),
        ("max", "tl.where(carried > 0, tl.maximum(best, old), best)", "best"),
        ("last", "(offset == last_offset)", "(offset == length - 1)"),
        ("mean", "clock // length % chunks", "clock % chunks"),
        ("mean", "(offset + 1).to(tl.float32)", "length"),
        ("max", "tl.where(offset > 0, larger, summary)", "larger"),
        (
            "mean",
            "tl.load(start + batch * stride_start) != 0, 0",
            "tl.load(start + batch * stride_start) != 0, 1",
        ),
    ],
)
def test_a_wrong_kernel_is_noticed(kind, old, new, mutated, monkeypatch):
    monkeypatch.setattr(summary, "gpu", mutated(gpu, old, new))
    with pytest.raises(AssertionError):
        check_all(kind)


def check_all(kind) -> None:
    for sizes in (SIZES[0], SIZES[1], SIZES[5], SIZES[3]):
        check_summaries(sizes, kind, torch.float32, draw_lengths(sizes))
        check_writing(sizes, kind, torch.float32, starts=0.15)
        check_writing(sizes, kind, torch.float32, starts=0.5)
