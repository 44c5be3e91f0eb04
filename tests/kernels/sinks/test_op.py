"""Every path of sink attention against its definition, forward and backward, and the laws it must obey."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn import functional

from scrubjay.kernels import sink_attention, sink_slot
from scrubjay.kernels.sinks import op, vectorised

PATHS: list[Any] = ["dense", "banded"]
TENSORS = ["query", "keys", "values", "sink_logit"]


def draw(
    seed,
    batch=2,
    time=7,
    cached=5,
    heads=4,
    groups=2,
    width=6,
    value_width=3,
    reset=0.1,
    age=40,
    sink_logit=True,
    dtype=torch.float64,
) -> dict[str, Any]:
    """Return a segment of a stream behind some of the stream's earlier steps, in any order, and empty slots."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    first = torch.randint(0, age + 1, (batch,), generator=generator)
    starts = torch.rand(batch, age + time, generator=generator) < reset
    episode_start = torch.where(starts, torch.arange(age + time), 0).cummax(dim=1).values
    query_step = first[:, None] + torch.arange(time)
    cache = torch.full((batch, cached), -1)
    for row, before in enumerate(first.tolist()):
        held = torch.randperm(before, generator=generator)[:cached]
        cache[row, torch.randperm(cached, generator=generator)[: len(held)]] = held
    return {
        "query": normal(batch, time, heads, width),
        "keys": normal(batch, cached + time, groups, width),
        "values": normal(batch, cached + time, groups, value_width),
        "query_step": query_step,
        "key_step": torch.cat([cache, query_step], dim=1),
        "episode_start": episode_start.gather(1, query_step),
        "sink_logit": normal(heads) if sink_logit else None,
    }


def readout_and_gradients(arguments, **options) -> dict[str, torch.Tensor]:
    fresh = dict(arguments)
    names = [name for name in TENSORS if arguments[name] is not None]
    for name in names:
        fresh[name] = arguments[name].clone().requires_grad_()
    out = sink_attention(**fresh, **options)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    (out * weights).sum().backward()
    return {"out": out.detach()} | {name: fresh[name].grad for name in names}


def assert_same(found, expected, tolerance=1e-9):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance, msg=name)


def permuted(arguments, seed=0) -> dict[str, Any]:
    order = torch.randperm(arguments["keys"].shape[1], generator=torch.Generator().manual_seed(seed))
    return arguments | {name: arguments[name][:, order] for name in ("keys", "values", "key_step")}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    time=st.sampled_from([1, 2, 5, 17, 33, 63]),
    cached=st.sampled_from([0, 1, 7, 20]),
    heads_groups=st.sampled_from([(1, 1), (4, 1), (4, 2), (6, 3)]),
    window=st.sampled_from([1, 2, 3, 8, 20, 100]),
    num_sinks=st.sampled_from([0, 1, 4, 12]),
    reset=st.sampled_from([0, 0.05, 0.4]),
    sink_logit=st.booleans(),
)
def test_paths_equal_the_definition_in_value_and_gradient(
    seed, time, cached, heads_groups, window, num_sinks, reset, sink_logit
):
    arguments = draw(seed, 2, time, cached, *heads_groups, width=5, reset=reset, sink_logit=sink_logit)
    options = {"window": window, "num_sinks": num_sinks}
    expected = readout_and_gradients(arguments, **options, implementation="reference")
    paths: list[Any] = [*PATHS, "torch"]
    for path in paths:
        assert_same(readout_and_gradients(arguments, **options, implementation=path), expected)


def test_wide_heads_and_int32_steps():
    arguments = draw(1, time=63, width=40, value_width=24, cached=9)
    expected = readout_and_gradients(arguments, window=10, num_sinks=2, implementation="reference")
    for name in ("query_step", "key_step", "episode_start"):
        arguments[name] = arguments[name].int()
    for path in PATHS:
        found = readout_and_gradients(arguments, window=10, num_sinks=2, implementation=path)
        assert_same(found, expected)


def test_queries_may_be_any_steps_in_any_order():
    arguments = draw(2, time=6, cached=4)
    for name in ("query", "query_step", "episode_start"):
        arguments[name] = arguments[name][:, [3, 0, 5]]
    expected = readout_and_gradients(arguments, window=3, num_sinks=1, implementation="reference")
    assert_same(readout_and_gradients(arguments, window=3, num_sinks=1, implementation="dense"), expected)


@pytest.mark.parametrize("path", ["reference", "dense", "torch"])
def test_there_may_be_no_slots_or_no_queries(path):
    arguments = draw(2)
    empty = arguments | {name: arguments[name][:, :0] for name in ("keys", "values", "key_step")}
    assert (sink_attention(**empty, window=3, implementation=path) == 0).all()
    empty = arguments | {name: arguments[name][:, :0] for name in ("query", "query_step", "episode_start")}
    assert sink_attention(**empty, window=3, implementation=path).shape == (2, 0, 4, 3)


