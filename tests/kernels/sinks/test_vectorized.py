"""Torch paths of sink attention (dense, banded, fused) and their derivatives of every order."""

from typing import Any

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional

from scrubjay.kernels import sink_attention
from scrubjay.kernels.sinks import op, vectorized

PATHS: list[Any] = ["dense", "banded"]
TENSORS = ["query", "keys", "values", "sink_logit"]


def test_banded_refuses_another_layout(permute_slots, draw):
    arguments = draw(2, time=6, cache_size=4, age=20)
    skipped_step = {name: arguments[name].clone() for name in ("query_step", "key_step")}
    for steps in skipped_step.values():
        steps[:, -1] += 1
    earlier_start = {"episode_start": arguments["episode_start"].clone()}
    earlier_start["episode_start"][:, -1] = -1
    for change in (permute_slots(arguments), skipped_step, earlier_start):
        with pytest.raises(ValueError, match="query_step is consecutive"):
            sink_attention(**(arguments | change), window=3, implementation="banded")


def test_the_torch_path_is_banded_where_that_pays(permute_slots, draw, monkeypatch):
    arguments = draw(3, time=63, cache_size=8)
    options: dict[str, Any] = {"window": 4, "num_sinks": 2}
    expected = sink_attention(**arguments, **options, implementation="reference")

    def refuse(*_):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(vectorized, "_run_dense", refuse)
        torch.testing.assert_close(sink_attention(**arguments, **options), expected)
    monkeypatch.setattr(vectorized, "_run_banded", refuse)
    torch.testing.assert_close(sink_attention(**permute_slots(arguments), **options), expected)
    sink_attention(**arguments, window=60)  # a band as wide as all


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_the_sink_logit_is_a_key_of_value_zero(draw, path):
    arguments = draw(5, time=9, cache_size=3, heads=1, groups=1, width=4)
    out = sink_attention(**arguments, window=5, num_sinks=1, scale=1.0, implementation=path)
    query, keys, values = (arguments[name][:, :, 0] for name in ("query", "keys", "values"))
    visible = vectorized.visible_slots(
        arguments["query_step"], arguments["key_step"], arguments["episode_start"], window=5, num_sinks=1
    )
    scores = (query @ keys.mT).masked_fill(~visible, -torch.inf)
    scores = torch.cat([scores, arguments["sink_logit"].expand(2, 9, 1)], dim=-1)
    expected = torch.softmax(scores, dim=-1) @ functional.pad(values, (0, 0, 0, 1))
    torch.testing.assert_close(out[:, :, 0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("blank", [float("nan"), float("inf")])
def test_slots_that_no_query_sees_may_hold_anything(draw, readout_and_gradients, assert_same, path, blank):
    arguments = draw(10, time=40, cache_size=20, age=30, reset=0.1)
    options = {"window": 3, "num_sinks": 1, "implementation": path}
    visible = vectorized.visible_slots(
        arguments["query_step"], arguments["key_step"], arguments["episode_start"], window=3, num_sinks=1
    )
    unseen = ~visible.any(dim=1)
    assert unseen.sum() > 10
    clean = readout_and_gradients(arguments, **options)
    for name in ("keys", "values"):
        arguments[name] = arguments[name].masked_fill(unseen[..., None, None], blank)
    assert_same(readout_and_gradients(arguments, **options), clean, tolerance=0)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("sink_logit", [True, False])
@pytest.mark.parametrize("path", [*PATHS, "op"])
def test_first_and_second_derivatives_match_finite_differences(tiny, path, sink_logit):
    arguments = tiny(sink_logit=sink_logit)
    names = [name for name in TENSORS if arguments[name] is not None]
    steps = [arguments[name] for name in ("query_step", "key_step", "episode_start")]

    def read(*tensors):
        all_arguments = arguments | dict(zip(names, tensors, strict=True))
        if path == "op":
            floats = [all_arguments[name] for name in TENSORS]
            return op._op(*floats, *steps, 2, 1, 0.7, "torch")[0]
        return sink_attention(**all_arguments, window=2, num_sinks=1, implementation=path)

    inputs = [arguments[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(read, inputs)
    assert torch.autograd.gradgradcheck(read, inputs)


def call_unfused(function, monkeypatch, *arguments):
    """Call a function with torch's fused attention disabled."""
    with monkeypatch.context() as patch:
        patch.setattr(vectorized, "_attend_fused", vectorized._attend)
        return function(*arguments)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("time", [1, 40])
@pytest.mark.parametrize("sink_logit", [True, False])
def test_the_fused_path_runs_and_equals_the_explicit_one(
    draw, readout_and_gradients, assert_same, groups, time, sink_logit, monkeypatch
):
    arguments = draw(19, time=time, groups=groups, value_width=6, cache_size=9, sink_logit=sink_logit)
    options: dict[str, Any] = {"window": 4, "num_sinks": 2}
    names = [name for name in TENSORS if arguments[name] is not None]
    calls = []
    fused_attention = functional.scaled_dot_product_attention

    def count_call(*args, **kwargs):
        calls.append(args)
        return fused_attention(*args, **kwargs)

    def compute_results():
        gradients = readout_and_gradients(arguments, **options)
        num_training_calls.append(len(calls))
        return gradients | {"alone": sink_attention(**arguments, **options)}

    num_training_calls: list[int] = []
    monkeypatch.setattr(functional, "scaled_dot_product_attention", count_call)
    results = compute_results()
    # With gradients and a sink logit the explicit path runs; without gradients each block is one fused call.
    assert num_training_calls == [0 if sink_logit else 1]
    assert len(calls) - num_training_calls[0] == (1 if time == 1 else 3)
    assert results.keys() == {"out", "alone", *names}
    assert_same(results, call_unfused(compute_results, monkeypatch), tolerance=1e-10)


@pytest.mark.parametrize("path", PATHS)
def test_derivatives_of_every_order_follow_a_fused_one(draw, path, monkeypatch):
    arguments = draw(20, time=20, cache_size=6, value_width=6, sink_logit=False)
    weights = torch.linspace(-1, 1, 2 * 20 * 4 * 6, dtype=torch.float64).view(2, 20, 4, 6)

    def derivatives():
        keys = arguments["keys"].clone().requires_grad_()
        query = arguments["query"].clone().requires_grad_()
        # Values depend on the keys: the gradient by one must not pass through the other.
        all_arguments = arguments | {"query": query, "keys": keys, "values": keys.sin()}
        out = sink_attention(**all_arguments, window=4, num_sinks=2, implementation=path)
        loss = (out * weights).sum()
        first = torch.autograd.grad(loss, (query, keys), retain_graph=True)
        again = torch.autograd.grad(loss, (query, keys), retain_graph=True)
        with_graph = torch.autograd.grad(loss, (query, keys), create_graph=True)
        second = torch.autograd.grad([g.square().sum() for g in with_graph], (query, keys), create_graph=True)
        third = torch.autograd.grad([g.square().sum() for g in second], (query, keys))
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
        return *first, *with_graph, *second, *third

    expected = call_unfused(derivatives, monkeypatch)
    for actual, target in zip(derivatives(), expected, strict=True):
        torch.testing.assert_close(actual, target, rtol=1e-9, atol=1e-9)


def test_tangents_and_batches_pass_a_fused_backward(draw):
    arguments = draw(21, value_width=6, sink_logit=False)
    query = arguments["query"].requires_grad_()
    out = sink_attention(**arguments, window=4, num_sinks=2)
    weights = torch.stack([torch.ones_like(out), out.detach()])
    both = [torch.autograd.grad(out, query, one, retain_graph=True)[0] for one in weights]
    (batched,) = torch.autograd.grad(out, query, weights, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(batched, torch.stack(both))
    with forward_ad.dual_level():
        (grad,) = torch.autograd.grad(out, query, forward_ad.make_dual(weights[0], weights[1]))
        tangent = forward_ad.unpack_dual(grad).tangent
    torch.testing.assert_close(tangent, both[1])


@pytest.mark.parametrize("path", PATHS)
def test_forward_over_reverse_equals_reverse_over_reverse(draw, path):
    arguments = draw(22, time=20, value_width=6, sink_logit=False)

    def loss(query):
        all_arguments = arguments | {"query": query}
        return sink_attention(**all_arguments, window=4, num_sinks=2, implementation=path).square().sum()

    query = arguments["query"].requires_grad_()
    direction = torch.ones_like(query)
    (grad,) = torch.autograd.grad(loss(query), query, create_graph=True)
    (expected,) = torch.autograd.grad(grad, query, direction)
    along: Any = torch.func.jvp(torch.func.grad(loss), (query.detach(),), (direction,))
    torch.testing.assert_close(along[1], expected)


@pytest.mark.parametrize("path", PATHS)
def test_forward_mode_agrees_with_reverse_mode(draw, path):
    arguments = draw(12, time=20, cache_size=6)

    def read(*tensors):
        all_arguments = arguments | dict(zip(TENSORS, tensors, strict=True))
        return sink_attention(**all_arguments, window=4, num_sinks=2, implementation=path)

    primals = tuple(arguments[name] for name in TENSORS)
    generator = torch.Generator().manual_seed(0)
    tangents = tuple(torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in primals)
    pushforward: Any = torch.func.jvp(read, primals, tangents)
    pullback: Any = torch.func.vjp(read, *primals)
    (_, along), (out, pull) = pushforward, pullback
    weights = torch.randn(out.shape, generator=generator, dtype=out.dtype)
    reverse = sum((g * t).sum() for g, t in zip(pull(weights), tangents, strict=True))
    torch.testing.assert_close((along * weights).sum(), reverse)


@pytest.mark.parametrize("sink_logit", [True, False])
def test_queries_that_see_nothing_among_others_read_zeros_fused_too(draw, sink_logit):
    arguments = draw(23, time=6, value_width=6, sink_logit=sink_logit)
    arguments["episode_start"][:, 2] = arguments["query_step"][:, -1] + 1
    for grows in (False, True):
        arguments["query"].requires_grad_(grows)
        out = sink_attention(**arguments, window=4, num_sinks=2)
        expected = sink_attention(**arguments, window=4, num_sinks=2, implementation="reference")
        assert (out[:, 2] == 0).all()
        torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("cache_size", [0, 30])
def test_long_segments_without_gradients_leave_out_what_is_later(
    draw, permute_slots, cache_size, monkeypatch
):
    arguments = draw(24, time=150, cache_size=cache_size, age=60, reset=0.02, value_width=6)
    options: dict[str, Any] = {"window": 140, "num_sinks": 3}
    scored_pairs = []
    fused_attention = functional.scaled_dot_product_attention

    def count_call(query, keys, *others, **options):
        scored_pairs.append(query.shape[2] * keys.shape[2])
        return fused_attention(query, keys, *others, **options)

    expected = sink_attention(**arguments, **options, implementation="reference")
    monkeypatch.setattr(functional, "scaled_dot_product_attention", count_call)
    torch.testing.assert_close(sink_attention(**arguments, **options), expected)
    in_order = sum(scored_pairs)
    scored_pairs.clear()
    torch.testing.assert_close(sink_attention(**permute_slots(arguments), **options), expected)
    assert in_order < 0.9 * sum(scored_pairs)
