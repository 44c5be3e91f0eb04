"""Every path of chunk retrieval against its definition, forward and backward."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.kernels import chunk_retrieval
from scrubjay.kernels.retrieval import vectorized

PATHS: list[Any] = ["dense", "gather", "listed"]
TENSORS = ["query", "keys", "values", "summaries"]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    time=st.integers(1, 5),
    chunks=st.integers(0, 7),
    length=st.integers(1, 7),
    heads_groups=st.sampled_from([(1, 1), (4, 1), (4, 2), (6, 3)]),
    coarse=st.sampled_from([None, 1, 2]),
    top_k=st.integers(1, 9),
    combine=st.sampled_from(["hierarchical", "joint"]),
    positional=st.booleans(),
    masked=st.booleans(),
    with_lengths=st.booleans(),
    always=st.sampled_from([(0, 0), (1, 0), (0, 1), (1, 2)]),
)
def test_paths_equal_the_definition_in_value_and_gradient(
    draw,
    seed,
    time,
    chunks,
    length,
    heads_groups,
    coarse,
    top_k,
    combine,
    positional,
    masked,
    with_lengths,
    always,
):
    heads, groups = heads_groups
    coarse = coarse if coarse is None or heads % coarse == 0 else 1
    arguments = draw(seed, 2, time, chunks, length, heads, groups, 6, coarse)
    if masked:
        arguments["valid"] = torch.rand(2, time, chunks, generator=torch.Generator().manual_seed(seed)) < 0.5
    positions = torch.randn(length, 6, dtype=torch.float64) if positional else None
    lengths = None
    if with_lengths:
        lengths = torch.randint(0, length + 1, (2, chunks), generator=torch.Generator().manual_seed(seed))
        beyond = torch.arange(length) >= lengths[..., None]
        for name in ("keys", "values"):
            arguments[name] = arguments[name].masked_fill(beyond[..., None, None], float("nan"))
    differentiable = [name for name, value in arguments.items() if value.is_floating_point()]
    results = {}
    for path in ["reference", *PATHS]:
        fresh: dict[str, Any] = {
            name: value.clone().requires_grad_(name in differentiable) for name, value in arguments.items()
        }
        out = chunk_retrieval(
            **fresh,
            top_k=max(top_k, sum(always)),
            combine=combine,
            positions=positions,
            lengths=lengths,
            num_sink_chunks=always[0],
            num_local_chunks=always[1],
            implementation=path,
        )
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        if out.requires_grad:
            (out * weights).sum().backward()
        grads = {
            n: torch.zeros_like(fresh[n]) if fresh[n].grad is None else fresh[n].grad for n in differentiable
        }
        results[path] = (out, grads)
    expected, expected_grads = results["reference"]
    for path in PATHS:
        out, grads = results[path]
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
        for name in differentiable:
            torch.testing.assert_close(grads[name], expected_grads[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_a_query_that_may_read_nothing_gets_exact_zeros(draw, path):
    arguments = draw(1)
    arguments["valid"] = torch.zeros(2, 5, dtype=torch.long)
    assert (chunk_retrieval(**arguments, top_k=2, implementation=path) == 0).all()


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_of_equal_scores_the_earlier_chunk_wins(draw, path):
    arguments = draw(2, chunks=40)
    arguments["summaries"] = torch.ones_like(arguments["summaries"])
    arguments["valid"] = torch.full((2, 5), 40)
    first_two: dict[str, Any] = {
        name: value[:, :2] if name in ("keys", "values", "summaries") else value
        for name, value in arguments.items()
    } | {"valid": torch.full((2, 5), 2)}
    out = chunk_retrieval(**arguments, top_k=2, implementation=path)
    torch.testing.assert_close(out, chunk_retrieval(**first_two, top_k=2), rtol=1e-12, atol=1e-12)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("path", PATHS)
def test_gradients_match_finite_differences(draw, path):
    arguments = draw(3, batch=1, time=2, chunks=3, length=2, heads=2, groups=1, width=3)
    arguments["valid"] = torch.tensor([[2, 3]])

    def readout(*tensors):
        return chunk_retrieval(
            **(arguments | dict(zip(TENSORS, tensors, strict=True))), top_k=2, implementation=path
        )

    assert torch.autograd.gradcheck(readout, [arguments[n].requires_grad_() for n in TENSORS])


def test_joint_over_all_chunks_is_full_attention(draw):
    arguments = draw(4, groups=4)
    arguments["valid"] = torch.full((2, 5), 6)
    out = chunk_retrieval(**arguments, top_k=6, combine="joint")
    keys = arguments["keys"].flatten(1, 2).transpose(1, 2)
    values = arguments["values"].flatten(1, 2).transpose(1, 2)
    full = torch.nn.functional.scaled_dot_product_attention(arguments["query"].transpose(1, 2), keys, values)
    torch.testing.assert_close(out, full.transpose(1, 2), rtol=1e-10, atol=1e-10)


def test_stop_memory_gradient_reaches_the_query_alone(draw):
    arguments = {n: v.requires_grad_() if v.is_floating_point() else v for n, v in draw(5).items()}
    chunk_retrieval(**arguments, top_k=2, stop_memory_gradient=True).sum().backward()
    assert arguments["query"].grad is not None
    assert all(arguments[name].grad is None for name in ("keys", "values", "summaries"))


@pytest.mark.parametrize("path", ["auto", *PATHS])
def test_autocast_and_mixed_dtypes_are_the_widest_dtype(draw, path):
    arguments = draw(23, dtype=torch.float32)
    expected = chunk_retrieval(**arguments, top_k=2, implementation=path)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(chunk_retrieval(**arguments, top_k=2, implementation=path), expected)
    arguments["query"] = arguments["query"].to(torch.bfloat16)
    mixed_out = chunk_retrieval(**arguments, top_k=2, implementation=path)
    exact = chunk_retrieval(**(arguments | {"query": arguments["query"].float()}), top_k=2)
    assert mixed_out.dtype == torch.float32
    torch.testing.assert_close(mixed_out, exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("path", ["torch", "dense", "gather"])
def test_half_precision_stays_near_the_definition(draw, path, dtype):
    arguments = draw(7, dtype=torch.float32)
    low = {n: v.to(dtype) if v.is_floating_point() else v for n, v in arguments.items()}
    upcast = {n: v.double() if v.is_floating_point() else v for n, v in low.items()}
    out = chunk_retrieval(**low, top_k=6, implementation=path)
    exact = chunk_retrieval(**upcast, top_k=6, implementation="reference")
    assert out.dtype == dtype
    error = (out.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < (2e-3 if dtype == torch.float16 else 2e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 0}, "top_k=0"),
        ({"combine": "sum"}, "combine='sum'"),
        ({"query": torch.zeros(2, 5, 4)}, "query has shape"),
        ({"query": torch.zeros(2, 5, 3, 6)}, "do not divide"),
        ({"keys": torch.zeros(2, 6, 3, 2, 7)}, "keys have shape"),
        ({"values": torch.zeros(2, 5, 3, 2, 6)}, "values have shape"),
        ({"summaries": torch.zeros(2, 5, 2, 6)}, "summaries have shape"),
        ({"valid": torch.zeros(2, 4, dtype=torch.long)}, "valid has shape"),
        ({"values": torch.zeros(2, 6, 3, 2, 0)}, "values have width 0"),
        ({"valid": torch.zeros(2, 5, 7, dtype=torch.bool)}, "valid has shape"),
        ({"positions": torch.zeros(4, 6)}, "positions have shape"),
    ],
)
def test_bad_shapes_are_named(draw, change, message):
    with pytest.raises(ValueError, match=message):
        chunk_retrieval(**({"top_k": 2} | draw(8, dtype=torch.float32) | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"valid": torch.zeros(2, 5)}, "valid has dtype"),
        ({"lengths": torch.zeros(2, 6)}, "lengths have dtype"),
        ({"keys": torch.zeros(2, 6, 3, 2, 6, dtype=torch.long)}, "keys has dtype torch.int64"),
        ({"positions": torch.zeros(3, 6, dtype=torch.bool)}, "positions has dtype torch.bool"),
    ],
)
def test_bad_dtypes_are_named(draw, change, message):
    arguments: dict[str, Any] = draw(9, dtype=torch.float32) | change
    with pytest.raises(TypeError, match=message):
        chunk_retrieval(**arguments, top_k=1)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("combine", ["hierarchical", "joint"])
@pytest.mark.parametrize("path", PATHS)
def test_second_derivatives_match_finite_differences(draw, path, combine):
    arguments = draw(3, batch=1, time=2, chunks=3, length=2, heads=2, groups=1, width=3)
    arguments["valid"] = torch.tensor([[2, 3]])

    def readout(*tensors):
        inputs = arguments | dict(zip(TENSORS, tensors, strict=True))
        return chunk_retrieval(**inputs, top_k=2, combine=combine, implementation=path)

    assert torch.autograd.gradgradcheck(readout, [arguments[n].requires_grad_() for n in TENSORS])


@pytest.mark.parametrize("path", ["auto", *PATHS])
def test_forward_mode_equals_reverse_mode(draw, path):
    arguments = draw(12)
    tangents = {name: torch.randn_like(arguments[name]) for name in TENSORS}

    def readout(tensors):
        return chunk_retrieval(**(arguments | tensors), top_k=2, implementation=path)

    primals = {name: arguments[name] for name in TENSORS}
    forward = torch.func.jvp(readout, (primals,), (tangents,))[1]
    weights = torch.randn_like(forward)
    leaves = {name: arguments[name].requires_grad_() for name in TENSORS}
    grads = torch.autograd.grad(readout(leaves), list(leaves.values()), weights)
    reverse = sum((g * tangents[n]).sum() for g, n in zip(grads, leaves, strict=True))
    torch.testing.assert_close((forward * weights).sum(), reverse)


def operator_arguments(arguments, **options):
    """Return the arguments of the operator, as the public function passes them."""
    valid = torch.arange(arguments["keys"].shape[1]) < arguments["valid"][..., None]
    width = arguments["query"].shape[-1]
    return (
        *(arguments[n] for n in TENSORS),
        valid,
        arguments["query"],
        options.get("positions"),
        options.get("lengths"),
        2,
        options.get("joint", False),
        width**-0.5,
        width**-0.5,
        0,
        1,
        options.get("return_lse", False),
        "torch",
    )


@pytest.mark.one_in(4)
@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_lse": True},
        *(
            pytest.param(
                {"joint": True, "lengths": torch.tensor([[3, 1, 0, 2, 3, 3]] * 2), **more},
                marks=pytest.mark.slow,
            )
            for more in ({"return_lse": True}, {})
        ),
    ],
)
def test_the_operator_is_registered_as_torch_expects(draw, options):
    arguments = draw(13, dtype=torch.float32)
    for name in TENSORS:
        arguments[name].requires_grad_()
    torch.library.opcheck(
        torch.ops.scrubjay.chunk_retrieval.default, operator_arguments(arguments, **options)
    )


@pytest.mark.parametrize(
    ("time", "backend"),
    [pytest.param(1, "inductor", marks=pytest.mark.slow), (1, "aot_eager"), (5, "aot_eager")],
)
def test_a_compiled_call_is_one_graph_with_the_same_values_and_gradients(draw, time, backend):
    arguments = draw(14, time=time, dtype=torch.float32)
    for name in TENSORS:
        arguments[name].requires_grad_()

    def loss(**inputs):
        return chunk_retrieval(**inputs, top_k=2).square().sum()

    compiled_loss = torch.compile(loss, fullgraph=True, backend=backend)
    expected = torch.autograd.grad(loss(**arguments), [arguments[n] for n in TENSORS])
    grads = torch.autograd.grad(compiled_loss(**arguments), [arguments[n] for n in TENSORS])
    torch.testing.assert_close(grads, expected)


@pytest.mark.slow
def test_the_operator_is_differentiable_again_on_the_cpu(draw):
    arguments = draw(15, batch=1, time=2, chunks=3, length=2, heads=2, groups=1, width=3)
    leaves = [arguments[n].requires_grad_() for n in TENSORS]

    def readout(*tensors):
        inputs = operator_arguments(arguments | dict(zip(TENSORS, tensors, strict=True)), return_lse=True)
        out, *_, lse = torch.ops.scrubjay.chunk_retrieval(*inputs)
        return out, lse.masked_fill(lse.isinf(), 0)

    assert torch.autograd.gradcheck(readout, leaves)
    assert torch.autograd.gradgradcheck(readout, leaves)


@pytest.mark.parametrize("time", [1, 5])
def test_an_exported_call_needs_no_operator_of_ours_and_takes_any_batch(draw, time):
    class Readout(torch.nn.Module):
        def forward(self, query, keys, values, summaries, valid):
            return chunk_retrieval(query, keys, values, summaries, valid, top_k=2)

    arguments = draw(16, batch=3, time=time, dtype=torch.float32)
    shapes = {name: {0: torch.export.Dim.DYNAMIC} for name in arguments}
    program = torch.export.export(Readout(), (), arguments, dynamic_shapes=shapes)
    assert not any("scrubjay" in str(node.target) for node in program.graph.nodes)
    other = draw(17, batch=2, time=time, dtype=torch.float32)
    torch.testing.assert_close(program.module()(**other), chunk_retrieval(**other, top_k=2))


@pytest.mark.slow
@pytest.mark.parametrize("time", [1, 5])
def test_an_exported_call_takes_more_rows_than_go_at_once(draw, time, monkeypatch):
    class Readout(torch.nn.Module):
        def forward(self, query, keys, values, summaries, valid):
            return chunk_retrieval(query, keys, values, summaries, valid, top_k=2)

    monkeypatch.setattr(vectorized, "_BLOCK_SCALARS", dict.fromkeys(vectorized._BLOCK_SCALARS, 400))
    shapes = {name: {0: torch.export.Dim.DYNAMIC} for name in (*TENSORS, "valid")}
    arguments = draw(16, batch=2, time=time, dtype=torch.float32)
    program = torch.export.export(Readout(), (), arguments, dynamic_shapes=shapes)
    other = draw(17, batch=500, time=time, dtype=torch.float32)
    torch.testing.assert_close(program.module()(**other), chunk_retrieval(**other, top_k=2))


def test_second_derivatives_through_a_compiled_call_count_a_shared_tensor_once(draw):
    arguments = draw(30, time=3)
    keys = arguments["keys"].requires_grad_()

    def loss(keys):
        inputs = arguments | {"keys": keys, "values": keys, "summaries": keys.mean(dim=2)}
        return chunk_retrieval(**inputs, top_k=2).square().sum()

    compiled_loss = torch.compile(loss, backend="eager")
    (expected,) = torch.autograd.grad(loss(keys), keys)
    (grad,) = torch.autograd.grad(compiled_loss(keys), keys, create_graph=True)
    torch.testing.assert_close(grad, expected)
    torch.testing.assert_close(
        torch.autograd.grad(grad.square().sum(), keys)[0],
        torch.autograd.grad(torch.autograd.grad(loss(keys), keys, create_graph=True)[0].square().sum(), keys)[
            0
        ],
    )