def test_banded_refuses_another_layout():
    arguments = draw(2, time=6, cached=4, age=20)
    skipping = {name: arguments[name].clone() for name in ("query_step", "key_step")}
    for steps in skipping.values():
        steps[:, -1] += 1
    going_back = {"episode_start": arguments["episode_start"].clone()}
    going_back["episode_start"][:, -1] = -1
    for change in (permuted(arguments), skipping, going_back):
        with pytest.raises(ValueError, match="consecutive query_step"):
            sink_attention(**(arguments | change), window=3, implementation="banded")


def test_the_torch_path_is_banded_where_that_pays(monkeypatch):
    arguments = draw(3, time=63, cached=8)
    options: dict[str, Any] = {"window": 4, "num_sinks": 2}
    expected = sink_attention(**arguments, **options, implementation="reference")

    def refuse(*_):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(vectorised, "_dense", refuse)
        torch.testing.assert_close(sink_attention(**arguments, **options), expected)
    monkeypatch.setattr(vectorised, "_banded", refuse)
    torch.testing.assert_close(sink_attention(**permuted(arguments), **options), expected)
    sink_attention(**arguments, window=60)  # a band as wide as all


@pytest.mark.parametrize("path", PATHS)
def test_a_window_over_everything_is_causal_attention(path):
    arguments = draw(4, time=33, cached=0, age=0, reset=0, heads=4, groups=4, value_width=6, sink_logit=False)
    out = sink_attention(**arguments, window=33, implementation=path)
    query, keys, values = (arguments[name].transpose(1, 2) for name in ("query", "keys", "values"))
    full = functional.scaled_dot_product_attention(query, keys, values, is_causal=True)
    torch.testing.assert_close(out, full.transpose(1, 2), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_the_sink_logit_is_a_key_of_value_zero(path):
    arguments = draw(5, time=9, cached=3, heads=1, groups=1, width=4)
    out = sink_attention(**arguments, window=5, num_sinks=1, scale=1.0, implementation=path)
    query, keys, values = (arguments[name][:, :, 0] for name in ("query", "keys", "values"))
    visible = vectorised.visible_slots(
        arguments["query_step"], arguments["key_step"], arguments["episode_start"], window=5, num_sinks=1
    )
    scores = (query @ keys.mT).masked_fill(~visible, -torch.inf)
    scores = torch.cat([scores, arguments["sink_logit"].expand(2, 9, 1)], dim=-1)
    expected = torch.softmax(scores, dim=-1) @ functional.pad(values, (0, 0, 0, 1))
    torch.testing.assert_close(out[:, :, 0], expected, rtol=1e-10, atol=1e-10)


def ring_states(start, num_sinks, window) -> list[torch.Tensor]:
    """Return which step each slot of the cache holds before every step of a stream, and after the last."""
    batch, total = start.shape
    held = torch.full((batch, num_sinks + window), -1)
    states = [held.clone()]
    for step in range(total):
        slot = sink_slot(step - start[:, step], num_sinks, window)
        held[torch.arange(batch), slot] = step
        states.append(held.clone())
    return states


def whole_stream(seed, num_sinks, window, total=40):
    arguments = draw(seed, batch=3, time=total, cached=0, age=0, reset=0.0)
    starts = torch.rand(3, total, generator=torch.Generator().manual_seed(seed)) < 0.08
    arguments["episode_start"] = torch.where(starts, torch.arange(total), 0).cummax(dim=1).values
    return arguments, ring_states(arguments["episode_start"], num_sinks, window)


def part(arguments, first, last, held, with_own):
    """Return the arguments of the steps `first` to `last` behind a cache that holds the steps `held`."""
    own = torch.arange(first, last if with_own else first).expand(len(held), -1)
    slots = torch.cat([held, own], dim=1)
    row = torch.arange(len(held))[:, None]
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
def test_decoding_over_a_ring_equals_one_pass(path, num_sinks, window):
    arguments, states = whole_stream(6, num_sinks, window)
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
def test_cutting_a_stream_anywhere_changes_nothing(seed, cuts, sizes):
    num_sinks, window = sizes
    arguments, states = whole_stream(seed, num_sinks, window)
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


def test_the_order_of_slots_changes_nothing():
    arguments = draw(7, time=11, cached=9)
    out = sink_attention(**arguments, window=4, num_sinks=2)
    for seed in range(5):
        other = sink_attention(**permuted(arguments, seed), window=4, num_sinks=2)
        torch.testing.assert_close(other, out, rtol=1e-12, atol=1e-12)


def test_a_step_is_written_to_a_sink_or_around_the_ring():
    assert sink_slot(torch.arange(9), 2, 3).tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 2]
    assert sink_slot(torch.arange(5), 0, 2).tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_a_query_that_sees_nothing_reads_exact_zeros(path):
    arguments = draw(8, time=6, sink_logit=False)
    arguments["episode_start"] = arguments["query_step"][:, -1:].expand(-1, 6) + 1
    found = readout_and_gradients(arguments, window=4, num_sinks=2, implementation=path)
    assert all((tensor == 0).all() for tensor in found.values())


