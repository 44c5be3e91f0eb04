"""Chunk summaries and writing steps: every path against the definition, and the laws of the ring."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from scrubjay.kernels.summary.op import chunk_summary, write_steps

KINDS: list[Any] = ["mean", "last", "max"]
NAMES = ("contents", "summaries", "x")
EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
SIZES = {
    "batch": st.integers(0, 3),
    "chunks": st.integers(1, 4),
    "length": st.integers(1, 7),
    "steps": st.integers(0, 40),
    "trailing": st.sampled_from([(0,), (3,), (2, 3)]),
    "starts": st.sampled_from([None, 0.0, 0.05, 0.5]),
    "whole": st.booleans(),
    "seed": st.integers(0, 10_000),
}


def draw(
    batch=2,
    chunks=3,
    length=4,
    steps=9,
    trailing: tuple[int, ...] = (3,),
    starts: float | None = 0.2,
    whole=False,
    seed=0,
    dtype=torch.float64,
) -> dict[str, Any]:
    """Return arguments of write_steps; `whole` numbers are full of equal maxima."""
    generator = torch.Generator().manual_seed(seed)

    def values(*shape):
        if whole:
            return torch.randint(-1, 2, shape, generator=generator).to(dtype)
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return {
        "contents": values(batch, chunks, length, *trailing),
        "summaries": values(batch, chunks, *trailing),
        "x": values(batch, steps, *trailing),
        "time": torch.randint(0, 3 * chunks * length + 1, (batch,), generator=generator),
        "start": None if starts is None else torch.rand(batch, steps, generator=generator) < starts,
    }


def gradients(outputs, inputs) -> tuple[torch.Tensor, ...]:
    weights = [torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out) for out in outputs]
    return torch.autograd.grad(outputs, inputs, weights, materialize_grads=True)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    batch=st.integers(0, 3),
    chunks=st.integers(0, 3),
    length=st.integers(1, 7),
    trailing=st.sampled_from([(3,), (2, 3)]),
    all_steps=st.booleans(),
    whole=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_summaries_equal_the_definition_in_value_and_gradient(
    kind, batch, chunks, length, trailing, all_steps, whole, seed
):
    contents = draw(batch, chunks, length, 0, trailing, None, whole, seed)["contents"].requires_grad_()
    lengths = None
    if not all_steps:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(0, length + 2, (batch, chunks), generator=generator)
    expected = chunk_summary(contents, lengths, kind=kind, implementation="reference")
    out = chunk_summary(contents, lengths, kind=kind, implementation="torch")
    assert out.shape == (batch, chunks, *trailing)
    torch.testing.assert_close(out, expected, **EXACT)
    if expected.requires_grad:
        torch.testing.assert_close(gradients([out], contents), gradients([expected], contents), **EXACT)


@settings(max_examples=120, deadline=None)
@given(kind=st.sampled_from(KINDS), sizes=st.fixed_dictionaries(SIZES))
def test_writing_equals_the_definition_in_value_and_gradient(kind, sizes):
    arguments = draw(**sizes)
    inputs = [arguments[name].requires_grad_() for name in NAMES]
    expected = write_steps(**arguments, kind=kind, implementation="reference")
    out = write_steps(**arguments, kind=kind, implementation="torch")
    for found, wanted in zip(out, expected, strict=True):
        torch.testing.assert_close(found, wanted, **EXACT)
    torch.testing.assert_close(gradients(out[:2], inputs), gradients(expected[:2], inputs), **EXACT)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    in_place=st.booleans(),
    cut=st.integers(1, 41),
    sizes=st.fixed_dictionaries(SIZES),
)
def test_writing_in_pieces_equals_writing_at_once(kind, in_place, cut, sizes):
    arguments = draw(**sizes)
    expected = write_steps(**arguments, kind=kind)
    contents, summaries, time = (arguments[name].clone() for name in ("contents", "summaries", "time"))
    for first in range(0, sizes["steps"], cut):
        piece = slice(first, first + cut)
        start = None if arguments["start"] is None else arguments["start"][:, piece]
        contents, summaries, time = write_steps(
            contents, summaries, arguments["x"][:, piece], time, start, kind=kind, in_place=in_place
        )
    for found, wanted in zip((contents, summaries, time), expected, strict=True):
        torch.testing.assert_close(found, wanted, **EXACT)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS), chunks=st.integers(1, 4), length=st.integers(1, 5), steps=st.integers(1, 50)
)
def test_kept_summaries_are_those_of_the_contents(kind, chunks, length, steps):
    arguments = draw(2, chunks, length, steps, starts=0.05, seed=steps)
    arguments["time"] = torch.tensor([0, 0])
    contents, summaries, time = write_steps(**arguments, kind=kind)
    for b, age in enumerate(time.tolist()):
        present = age // length % chunks if age % length else None
        lengths = torch.zeros(1, chunks, dtype=torch.long)
        for chunk in range(max(0, age // length - chunks), age // length):
            lengths[0, chunk % chunks] = length
        if present is not None:
            lengths[0, present] = age % length
        expected = chunk_summary(contents[b : b + 1], lengths, kind=kind)
        kept = torch.where((lengths > 0)[..., None], summaries[b : b + 1], 0)
        torch.testing.assert_close(kept, expected, **EXACT)


@pytest.mark.parametrize("path", ["reference", "torch"])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_beyond_the_length_may_hold_nan(path, kind):
    contents = draw(2, 3, 4, 0)["contents"]
    lengths = torch.tensor([[0, 1, 4], [2, 3, 0]], dtype=torch.int32)
    clean = chunk_summary(contents, lengths, kind=kind, implementation=path)
    contents[torch.arange(4) >= lengths[..., None]] = float("nan")
    contents.requires_grad_()
    out = chunk_summary(contents, lengths, kind=kind, implementation=path)
    assert torch.equal(out, clean)
    assert (out[lengths == 0] == 0).all()
    (gradient,) = torch.autograd.grad(out.sum(), contents)
    assert gradient.isfinite().all()
    assert (gradient[torch.arange(4) >= lengths[..., None]] == 0).all()


@pytest.mark.parametrize("path", ["reference", "torch"])
@pytest.mark.parametrize("kind", ["mean", "max"])
def test_nan_among_the_steps_shows(path, kind):
    contents = torch.tensor([1.0, float("nan"), 2.0]).view(1, 1, 3, 1)
    assert chunk_summary(contents, kind=kind, implementation=path).isnan().all()
    assert not chunk_summary(contents, torch.tensor([[1]]), kind=kind, implementation=path).isnan().any()
    _, summaries, _ = write_steps(
        torch.zeros(1, 1, 3, 1),
        torch.zeros(1, 1, 1),
        contents[0],
        torch.tensor([0]),
        kind=kind,
        implementation=path,
    )
    assert summaries.isnan().all()


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_written_stays_as_it_is(kind, in_place, steps):
    """NaN in what is recycled does not spread either."""
    contents = torch.full((2, 4, 3, 2), float("nan"))
    summaries = torch.full((2, 4, 2), float("nan"))
    x = torch.arange(2.0 * steps * 2).view(2, steps, 2)
    out, summarised, time = write_steps(
        contents, summaries, x, torch.tensor([3, 18]), kind=kind, in_place=in_place
    )
    assert time.tolist() == [3 + steps, 18 + steps]
    touched = torch.zeros(2, 4, dtype=torch.bool)
    touched[0, 1], touched[1, 2] = True, True
    touched[0, 2] = touched[1, 3] = steps == 5
    assert torch.equal(~summarised.isnan().any(-1), touched)
    assert torch.equal(~out.isnan().any(-1).all(-1), touched)
    assert torch.equal(out[0].flatten(0, 1)[3 : 3 + steps], x[0])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_match_finite_differences(kind):
    arguments = draw(2, 2, 3, 8, (2,), starts=0.3, seed=3)
    inputs = [arguments.pop(name).requires_grad_() for name in NAMES]

    def write(*tensors):
        return write_steps(*tensors, **arguments, kind=kind)[:2]

    def summarise(contents):
        return chunk_summary(contents, torch.tensor([[0, 2], [1, 3]]), kind=kind)

    assert torch.autograd.gradcheck(write, inputs, check_forward_ad=True, check_batched_grad=False)
    assert torch.autograd.gradgradcheck(write, inputs)
    assert torch.autograd.gradcheck(summarise, inputs[0], check_forward_ad=True)
    assert torch.autograd.gradgradcheck(summarise, inputs[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 8])
def test_the_ops_differentiate_like_plain_torch(kind, steps):
    """The ops that compiled code and Triton use, called as they are; twice differentiable on this path."""
    arguments = draw(2, 2, 3, steps, (2,), starts=0.3, seed=4)
    inputs = [arguments[name].requires_grad_() for name in NAMES]
    out = torch.ops.scrubjay.write_steps(*arguments.values(), kind, "torch")
    expected = write_steps(**arguments, kind=kind)
    for found, wanted in zip(out, expected, strict=True):
        assert torch.equal(found, wanted)
    torch.testing.assert_close(gradients(out[:2], inputs), gradients(expected[:2], inputs), **EXACT)
    rest = (arguments["time"], arguments["start"], kind, "torch")
    assert torch.autograd.gradgradcheck(lambda *t: torch.ops.scrubjay.write_steps(*t, *rest)[:2], inputs)
    lengths = torch.tensor([[0, 2], [1, 3]])
    for operation in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert operation(lambda c: torch.ops.scrubjay.chunk_summary(c, lengths, kind, "torch"), inputs[0])


# Each kind and each path: what is checked here, of signatures and shapes, does not lie in a pair of them.
@pytest.mark.parametrize(("path", "kind"), [("reference", "mean"), ("torch", "last"), ("torch", "max")])
def test_the_ops_are_registered_as_torch_wants_them(path, kind):
    arguments = draw(2, 2, 3, 5, (2,), starts=0.3, dtype=torch.float32)
    for name in NAMES:
        arguments[name].requires_grad_()
    opcheck(
        torch.ops.scrubjay.chunk_summary, (arguments["contents"], torch.tensor([[0, 2], [1, 3]]), kind, path)
    )
    opcheck(torch.ops.scrubjay.write_steps, (*arguments.values(), kind, path))
    cache = [value if value is None else value.detach() for value in arguments.values()]
    opcheck(torch.ops.scrubjay.write_steps_, (*cache, kind, path))


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_in_place_equals_the_functional_and_returns_the_same_storage(kind, steps):
    arguments = draw(3, 2, 3, steps, (2, 2), starts=0.4, seed=5)
    expected = write_steps(**arguments, kind=kind)
    for path in ("torch", "reference"):
        caches = {name: arguments[name].clone() for name in ("contents", "summaries")}
        out = write_steps(**(arguments | caches), kind=kind, in_place=True, implementation=path)
        assert out[0] is caches["contents"]
        assert out[1] is caches["summaries"]
        for found, wanted in zip(out, expected, strict=True):
            torch.testing.assert_close(found, wanted, **EXACT)


def test_in_place_writes_through_the_strides_of_a_view():
    arguments = draw(2, 3, 4, 6)
    expected = write_steps(**arguments)
    store = torch.zeros(4, 7, 2, 4, 3, dtype=torch.float64)
    contents, summaries = store[::2, 1:4, 1], torch.zeros(2, 3, 2, 3, dtype=torch.float64)[:, :, 1]
    contents.copy_(arguments["contents"])
    summaries.copy_(arguments["summaries"])
    arguments |= {"contents": contents, "summaries": summaries}
    write_steps(**arguments, in_place=True)
    torch.testing.assert_close(contents, expected[0], **EXACT)
    torch.testing.assert_close(summaries, expected[1], **EXACT)
    assert store[:, :, 0].count_nonzero() == store[1::2].count_nonzero() == 0


@pytest.mark.parametrize("name", NAMES)
def test_in_place_refuses_to_lose_a_gradient(name):
    arguments = draw()
    arguments[name].requires_grad_()
    with pytest.raises(ValueError, match=f"{name} requires grad"):
        write_steps(**arguments, in_place=True)
    with torch.no_grad():
        write_steps(**arguments, in_place=True)


def test_in_place_refuses_stores_it_cannot_write():
    arguments = draw(trailing=(2, 3))
    across = arguments["contents"].transpose(-1, -2).contiguous().transpose(-1, -2)
    with pytest.raises(ValueError, match="cannot write through strides"):
        write_steps(**(arguments | {"contents": across}), in_place=True)
    with pytest.raises(ValueError, match="summaries is expanded"):
        write_steps(
            **(arguments | {"summaries": arguments["summaries"][:1].expand(2, 3, 2, 3)}), in_place=True
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_rounds_a_summary_once(kind, dtype):
    arguments = draw(2, 3, 16, 40, (8,), None, dtype=torch.float32)
    low: dict[str, Any] = {name: arguments[name].to(dtype) for name in NAMES}
    exact: dict[str, Any] = {name: value.double() for name, value in low.items()}
    contents, summaries, _ = write_steps(**(arguments | low), kind=kind)
    assert contents.dtype == summaries.dtype == dtype
    _, expected, _ = write_steps(**(arguments | exact), kind=kind, implementation="reference")
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(summaries.double(), expected, rtol=rounding, atol=rounding)
    out = chunk_summary(contents, kind=kind)
    assert out.dtype == dtype
    torch.testing.assert_close(
        out.double(), chunk_summary(contents.double(), kind=kind), rtol=rounding, atol=rounding
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_drift_of_a_half_precision_mean_is_bounded_and_float32_summaries_have_none(dtype):
    length = 64
    x = (1 + 0.1 * torch.randn(8, length, 4, generator=torch.Generator().manual_seed(0))).to(dtype)
    exact = x.double().mean(dim=1, keepdim=True)
    unit = torch.finfo(dtype).eps / 2
    for summary_dtype, bound in ((dtype, (length + 1) / 2 * unit), (torch.float32, 1e-6)):
        state = (torch.zeros(8, 1, length, 4, dtype=dtype), torch.zeros(8, 1, 4, dtype=summary_dtype))
        time = torch.zeros(8, dtype=torch.long)
        for t in range(length):
            *state, time = write_steps(*state, x[:, t : t + 1], time)
        assert state[1].dtype == summary_dtype
        # Running means of these steps stay below 2, where a rounding is at most 2 units.
        assert (state[1].double() - exact).abs().max() < 2 * bound


@pytest.mark.parametrize("steps", [1, 6])
def test_steps_are_rounded_as_they_are_stored(steps):
    arguments = draw(steps=steps, dtype=torch.float32)
    low: dict[str, Any] = {name: arguments[name].half() for name in ("contents", "summaries")}
    mixed = write_steps(**(arguments | low))
    same = write_steps(**(arguments | low | {"x": arguments["x"].half()}))
    for found, wanted in zip(mixed, same, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("kind", "backend", "steps"),
    [("mean", "inductor", 1), ("mean", "inductor", 6), ("last", "aot_eager", 6), ("max", "aot_eager", 1)],
)
def test_compiles_whole_with_gradients(kind, backend, steps):
    def run(contents, summaries, x, time, start):
        contents, summaries, time = write_steps(contents, summaries, x.sin(), time, start, kind=kind)
        return summaries + chunk_summary(contents * 2, kind=kind), time

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend=backend)
    for batch in (2, 3):
        arguments = draw(batch, 2, 3, steps, (2, 2), seed=batch)
        inputs = [arguments[name].requires_grad_() for name in NAMES]
        expected, out = run(**arguments), compiled(**arguments)
        torch.testing.assert_close(out[0], expected[0], **EXACT)
        assert torch.equal(out[1], expected[1])
        torch.testing.assert_close(gradients(out[:1], inputs), gradients(expected[:1], inputs), **EXACT)


@pytest.mark.parametrize("steps", [1, 6])
def test_in_place_compiles_whole(steps):
    torch._dynamo.reset()
    compiled = torch.compile(write_steps, fullgraph=True)
    arguments = draw(2, 2, 3, steps, (2, 2))
    expected = write_steps(**arguments)
    compiled(**arguments, in_place=True)
    torch.testing.assert_close(arguments["contents"], expected[0], **EXACT)
    torch.testing.assert_close(arguments["summaries"], expected[1], **EXACT)


class _Both(torch.nn.Module):
    def __init__(self, kind) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, contents, summaries, x, time, start):
        contents, summaries, time = write_steps(contents, summaries, x, time, start, kind=self.kind)
        return (
            chunk_summary(contents, time[:, None].expand(summaries.shape[:2]), kind=self.kind),
            summaries,
            time,
        )


@pytest.mark.parametrize(("kind", "steps"), [("mean", 1), ("last", 6), ("max", 1), ("max", 6)])
def test_exports_with_a_dynamic_batch(kind, steps):
    module = _Both(kind)
    example = draw(2, 2, 3, steps, (2, 2))
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(
        module, tuple(example.values()), dynamic_shapes=tuple({0: batch} for _ in example)
    )
    assert not any("scrubjay" in str(node.target) for node in exported.graph.nodes)
    other = tuple(draw(5, 2, 3, steps, (2, 2), seed=1).values())
    for found, wanted in zip(exported.module()(*other), module(*other), strict=True):
        torch.testing.assert_close(found, wanted, **EXACT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "median"}, "kind='median'"),
        ({"contents": torch.zeros(2, 3, 4)}, "contents have shape"),
        ({"contents": torch.zeros(2, 3, 0, 3)}, "contents have shape"),
        ({"contents": torch.zeros(2, 0, 4, 3)}, "at least 1 chunk"),
        ({"summaries": torch.zeros(2, 2, 3)}, "summaries have shape"),
        ({"x": torch.zeros(2, 9, 2)}, r"x has shape \(2, 9, 2\); expected \[2, T, 3\]"),
        ({"x": torch.zeros(2, 3)}, "x has shape"),
        ({"time": torch.zeros(3, dtype=torch.long)}, "time has shape"),
        ({"start": torch.zeros(2, 8, dtype=torch.bool)}, "start has shape"),
        ({"implementation": "cuda"}, "implementation='cuda'"),
    ],
)
def test_bad_shapes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        write_steps(**(draw() | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contents": torch.zeros(2, 3, 4, 3, dtype=torch.long)}, "contents have dtype"),
        ({"summaries": torch.zeros(2, 3, 3, dtype=torch.long)}, "summaries has dtype"),
        ({"x": torch.zeros(2, 9, 3, dtype=torch.bool)}, "x has dtype"),
        ({"time": torch.zeros(2)}, "time has dtype"),
        ({"start": torch.zeros(2, 9)}, "start has dtype"),
    ],
)
def test_bad_dtypes_are_named(change, message):
    with pytest.raises(TypeError, match=message):
        write_steps(**(draw() | change))


def test_bad_lengths_are_named():
    contents = draw()["contents"]
    with pytest.raises(ValueError, match="lengths have shape"):
        chunk_summary(contents, torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(TypeError, match="lengths has dtype"):
        chunk_summary(contents, torch.zeros(2, 3))


def test_triton_says_what_it_cannot_do():
    with pytest.raises(ValueError, match=r"float16, bfloat16 and float32, not torch\.float64"):
        chunk_summary(draw()["contents"], implementation="triton")
