"""Paths of sink attention against its reference, forward and backward, and their invariants."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from scrubjay.kernels import merge, sink_attention, sink_slot

PATHS: list[Any] = ["dense", "banded"]
TENSORS = ["query", "keys", "values", "sink_logit"]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    time=st.sampled_from([1, 2, 5, 17, 33, 63]),
    cache_size=st.sampled_from([0, 1, 7, 20]),
    heads_groups=st.sampled_from([(1, 1), (4, 1), (4, 2), (6, 3)]),
    window=st.sampled_from([1, 2, 3, 8, 20, 100]),
    num_sinks=st.sampled_from([0, 1, 4, 12]),
    reset=st.sampled_from([0, 0.05, 0.4]),
    sink_logit=st.booleans(),
)
def test_paths_equal_the_definition_in_value_and_gradient(
    draw,
    readout_and_gradients,
    assert_same,
    seed,
    time,
    cache_size,
    heads_groups,
    window,
    num_sinks,
    reset,
    sink_logit,
):
    arguments = draw(seed, 2, time, cache_size, *heads_groups, width=5, reset=reset, sink_logit=sink_logit)
    options = {"window": window, "num_sinks": num_sinks}
    expected = readout_and_gradients(arguments, **options, implementation="reference")
    paths: list[Any] = [*PATHS, "torch"]
    for path in paths:
        assert_same(readout_and_gradients(arguments, **options, implementation=path), expected)


def test_wide_heads_and_int32_steps(draw, readout_and_gradients, assert_same):
    arguments = draw(1, time=63, width=40, value_width=24, cache_size=9)
    expected = readout_and_gradients(arguments, window=10, num_sinks=2, implementation="reference")
    for name in ("query_step", "key_step", "episode_start"):
        arguments[name] = arguments[name].int()
    for path in PATHS:
        results = readout_and_gradients(arguments, window=10, num_sinks=2, implementation=path)
        assert_same(results, expected)


def test_queries_may_be_any_steps_in_any_order(draw, readout_and_gradients, assert_same):
    arguments = draw(2, time=6, cache_size=4)
    for name in ("query", "query_step", "episode_start"):
        arguments[name] = arguments[name][:, [3, 0, 5]]
    expected = readout_and_gradients(arguments, window=3, num_sinks=1, implementation="reference")
    assert_same(readout_and_gradients(arguments, window=3, num_sinks=1, implementation="dense"), expected)


@pytest.mark.parametrize("path", ["reference", "dense", "torch"])
def test_there_may_be_no_slots_or_no_queries(draw, path):
    arguments = draw(2)
    empty = arguments | {name: arguments[name][:, :0] for name in ("keys", "values", "key_step")}
    assert (sink_attention(**empty, window=3, implementation=path) == 0).all()
    empty = arguments | {name: arguments[name][:, :0] for name in ("query", "query_step", "episode_start")}
    assert sink_attention(**empty, window=3, implementation=path).shape == (2, 0, 4, 3)


@pytest.mark.parametrize("path", PATHS)
def test_a_window_over_everything_is_causal_attention(draw, path):
    arguments = draw(
        4, time=33, cache_size=0, age=0, reset=0, heads=4, groups=4, value_width=6, sink_logit=False
    )
    out = sink_attention(**arguments, window=33, implementation=path)
    query, keys, values = (arguments[name].transpose(1, 2) for name in ("query", "keys", "values"))
    full = functional.scaled_dot_product_attention(query, keys, values, is_causal=True)
    torch.testing.assert_close(out, full.transpose(1, 2), rtol=1e-10, atol=1e-10)


def ring_states(start, num_sinks, window) -> list[torch.Tensor]:
    """Return the step in each cache slot, before every step of a stream and after the last one."""
    batch, total = start.shape
    cached_steps = torch.full((batch, num_sinks + window), -1)
    states = [cached_steps.clone()]
    for step in range(total):
        slot = sink_slot(step - start[:, step], num_sinks, window)
        cached_steps[torch.arange(batch), slot] = step
        states.append(cached_steps.clone())
    return states


def whole_stream(draw, seed, num_sinks, window, total=40):
    arguments = draw(seed, batch=3, time=total, cache_size=0, age=0, reset=0.0)
    starts = torch.rand(3, total, generator=torch.Generator().manual_seed(seed)) < 0.08
    arguments["episode_start"] = torch.where(starts, torch.arange(total), 0).cummax(dim=1).values
    return arguments, ring_states(arguments["episode_start"], num_sinks, window)


def part(arguments, first, last, cached_steps, with_own):
    """Return the arguments of the steps `first` to `last` with a cache of `cached_steps`."""
    own = torch.arange(first, last if with_own else first).expand(len(cached_steps), -1)
    slots = torch.cat([cached_steps, own], dim=1)
    row = torch.arange(len(cached_steps))[:, None]
    return arguments | {
        "query": arguments["query"][:, first:last],
        "query_step": arguments["query_step"][:, first:last],
        "episode_start": arguments["episode_start"][:, first:last],
        "keys": arguments["keys"][row, slots],
        "values": arguments["values"][row, slots],
        "key_step": slots,
    }


@pytest.mark.parametrize("path", [*PATHS, "torch"])
@pytest.mark.parametrize(("num_sinks", "window"), [(0, 4), (2, 5), (4, 1), (3, 50)])
def test_decoding_over_a_ring_equals_one_pass(draw, path, num_sinks, window):
    arguments, states = whole_stream(draw, 6, num_sinks, window)
    options = {"window": window, "num_sinks": num_sinks}
    expected = sink_attention(**arguments, **options, implementation=path)
    for step in range(40):
        one = part(arguments, step, step + 1, states[step + 1], with_own=False)
        out = sink_attention(**one, **options)
        torch.testing.assert_close(out[:, 0], expected[:, step], rtol=1e-10, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    cuts=st.sets(st.integers(1, 39), max_size=5),
    sizes=st.sampled_from([(0, 4), (2, 5), (4, 1), (3, 50)]),
)
def test_cutting_a_stream_anywhere_changes_nothing(
    draw, readout_and_gradients, assert_same, seed, cuts, sizes
):
    num_sinks, window = sizes
    arguments, states = whole_stream(draw, seed, num_sinks, window)
    options = {"window": window, "num_sinks": num_sinks}
    expected = readout_and_gradients(arguments, **options, implementation="dense")
    bounds = [0, *sorted(cuts), 40]
    for path in PATHS:
        fresh = arguments | {name: arguments[name].clone().requires_grad_() for name in TENSORS}
        pieces = [
            sink_attention(
                **part(fresh, first, last, states[first], with_own=True), **options, implementation=path
            )
            for first, last in itertools.pairwise(bounds)
        ]
        out = torch.cat(pieces, dim=1)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        assert_same({"out": out.detach()} | {name: fresh[name].grad for name in TENSORS}, expected)


def test_the_order_of_slots_changes_nothing(permute_slots, draw):
    arguments = draw(7, time=11, cache_size=9)
    out = sink_attention(**arguments, window=4, num_sinks=2)
    for seed in range(5):
        other = sink_attention(**permute_slots(arguments, seed), window=4, num_sinks=2)
        torch.testing.assert_close(other, out, rtol=1e-12, atol=1e-12)


def test_a_step_is_written_to_a_sink_or_around_the_ring():
    assert sink_slot(torch.arange(9), 2, 3).tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 2]
    assert sink_slot(torch.arange(5), 0, 2).tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_a_query_that_sees_nothing_reads_exact_zeros(draw, readout_and_gradients, path):
    arguments = draw(8, time=6, sink_logit=False)
    arguments["episode_start"] = arguments["query_step"][:, -1:].expand(-1, 6) + 1
    results = readout_and_gradients(arguments, window=4, num_sinks=2, implementation=path)
    assert all((tensor == 0).all() for tensor in results.values())


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_negative_steps_are_never_seen(draw, readout_and_gradients, assert_same, path):
    arguments = draw(9, time=6, cache_size=4, age=0, reset=0)
    for name in ("query_step", "key_step", "episode_start"):
        arguments[name] = arguments[name] - 3
    arguments["key_step"][:, :4] = -1
    results = readout_and_gradients(arguments, window=4, num_sinks=2, implementation=path)
    assert (results["out"][:, :3] == 0).all()
    assert (results["keys"][:, :7] == 0).all()
    expected = readout_and_gradients(arguments, window=4, num_sinks=2, implementation="reference")
    assert_same(results, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("path", PATHS)
def test_half_precision_stays_near_the_definition(draw, path, dtype):
    low = draw(13, time=33, cache_size=8, dtype=dtype)
    exact = {n: v.double() if n in TENSORS else v for n, v in low.items()}
    out = sink_attention(**low, window=6, num_sinks=2, implementation=path)
    expected = sink_attention(**exact, window=6, num_sinks=2, implementation="reference")
    assert out.dtype == dtype
    error = (out.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < (1e-3 if dtype == torch.float16 else 5e-3)


def test_the_op_is_registered_soundly(tiny):
    arguments = tiny(dtype=torch.float32)
    steps = [arguments[name] for name in ("query_step", "key_step", "episode_start")]
    for sink_logit in (arguments["sink_logit"].requires_grad_(), None):
        floats = [arguments[name].requires_grad_() for name in TENSORS[:3]]
        inputs = (*floats, sink_logit, *steps, 2, 1, 0.7, "torch")
        torch.library.opcheck(torch.ops.scrubjay.sink_attention.default, inputs)
        backward = (torch.ones(1, 5, 2, 2), *floats, sink_logit, *[floats[0].new_empty(0)] * 2, *inputs[4:])
        op = torch.ops.scrubjay.sink_attention_backward.default
        torch.library.opcheck(op, backward, test_utils="test_autograd_registration")
        # The other checks access storages, which the torch.func tensors used inside do not have.
        with FakeTensorMode(allow_non_fake_inputs=True):
            fake_grads = op(*backward)
        for real, fake in zip(op(*backward), fake_grads, strict=True):
            assert (real.shape, real.dtype) == (fake.shape, fake.dtype)
            assert real.is_contiguous() == fake.is_contiguous()


@pytest.mark.matrix
@pytest.mark.parametrize("path", ["auto", pytest.param("banded", marks=pytest.mark.slow)])
def test_it_compiles_as_one_graph_forward_and_backward(draw, assert_same, path):
    arguments = draw(14, time=40, cache_size=6, dtype=torch.float32)

    def loss(tensors):
        out = sink_attention(**tensors, window=4, num_sinks=2, implementation=path)
        return out.square().sum()

    results = []
    for run in (loss, torch.compile(loss, fullgraph=True)):
        fresh = arguments | {name: arguments[name].clone().requires_grad_() for name in TENSORS}
        run(fresh).backward()
        results.append({name: fresh[name].grad for name in TENSORS})
    assert_same(results[1], results[0], tolerance=1e-5)


class Reader(torch.nn.Module):
    def forward(self, query, keys, values, query_step, key_step, episode_start):
        steps = (query_step, key_step, episode_start)
        return sink_attention(query, keys, values, *steps, window=4, num_sinks=2)


@pytest.mark.parametrize("time", [1, 40])
def test_it_exports_with_any_batch_size(draw, time):
    names = ["query", "keys", "values", "query_step", "key_step", "episode_start"]
    sample, other = (draw(15, batch=b, time=time, cache_size=6, dtype=torch.float32) for b in (2, 5))
    dims = {name: {0: torch.export.Dim("batch")} for name in names}
    program = torch.export.export(Reader(), tuple(sample[n] for n in names), dynamic_shapes=dims)
    inputs = tuple(other[name] for name in names)
    torch.testing.assert_close(program.module()(*inputs), Reader()(*inputs))
    assert "scrubjay" not in str(program.graph)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "window=0"),
        ({"num_sinks": -1}, "num_sinks=-1"),
        ({"query": torch.zeros(2, 7, 4)}, "query has shape"),
        ({"query": torch.zeros(2, 7, 3, 6)}, "do not divide"),
        ({"keys": torch.zeros(2, 12, 2, 5)}, "keys has shape"),
        ({"keys": torch.zeros(3, 12, 2, 6)}, "keys has shape"),
        ({"values": torch.zeros(2, 11, 2, 3)}, "values has shape"),
        ({"values": torch.zeros(2, 12, 1, 3)}, "values has shape"),
        ({"query_step": torch.zeros(2, 8, dtype=torch.long)}, "query_step has shape"),
        ({"key_step": torch.zeros(2, 7, dtype=torch.long)}, "key_step has shape"),
        ({"episode_start": torch.zeros(7, dtype=torch.long)}, "episode_start has shape"),
        ({"sink_logit": torch.zeros(2)}, "sink_logit has shape"),
        ({"implementation": "fast"}, "implementation='fast'"),
    ],
)
def test_bad_values_are_named(draw, change, message):
    with pytest.raises(ValueError, match=message):
        sink_attention(**({"window": 4} | draw(16, dtype=torch.float32) | change))


@pytest.mark.parametrize("name", ["query", "values", "key_step", "query_step", "episode_start"])
def test_wrong_dtypes_are_refused(draw, name):
    arguments = draw(17)
    arguments[name] = arguments[name].int() if name in TENSORS else arguments[name].float()
    with pytest.raises(TypeError, match=f"{name} has dtype"):
        sink_attention(**arguments, window=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "float64"),
        ({"dtype": torch.float32, "width": 300}, "width 300"),
        ({"dtype": torch.float16, "value_width": 257}, "width 257"),
    ],
)
def test_sizes_without_a_kernel_are_named(draw, change, message):
    with pytest.raises(ValueError, match=message):
        sink_attention(**draw(18, **change), window=4, implementation="triton")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sink_logit", [True, False])
def test_the_log_sum_exp_and_its_gradients_equal_the_definition(
    draw, readout_and_gradients, assert_same, path, sink_logit
):
    for seed, sizes in enumerate([(0, 4), (2, 5), (4, 1), (3, 50)]):
        arguments = draw(seed, time=23, cache_size=0, age=0, reset=0.2, sink_logit=sink_logit)
        options = {"num_sinks": sizes[0], "window": sizes[1], "return_lse": True}
        expected = readout_and_gradients(arguments, **options, implementation="reference")
        assert_same(readout_and_gradients(arguments, **options, implementation=path), expected)


def test_a_query_that_sees_nothing_has_a_log_sum_exp_of_minus_infinity(draw):
    arguments = draw(3, sink_logit=False)
    later_start = arguments["query_step"] + 1
    query = arguments["query"].requires_grad_()
    out, lse = sink_attention(**arguments | {"episode_start": later_start}, window=3, return_lse=True)
    assert (lse == -torch.inf).all()
    total = merge([(out, lse), (torch.ones_like(out), torch.zeros_like(lse))])
    assert (total == 1).all()
    total.sum().backward()
    assert (query.grad == 0).all()


def test_keys_in_two_calls_merge_to_those_in_one(draw):
    """Models a window on a device and sinks elsewhere; no step is in both parts."""
    arguments = draw(8, time=9, cache_size=12, sink_logit=False)
    options = {"window": 7, "num_sinks": 3, "return_lse": True}
    whole, lse = sink_attention(**arguments, **options)
    names = ("keys", "values", "key_step")
    halves = [
        sink_attention(**arguments | {name: arguments[name][:, part] for name in names}, **options)
        for part in (slice(0, 8), slice(8, None))
    ]
    torch.testing.assert_close(merge(halves), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.logaddexp(halves[0][1], halves[1][1]), lse, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", ["dense", "banded"])
def test_merged_read_outs_have_the_gradients_of_finite_differences(tiny, path):
    arguments = tiny()
    arguments["key_step"][:, :3] = -1
    names = ["query", "keys", "values", "sink_logit"]
    other = (torch.ones(1, 5, 2, 2, dtype=torch.float64), torch.zeros(1, 5, 2, dtype=torch.float64))

    def merge_with_other(*tensors):
        fresh = arguments | dict(zip(names, tensors, strict=True))
        return merge(
            [sink_attention(**fresh, window=2, num_sinks=1, return_lse=True, implementation=path), other]
        )

    leaves = [arguments[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(merge_with_other, leaves)
    assert torch.autograd.gradgradcheck(merge_with_other, leaves)


def test_a_compiled_call_with_its_log_sum_exp_is_one_graph(draw):
    arguments = draw(9, time=6, dtype=torch.float32)

    def read(**inputs):
        return sink_attention(**inputs, window=4, num_sinks=1, return_lse=True)

    compiled_read = torch.compile(read, fullgraph=True, backend="aot_eager")
    for results, right in zip(compiled_read(**arguments), read(**arguments), strict=True):
        torch.testing.assert_close(results, right)