@pytest.mark.parametrize("path", ["reference", *PATHS])
def test_negative_steps_are_never_seen(path):
    arguments = draw(9, time=6, cached=4, age=0, reset=0)
    for name in ("query_step", "key_step", "episode_start"):
        arguments[name] = arguments[name] - 3
    arguments["key_step"][:, :4] = -1
    found = readout_and_gradients(arguments, window=4, num_sinks=2, implementation=path)
    assert (found["out"][:, :3] == 0).all()
    assert (found["keys"][:, :7] == 0).all()
    expected = readout_and_gradients(arguments, window=4, num_sinks=2, implementation="reference")
    assert_same(found, expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("blank", [float("nan"), float("inf")])
def test_slots_that_no_query_sees_may_hold_anything(path, blank):
    arguments = draw(10, time=40, cached=20, age=30, reset=0.1)
    options = {"window": 3, "num_sinks": 1, "implementation": path}
    visible = vectorised.visible_slots(
        arguments["query_step"], arguments["key_step"], arguments["episode_start"], window=3, num_sinks=1
    )
    unseen = ~visible.any(dim=1)
    assert unseen.sum() > 10
    clean = readout_and_gradients(arguments, **options)
    for name in ("keys", "values"):
        arguments[name] = arguments[name].masked_fill(unseen[..., None, None], blank)
    assert_same(readout_and_gradients(arguments, **options), clean, tolerance=0)


def tiny(**options) -> dict[str, Any]:
    return draw(
        11, batch=1, time=5, cached=3, heads=2, groups=1, width=2, value_width=2, reset=0.2, **options
    )


@pytest.mark.parametrize("sink_logit", [True, False])
@pytest.mark.parametrize("path", [*PATHS, "op"])
def test_first_and_second_derivatives_match_finite_differences(path, sink_logit):
    arguments = tiny(sink_logit=sink_logit)
    names = [name for name in TENSORS if arguments[name] is not None]
    steps = [arguments[name] for name in ("query_step", "key_step", "episode_start")]

    def read(*tensors):
        given_all = arguments | dict(zip(names, tensors, strict=True))
        if path == "op":
            floats = [given_all[name] for name in TENSORS]
            return op._op(*floats, *steps, 2, 1, 0.7, "torch")[0]
        return sink_attention(**given_all, window=2, num_sinks=1, implementation=path)

    inputs = [arguments[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(read, inputs)
    assert torch.autograd.gradgradcheck(read, inputs)


def explicitly(function, monkeypatch, *arguments):
    """Call without torch's fused attention."""
    with monkeypatch.context() as patch:
        patch.setattr(vectorised, "_attend_fused", vectorised._attend)
        return function(*arguments)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("time", [1, 40])
@pytest.mark.parametrize("sink_logit", [True, False])
def test_the_fused_way_is_taken_and_equals_the_explicit_one(groups, time, sink_logit, monkeypatch):
    arguments = draw(19, time=time, groups=groups, value_width=6, cached=9, sink_logit=sink_logit)
    options: dict[str, Any] = {"window": 4, "num_sinks": 2}
    names = [name for name in TENSORS if arguments[name] is not None]
    calls = []
    fused = functional.scaled_dot_product_attention

    def counted(*args, **kwargs):
        calls.append(args)
        return fused(*args, **kwargs)

    def found():
        gradients = readout_and_gradients(arguments, **options)
        return gradients | {"alone": sink_attention(**arguments, **options)}

    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    results = found()
    # Gradients to a sink logit, or beside one, are those of the explicit way.
    assert len(calls) == (1 if sink_logit else 2)
    assert results.keys() == {"out", "alone", *names}
    assert_same(results, explicitly(found, monkeypatch), tolerance=1e-10)


@pytest.mark.parametrize("path", PATHS)
def test_derivatives_of_every_order_follow_a_fused_one(path, monkeypatch):
    arguments = draw(20, time=20, cached=6, value_width=6, sink_logit=False)
    weights = torch.linspace(-1, 1, 2 * 20 * 4 * 6, dtype=torch.float64).view(2, 20, 4, 6)

    def derivatives():
        keys = arguments["keys"].clone().requires_grad_()
        query = arguments["query"].clone().requires_grad_()
        # Values that come of the keys: the gradient to the one must not pass through the other.
        given_all = arguments | {"query": query, "keys": keys, "values": keys.sin()}
        out = sink_attention(**given_all, window=4, num_sinks=2, implementation=path)
        loss = (out * weights).sum()
        first = torch.autograd.grad(loss, (query, keys), retain_graph=True)
        again = torch.autograd.grad(loss, (query, keys), retain_graph=True)
        kept = torch.autograd.grad(loss, (query, keys), create_graph=True)
        second = torch.autograd.grad([g.square().sum() for g in kept], (query, keys), create_graph=True)
        third = torch.autograd.grad([g.square().sum() for g in second], (query, keys))
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
        return *first, *kept, *second, *third

    expected = explicitly(derivatives, monkeypatch)
    for got, want in zip(derivatives(), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_tangents_and_batches_pass_a_fused_backward():
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
def test_forward_over_reverse_equals_reverse_over_reverse(path):
    arguments = draw(22, time=20, value_width=6, sink_logit=False)

    def loss(query):
        given_all = arguments | {"query": query}
        return sink_attention(**given_all, window=4, num_sinks=2, implementation=path).square().sum()

    query = arguments["query"].requires_grad_()
    direction = torch.ones_like(query)
    (grad,) = torch.autograd.grad(loss(query), query, create_graph=True)
    (expected,) = torch.autograd.grad(grad, query, direction)
    along: Any = torch.func.jvp(torch.func.grad(loss), (query.detach(),), (direction,))
    torch.testing.assert_close(along[1], expected)


@pytest.mark.parametrize("path", PATHS)
def test_forward_mode_agrees_with_reverse_mode(path):
    arguments = draw(12, time=20, cached=6)

    def read(*tensors):
        given_all = arguments | dict(zip(TENSORS, tensors, strict=True))
        return sink_attention(**given_all, window=4, num_sinks=2, implementation=path)

    primals = tuple(arguments[name] for name in TENSORS)
    generator = torch.Generator().manual_seed(0)
    tangents = tuple(torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in primals)
    pushed: Any = torch.func.jvp(read, primals, tangents)
    pulled: Any = torch.func.vjp(read, *primals)
    (_, along), (out, pull) = pushed, pulled
    weights = torch.randn(out.shape, generator=generator, dtype=out.dtype)
    reverse = sum((g * t).sum() for g, t in zip(pull(weights), tangents, strict=True))
    torch.testing.assert_close((along * weights).sum(), reverse)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("path", PATHS)
def test_half_precision_stays_near_the_definition(path, dtype):
    low = draw(13, time=33, cached=8, dtype=dtype)
    exact = {n: v.double() if n in TENSORS else v for n, v in low.items()}
    out = sink_attention(**low, window=6, num_sinks=2, implementation=path)
    expected = sink_attention(**exact, window=6, num_sinks=2, implementation="reference")
    assert out.dtype == dtype
    error = (out.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < (1e-3 if dtype == torch.float16 else 5e-3)


def test_the_op_is_registered_soundly():
    arguments = tiny(dtype=torch.float32)
    steps = [arguments[name] for name in ("query_step", "key_step", "episode_start")]
    for sink_logit in (arguments["sink_logit"].requires_grad_(), None):
        floats = [arguments[name].requires_grad_() for name in TENSORS[:3]]
        inputs = (*floats, sink_logit, *steps, 2, 1, 0.7, "torch")
        torch.library.opcheck(torch.ops.scrubjay.sink_attention.default, inputs)
        backward = (torch.ones(1, 5, 2, 2), *floats, sink_logit, *[floats[0].new_empty(0)] * 2, *inputs[4:])
        op = torch.ops.scrubjay.sink_attention_backward.default
        torch.library.opcheck(op, backward, test_utils="test_autograd_registration")
        # The other checks look into storages, which tensors of torch.func, used inside, do not have.
        with FakeTensorMode(allow_non_fake_inputs=True):
            promised = op(*backward)
        for real, fake in zip(op(*backward), promised, strict=True):
            assert (real.shape, real.dtype) == (fake.shape, fake.dtype)
            assert real.is_contiguous() == fake.is_contiguous()


@pytest.mark.parametrize("path", ["auto", "banded"])
def test_it_compiles_as_one_graph_forward_and_backward(path):
    arguments = draw(14, time=40, cached=6, dtype=torch.float32)

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
def test_it_exports_with_any_batch_size(time):
    names = ["query", "keys", "values", "query_step", "key_step", "episode_start"]
    sample, other = (draw(15, batch=b, time=time, cached=6, dtype=torch.float32) for b in (2, 5))
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
def test_bad_values_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        sink_attention(**({"window": 4} | draw(16, dtype=torch.float32) | change))


@pytest.mark.parametrize("name", ["query", "values", "key_step", "query_step", "episode_start"])
def test_wrong_dtypes_are_refused(name):
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
def test_sizes_without_a_kernel_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        sink_attention(**draw(18, **change), window=4, implementation="triton")
