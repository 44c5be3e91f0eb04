"""The Triton kernels of chunk retrieval under the interpreter, compared with the reference."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scrubjay.kernels import attend_chosen, choose_chunks, chunk_retrieval, retrieval
from scrubjay.kernels.retrieval import gpu
from scrubjay.kernels.retrieval.problem import Choice, Problem

# batch, time, chunks, length, heads, groups, coarse, width, top_k; sizes that are no power of two, k > valid.
SHAPES = {
    "decode": (2, 1, 5, 7, 4, 2, None, 40, 3),
    "segment-T19-C7-D40": (1, 19, 4, 7, 2, 1, None, 40, 2),
    "one-selection": (1, 5, 4, 3, 4, 1, 1, 8, 2),
    "selections-and-key-heads-cross": (1, 2, 4, 5, 6, 2, 3, 8, 2),
    "long-chunk": (1, 2, 3, 70, 2, 2, None, 8, 2),
    "k-beyond-chunks": (1, 3, 3, 4, 2, 2, 2, 12, 9),
}
# Shape for the options: besides a sink and a local chunk, one chunk is chosen by its score.
OPTIONAL = (2, 3, 5, 7, 4, 2, None, 12, 3)


def draw(shape, seed=0, dtype=torch.float32, **options) -> dict[str, Any]:
    batch, time, chunks, length, heads, groups, coarse, width, top_k = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes):
        return torch.randn(*sizes, generator=generator).to(dtype)

    arguments: dict[str, Any] = {
        "query": normal(batch, time, heads, width),
        "keys": normal(batch, chunks, length, groups, width),
        "values": normal(batch, chunks, length, groups, width),
        "summaries": normal(batch, chunks, groups, width),
        "valid": torch.randint(0, chunks + 1, (batch, time), generator=generator),
        "top_k": top_k,
    }
    arguments["valid"][0, 0] = chunks
    arguments["valid"][-1, -1] = 0 if time > 1 else chunks - 1
    if coarse is not None:
        arguments["summary_query"] = normal(batch, time, coarse, 5)
        arguments["summaries"] = normal(batch, chunks, 1, 5)
    if options.pop("positional", False):
        arguments["positions"] = normal(length, width)
    if options.pop("with_lengths", False):
        arguments["lengths"] = torch.randint(0, length + 1, (batch, chunks), generator=generator)
        beyond = torch.arange(length) >= arguments["lengths"][..., None]
        for name in ("keys", "values"):
            arguments[name] = arguments[name].masked_fill(beyond[..., None, None], float("nan"))
    if options.pop("masked", False):
        arguments["valid"] = torch.rand(batch, time, chunks, generator=generator) < 0.5
    return arguments | options


def floating(arguments) -> list[str]:
    return [n for n, v in arguments.items() if torch.is_tensor(v) and v.is_floating_point()]


def outcome(arguments, run) -> dict[str, Any]:
    fresh = {
        n: v.clone().requires_grad_(n in floating(arguments)) if torch.is_tensor(v) else v
        for n, v in arguments.items()
    }
    out = run(**fresh)
    out, lse = out if isinstance(out, tuple) else (out, None)
    if not out.requires_grad:  # the reference, if no query reads anything
        return {"out": out} | {n: torch.zeros_like(fresh[n]) for n in floating(arguments)}
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    loss = (out.double() * weights).sum()
    normaliser = {}
    if lse is not None:
        finite_lse = lse.double().masked_fill(lse.isinf(), 0)
        loss = loss + (finite_lse * weights[..., -1]).sum()
        normaliser = {"lse": finite_lse.detach()}
    loss.backward()
    grads = {
        n: fresh[n].grad if fresh[n].grad is not None else torch.zeros_like(fresh[n])
        for n in floating(arguments)
    }
    return {"out": out.detach()} | normaliser | grads


def definition(arguments) -> dict[str, torch.Tensor]:
    upcast = {n: v.double() if n in floating(arguments) else v for n, v in arguments.items()}
    return outcome(upcast, functools.partial(chunk_retrieval, implementation="reference"))


def distance(result, exact) -> dict[str, float]:
    """Return the root mean square error relative to the expected root mean square, per tensor."""
    errors = {}
    for name, right in exact.items():
        scale = right.square().mean().sqrt().clamp_min(1e-6)
        errors[name] = float((result[name].double() - right).square().mean().sqrt() / scale)
    return errors


def assert_near(arguments, run, bound):
    errors = distance(outcome(arguments, run), definition(arguments))
    assert all(error < bound for error in errors.values()), errors


triton_path = functools.partial(chunk_retrieval, implementation="triton")


def choose_and_attend(
    query, keys, values, summaries, valid, top_k, combine: Any = "hierarchical", summary_query=None, **options
):
    """Select chunks by one kernel and attend to them by the other."""
    lengths, positions = options.pop("lengths", None), options.pop("positions", None)
    return_lse = options.pop("return_lse", False)
    if lengths is not None:
        chunks = torch.arange(keys.shape[1])
        valid = valid if valid.dtype == torch.bool else chunks < valid[..., None]
        valid = valid & (lengths > 0)[:, None]
    choice = choose_chunks(
        valid,
        top_k=top_k,
        summary_query=query if summary_query is None else summary_query,
        summaries=summaries,
        implementation="triton",
        **options,
    )
    return attend_chosen(
        query,
        keys,
        values,
        choice.chunks,
        choice.scores,
        combine=combine,
        lengths=lengths,
        positions=positions,
        return_lse=return_lse,
        implementation="triton",
    )


# Without `return_lse`, so that the lse gets no gradient.
@pytest.mark.usefixtures("poison_memory")
@pytest.mark.parametrize("combine", ["hierarchical", "joint"])
@pytest.mark.parametrize("shape", ["decode", "one-selection", "selections-and-key-heads-cross"])
def test_values_and_gradients_equal_the_definition(shape, combine):
    assert_near(draw(SHAPES[shape], combine=combine), triton_path, 2e-6)


@pytest.mark.usefixtures("poison_memory")
@pytest.mark.parametrize("combine", ["hierarchical", "joint"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_normaliser_and_its_gradients_equal_the_definition(shape, combine):
    assert_near(draw(shape, combine=combine, return_lse=True), triton_path, 2e-6)


@pytest.mark.usefixtures("poison_memory")
@pytest.mark.parametrize("combine", ["hierarchical", "joint"])
@pytest.mark.parametrize(
    "option",
    [
        {},
        {"positional": True},
        {"with_lengths": True, "masked": True},
        {"num_sink_chunks": 1, "num_local_chunks": 1},
    ],
)
def test_choosing_and_attending_equal_the_definition(option, combine):
    for shape in (OPTIONAL, SHAPES["selections-and-key-heads-cross"]):
        assert_near(draw(shape, 1, combine=combine, return_lse=True, **option), choose_and_attend, 4e-6)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    seed=st.integers(0, 1000),
    time=st.integers(1, 3),
    chunks=st.integers(1, 6),
    length=st.integers(1, 9),
    heads_groups_coarse=st.sampled_from([(1, 1, None), (4, 2, None), (2, 1, 1), (6, 3, 2), (3, 3, 1)]),
    width=st.integers(1, 20),
    top_k=st.integers(1, 7),
    combine=st.sampled_from(["hierarchical", "joint"]),
    with_lengths=st.booleans(),
    masked=st.booleans(),
)
def test_any_sizes_equal_the_definition(
    poison_memory,
    seed,
    time,
    chunks,
    length,
    heads_groups_coarse,
    width,
    top_k,
    combine,
    with_lengths,
    masked,
):
    shape = (1, time, chunks, length, *heads_groups_coarse, width, top_k)
    assert_near(
        draw(shape, seed, combine=combine, with_lengths=with_lengths, masked=masked), triton_path, 5e-6
    )


@pytest.mark.usefixtures("poison_memory")
@pytest.mark.parametrize("combine", ["hierarchical", "joint"])
def test_half_precision_stays_near_the_definition(combine):
    assert_near(draw(SHAPES["decode"], dtype=torch.float16, combine=combine), triton_path, 3e-3)
    assert_near(draw(SHAPES["one-selection"], dtype=torch.float16, combine=combine), triton_path, 3e-3)


@pytest.mark.usefixtures("poison_memory")
@pytest.mark.parametrize("combine", ["hierarchical", "joint"])
@pytest.mark.parametrize(
    "option",
    [
        {"positional": True},
        {"with_lengths": True},
        {"masked": True},
        {"num_sink_chunks": 1, "num_local_chunks": 1},
    ],
)
def test_options_equal_the_definition(option, combine):
    assert_near(draw(OPTIONAL, 1, combine=combine, **option), triton_path, 2e-6)


def test_lengths_beyond_the_chunk_are_the_chunk():
    arguments = draw((2, 2, 6, 3, 2, 1, None, 4, 2))
    arguments["lengths"] = torch.tensor([[0, 9, -2, 3, 1, 2], [99, 2, 0, 0, 1, 3]])
    assert_near(arguments, triton_path, 2e-6)


@pytest.mark.usefixtures("poison_memory")
def test_a_row_that_may_read_nothing_gets_zeros_and_gives_no_gradient():
    arguments = draw(SHAPES["decode"])
    arguments["valid"] = torch.tensor([[0], [2]])
    for name in ("query", "keys", "values", "summaries"):
        arguments[name][0] = float("nan")
    result = outcome(arguments, triton_path)
    assert (result["out"][0] == 0).all()
    for name in ("query", "keys", "values", "summaries"):
        assert (result[name][0] == 0).all()
        assert result[name].isfinite().all()


def test_keys_that_are_values_are_loaded_once_and_get_both_gradients():
    arguments = draw(SHAPES["one-selection"], positional=True)
    del arguments["values"]
    result = outcome(arguments, lambda keys, **rest: triton_path(keys=keys, values=keys, **rest))
    upcast = {n: v.double() if n in floating(arguments) else v for n, v in arguments.items()}
    exact = outcome(
        upcast,
        lambda keys, **rest: chunk_retrieval(keys=keys, values=keys, implementation="reference", **rest),
    )
    errors = distance(result, exact)
    assert all(error < 2e-6 for error in errors.values()), errors


def test_of_equal_scores_the_earlier_chunk_wins_across_blocks_of_chunks():
    arguments = equalize_scores(draw((1, 2, 40, 2, 2, 1, None, 6, 2)))
    out = triton_path(**arguments)
    for name in ("keys", "values", "summaries"):
        arguments[name] = arguments[name][:, :2]
    arguments["valid"] = torch.full((1, 2), 2)
    torch.testing.assert_close(out, chunk_retrieval(**arguments))


def test_the_backward_is_deterministic():
    arguments = draw((1, 9, 3, 4, 4, 2, None, 8, 2))
    first, second = (outcome(arguments, triton_path) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_strided_caches_are_read_in_place():
    arguments = draw((2, 3, 4, 5, 4, 2, None, 8, 2))
    exact = outcome(arguments, triton_path)["out"]
    for name in ("keys", "values"):
        heads_first = arguments[name].permute(0, 3, 1, 2, 4).contiguous()
        arguments[name] = heads_first.permute(0, 2, 3, 1, 4)
        assert not arguments[name].is_contiguous()
    assert torch.equal(triton_path(**arguments), exact)


def test_addresses_beyond_two_billion_elements():
    arguments = draw((2, 1, 2, 3, 2, 1, None, 4, 2), dtype=torch.float16)
    arguments["valid"] = torch.full((2, 1), 2)
    exact = triton_path(**arguments)
    far = 2**31 + 64
    for name in ("keys", "values"):
        tensor = arguments[name]
        storage = torch.empty(
            far + tensor[0].numel(), dtype=torch.float16
        )  # only accessed pages are resident
        strided_tensor = storage.as_strided(tensor.shape, (far, *tensor.stride()[1:]))
        strided_tensor.copy_(tensor)
        arguments[name] = strided_tensor
    assert torch.equal(triton_path(**arguments), exact)


def test_only_one_derivative_in_reverse_mode_is_supported():
    arguments = draw(SHAPES["one-selection"])
    query = arguments.pop("query")
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda q: triton_path(query=q, **arguments), (query,), (query,))
    query.requires_grad_()
    (grad,) = torch.autograd.grad(triton_path(query=query, **arguments).sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no autograd formula|does not require grad"):
        grad.sum().backward()


def test_unsupported_sizes_are_explained():
    wide = draw((1, 1, 2, 2, 1, 1, None, 300, 1))
    with pytest.raises(ValueError, match="head width of 300"):
        triton_path(**wide)
    many = draw((1, 1, 70, 1, 1, 1, None, 2, 65))
    with pytest.raises(ValueError, match="top_k=65"):
        triton_path(**many)
    assert chunk_retrieval(**wide).isfinite().all()


MUTATIONS = [
    (
        'tl.trans(b_summaries), input_precision="ieee") * scale',
        'tl.trans(b_summaries), input_precision="ieee") * -scale',
    ),
    ("0x7FFFFFFF ^ ", "0 ^ "),
    ("(weight / mass)", "(1 / mass)"),
    ("mass = mass * decay + ", "mass = mass + "),
    ("i_s, i_g = i_u * S // U, i_u * G // U", "i_s, i_g = i_u * S // U, i_u * 0"),
    ("attention * (value_grad - delta[:, None]) * weight", "attention * value_grad * weight"),
    ("logit_grad = attention * (value_grad - delta[:, None])\n", "logit_grad = attention * value_grad\n"),
    ("keys_grad * scale", "keys_grad"),
    ("row < stop * R", "row < stop * R - 1"),
    ("* weight[:, None]", ""),
    ("score_grad = weights * (weight_grad - ", "score_grad = weights * (weight_grad + "),
    ("delta -= tl.load(lse_grad_ptr", "delta += tl.load(lse_grad_ptr"),
    ("return score_grad + weights * ", "return score_grad - weights * "),
    ("best + tl.log(", "tl.log("),
]


def equalize_scores(arguments) -> dict[str, Any]:
    """Return arguments whose scores are exactly equal in any order of summation, by integer factors."""
    summaries = arguments["summaries"][:, :1].round().expand_as(arguments["summaries"]).clone()
    valid = torch.full(arguments["valid"].shape, summaries.shape[1])
    return arguments | {"query": arguments["query"].round(), "summaries": summaries, "valid": valid}


@functools.cache
def reference_calls() -> list[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """Return calls on which every mutation fails, the most sensitive first, and their expected results."""
    cases = (
        equalize_scores(draw((1, 2, 4, 3, 4, 2, None, 8, 2), 3)),
        draw(SHAPES["long-chunk"], 3),
        draw(SHAPES["selections-and-key-heads-cross"], 3),
    )
    calls = [
        arguments | {"combine": combine, "return_lse": True}
        for arguments in cases
        for combine in ("hierarchical", "joint")
    ]
    return [(call, definition(call)) for call in calls]


def errors() -> Iterator[float]:
    for call, right in reference_calls():
        yield from distance(outcome(call, triton_path), right).values()


def test_the_right_kernel_passes_where_wrong_ones_are_caught():
    assert max(errors()) < 2e-6


@pytest.mark.parametrize(("right", "wrong"), MUTATIONS)
def test_a_wrong_kernel_is_caught(right, wrong, mutate_module, monkeypatch):
    monkeypatch.setattr(retrieval, "gpu", mutate_module(gpu, right, wrong))
    assert any(math.isnan(error) or error > 1e-3 for error in errors())


def test_the_operators_are_registered_as_torch_expects():
    arguments = draw((1, 2, 3, 2, 2, 1, None, 4, 2))
    tensors = {name: arguments[name].requires_grad_() for name in ("query", "keys", "values", "summaries")}
    valid = torch.arange(3) < arguments["valid"][..., None]
    problem = Problem(**tensors, valid=valid, summary_query=tensors["query"], positions=None, lengths=None)
    choice = Choice(2, False, 0.5, 0.5, 0, 0)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.scrubjay.chunk_retrieval.default, (*problem, *choice, "triton"), test_utils=tests
    )
    with torch.no_grad():
        out, *saved_tensors = torch.ops.scrubjay.chunk_retrieval(*problem, *choice, "triton")
    detached_inputs = [None if tensor is None else tensor.detach() for tensor in problem]
    needs_gradient = [True, True, True, True, False, True, False, False]
    backward = torch.ops.scrubjay.chunk_retrieval_backward.default
    for lse_grad in (None, saved_tensors[-1]):
        inputs = (*detached_inputs, *choice, out, lse_grad, out, *saved_tensors, needs_gradient)
        torch.library.opcheck(backward, inputs, test_utils=tests)


def test_problem_and_choice_are_the_ops_own_arguments():
    names = [argument.name for argument in torch.ops.scrubjay.chunk_retrieval.default._schema.arguments]
    assert names == [*Problem._fields, *Choice._fields, "implementation"]
