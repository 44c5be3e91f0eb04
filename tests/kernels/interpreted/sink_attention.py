"""The Triton kernels of sink attention under the interpreter (TRITON_INTERPRET=1, in a separate process)."""

import sys
from typing import Any

import pytest
import torch

from scrubjay.kernels import sinks
from scrubjay.kernels.sinks import gpu
from scrubjay.kernels.sinks.op import sink_attention, sink_slot

TENSORS = ["query", "keys", "values", "sink_logit"]


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Fill newly allocated memory with NaN, so that elements that a kernel does not write are detected."""

    def fill_with_nan(allocate):
        def call(*args, **kwargs):
            out = allocate(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        return call

    monkeypatch.setattr(torch, "empty", fill_with_nan(torch.empty))
    monkeypatch.setattr(torch, "empty_like", fill_with_nan(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", fill_with_nan(torch.Tensor.new_empty))


def draw(
    seed,
    batch=2,
    time=21,
    cache_size=13,
    heads=4,
    groups=2,
    width=20,
    value_width=12,
    reset=0.1,
    sink_logit=True,
    dtype=torch.float32,
) -> dict[str, Any]:
    """Return the arguments of a segment after a shuffled cache of earlier steps and empty slots."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float32).to(dtype)

    first = torch.randint(0, 41, (batch,), generator=generator)
    starts = torch.rand(batch, 40 + time, generator=generator) < reset
    episode_start = torch.where(starts, torch.arange(40 + time), 0).cummax(dim=1).values
    query_step = first[:, None] + torch.arange(time)
    cache = torch.full((batch, cache_size), -1)
    for row, before in enumerate(first.tolist()):
        cached_steps = torch.randperm(before, generator=generator)[:cache_size]
        cache[row, torch.randperm(cache_size, generator=generator)[: len(cached_steps)]] = cached_steps
    return {
        "query": normal(batch, time, heads, width),
        "keys": normal(batch, cache_size + time, groups, width),
        "values": normal(batch, cache_size + time, groups, value_width),
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
    out, lse = out if isinstance(out, tuple) else (out, None)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype)
    loss = (out * weights).sum()
    if lse is not None:
        finite_lse = lse.masked_fill(lse.isinf(), 0)
        loss = loss.to(lse.dtype) + (finite_lse * weights[..., 0]).sum()
    loss.backward()
    results = {"out": out.detach()} | ({} if lse is None else {"lse": finite_lse.detach()})
    return results | {name: fresh[name].grad for name in names}


def check(arguments, tolerance=2e-5, **options) -> None:
    """Compare each result with the reference in float64, by its root mean square error."""
    result = readout_and_gradients(arguments, **options, implementation="triton")
    exact = {n: v.double() if n in TENSORS and v is not None else v for n, v in arguments.items()}
    expected = readout_and_gradients(exact, **options, implementation="reference")
    for name, right in expected.items():
        actual = result[name]
        if name != "lse":
            assert actual.dtype == arguments["query" if name == "out" else name].dtype
        assert torch.isfinite(actual).all(), name
        error = (actual.double() - right).square().mean().sqrt()
        assert error <= tolerance * right.square().mean().sqrt().clamp(min=1e-3), f"{name}: {error}"


# time, cached, heads, groups, width, value_width, window, num_sinks, reset.
SHAPES = [
    (21, 13, 4, 2, 20, 12, 6, 2, 0.1),
    (40, 31, 1, 1, 16, 16, 5, 3, 0.05),
    (63, 0, 2, 2, 40, 40, 9, 0, 0.1),
    (1, 37, 6, 2, 24, 8, 20, 4, 0.05),
    (1, 5, 3, 1, 8, 33, 3, 1, 0.0),
    (17, 9, 3, 3, 7, 5, 200, 12, 0.3),
    (2, 1, 5, 1, 1, 1, 1, 0, 0.5),
]


@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("place", range(len(SHAPES)), ids=lambda place: "-".join(map(str, SHAPES[place])))
def test_kernels_equal_the_definition(place, return_lse):
    time, cache_size, heads, groups, width, value_width, window, num_sinks, reset = SHAPES[place]
    # The two options vary independently over the shapes.
    sink_logit = return_lse ^ (place % 2 == 1)
    arguments = draw(
        time, 2, time, cache_size, heads, groups, width, value_width, reset=reset, sink_logit=sink_logit
    )
    check(arguments, window=window, num_sinks=num_sinks, return_lse=return_lse)


@pytest.mark.parametrize(("time", "cache_size"), [(21, 13), (1, 37)])
def test_half_precision_stays_near_the_definition(time, cache_size):
    check(draw(1, time=time, cache_size=cache_size, dtype=torch.float16), 3e-3, window=7, num_sinks=2)


def test_strided_inputs_int32_steps_and_a_scale():
    arguments = draw(2)
    for name in ("query", "keys"):
        arguments[name] = arguments[name].transpose(1, 2).contiguous().transpose(1, 2)
    arguments["values"] = arguments["values"].mT.contiguous().mT
    for name in ("query_step", "key_step"):
        arguments[name] = arguments[name].int()
    arguments["episode_start"] = arguments["episode_start"][:, :1].expand(-1, 21)
    check(arguments, window=6, num_sinks=2, scale=0.9)


def test_queries_that_see_nothing_read_zeros():
    arguments = draw(3, time=9, sink_logit=False)
    arguments["episode_start"] = arguments["query_step"] + torch.tensor([1, 1, 0, 0, 1, 1, 1, 1, 1])
    check(arguments, window=6, num_sinks=2)
    check(arguments, window=6, num_sinks=2, return_lse=True)
    arguments["episode_start"] = arguments["query_step"] + 1
    result = readout_and_gradients(arguments, window=6, num_sinks=2, implementation="triton")
    assert all((tensor == 0).all() for tensor in result.values())
    check(draw(3, time=9) | {"episode_start": arguments["episode_start"]}, window=6, num_sinks=2)


def test_no_key_slots_and_no_queries():
    arguments = draw(4, time=3)
    empty = arguments | {name: arguments[name][:, :0] for name in ("keys", "values", "key_step")}
    result = readout_and_gradients(empty, window=6, implementation="triton")
    assert (result["out"] == 0).all()
    assert (result["query"] == 0).all()
    empty = arguments | {name: arguments[name][:, :0] for name in ("query", "query_step", "episode_start")}
    result = readout_and_gradients(empty, window=6, implementation="triton")
    assert result["out"].shape == (2, 0, 4, 12)
    assert (result["keys"] == 0).all()


def test_steps_beyond_int32_negative_steps_and_an_endless_window():
    arguments = draw(5, reset=0.05)
    check(arguments, window=sys.maxsize, num_sinks=sys.maxsize)
    late = dict(arguments)
    late["key_step"] = torch.where(arguments["key_step"] < 0, -1, arguments["key_step"] + 2**40)
    for name in ("query_step", "episode_start"):
        late[name] = arguments[name] + 2**40
    check(late, window=6, num_sinks=2)
    early = {name: arguments[name] - 45 for name in ("query_step", "key_step", "episode_start")}
    check(arguments | early, window=sys.maxsize, num_sinks=2)
    check(arguments | early, window=6, num_sinks=50)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("blank", [float("nan"), float("inf")])
def test_slots_that_no_query_sees_are_ignored(blank):
    arguments = fill_unseen(blank)
    check(arguments, window=3, num_sinks=1)


def fill_unseen(blank):
    # One row, with a seed on which every mutation is detected.
    arguments = draw(15, batch=1, time=24, cache_size=20, reset=0.15)
    query, key, start = (arguments[name] for name in ("query_step", "key_step", "episode_start"))
    query, key, start = query[..., None], key[:, None], start[..., None]
    visible = (key >= start) & (key <= query) & ((key < start + 1) | (key > query - 3))
    is_unseen = ~visible.any(dim=1)
    assert is_unseen.sum() > 10
    for name in ("keys", "values"):
        arguments[name] = arguments[name].masked_fill(is_unseen[..., None, None], blank)
    return arguments


def test_decoding_over_a_ring_equals_the_segment():
    num_sinks, window, total = 2, 5, 14
    arguments = draw(6, time=total, cache_size=0)
    starts = torch.tensor([[0] * 9 + [9] * 5, [0] * 3 + [3] * 11])
    arguments |= {"query_step": torch.arange(total).expand(2, -1), "episode_start": starts}
    arguments["key_step"] = arguments["query_step"]
    options = {"window": window, "num_sinks": num_sinks, "implementation": "triton"}
    expected = sink_attention(**arguments, **options)
    ring, row = torch.full((2, num_sinks + window), -1), torch.arange(2)
    for step in range(total):
        ring[row, sink_slot(step - starts[:, step], num_sinks, window)] = step
        one = {name: arguments[name][:, step : step + 1] for name in ("query", "query_step", "episode_start")}
        one |= {name: arguments[name][row[:, None], ring] for name in ("keys", "values")}
        out = sink_attention(**(arguments | one | {"key_step": ring}), **options)
        torch.testing.assert_close(out[:, 0], expected[:, step], rtol=1e-5, atol=1e-5)


def test_strides_beyond_two_to_the_31():
    """Uses virtual memory, of which only the accessed pages are allocated."""
    arguments = draw(
        7, time=3, cache_size=2, groups=1, heads=2, width=16, value_width=16, dtype=torch.float16
    )
    batch_stride = 2**31 + 64
    storage = torch.UntypedStorage(2 * (batch_stride + 5 * 16))
    for name in ("keys", "values"):
        far = torch.tensor([], dtype=torch.float16).set_(storage, 0, (2, 5, 1, 16), (batch_stride, 16, 16, 1))
        arguments[name] = far.copy_(arguments[name])
        check_far(arguments)
        arguments[name] = far.clone(memory_format=torch.contiguous_format)


def check_far(arguments):
    out = sink_attention(**arguments, window=3, num_sinks=1, implementation="triton")
    expected = sink_attention(**arguments, window=3, num_sinks=1, implementation="reference")
    torch.testing.assert_close(out, expected, rtol=2e-3, atol=2e-3)
    near = {name: arguments[name].contiguous() for name in ("keys", "values")}
    assert torch.equal(
        sink_attention(**arguments | near, window=3, num_sinks=1, implementation="triton"), out
    )


@pytest.mark.parametrize(
    ("old", "wrong"),
    [
        ("(key <= last)", "(key < last)"),
        ("(key >= first)", "(key > first)"),
        ("(key > before_window)", "(key >= before_window)"),
        ("(key < sink_end)", "(key <= sink_end)"),
        ("(weight_grad - mean[:, None])", "weight_grad"),
        ("(weight_grad - mean[None, :])", "weight_grad"),
        ("dq * scale", "dq"),
        ("dk * scale", "dk"),
        ("group * SHARED + row % SHARED", "group + row % SHARED"),
        ("total = total * decay", "total = total"),
        ("read = read * decay[:, None]", "read = read"),
        ("sees_any = last >= -FAR\n    first = tl.min(", "sees_any = last >= -FAR\n    first = tl.max("),
        ("sink_logit.float() - log_sum", "sink_logit.float()"),
        ("(before_window < latest)", "(before_window > latest)"),
        (
            "key_used = tl.max(visible_by_key(key, limits).to(tl.int32), axis=1) > 0",
            "key_used = slot < slots",
        ),
    ],
)
def test_a_wrong_kernel_is_caught(old, wrong, monkeypatch, mutate_module):
    monkeypatch.setattr(sinks, "gpu", mutate_module(gpu, old, wrong))
    arguments = fill_unseen(float("nan"))
    with pytest.raises(AssertionError):
        check(arguments, window=3, num_sinks=1)


def test_second_and_forward_derivatives_raise():
    arguments = draw(8, time=3, cache_size=2)
    query = arguments["query"].clone().requires_grad_()
    options: dict[str, Any] = {"window": 3, "implementation": "triton"}
    out = sink_attention(**arguments | {"query": query}, **options)
    (grad,) = torch.autograd.grad(out.sum(), query, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        grad.sum().backward()
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(
            lambda query: sink_attention(**arguments | {"query": query}, **options),
            (arguments["query"],),
            (torch.ones_like(arguments["query"]),),
        )


def test_the_op_passes_opcheck():
    arguments = draw(9, time=3, cache_size=2, width=4, value_width=4)
    floats = [arguments[name].requires_grad_() for name in TENSORS]
    steps = [arguments[name] for name in ("query_step", "key_step", "episode_start")]
    inputs = (*floats, *steps, 3, 1, 0.5, "triton")
    torch.library.opcheck(torch.ops.scrubjay.sink_attention.default, inputs)
    out, log_sum = torch.ops.scrubjay.sink_attention(*inputs)
    backward = (torch.ones_like(out), *floats, out, log_sum, *steps, 3, 1, 0.5, "triton")
    backward = tuple(v.detach() if isinstance(v, torch.Tensor) else v for v in backward)
    torch.library.opcheck(torch.ops.scrubjay.sink_attention_backward.default, backward)


def test_it_compiles_as_one_graph_forward_and_backward():
    arguments = draw(11, time=5, cache_size=3, width=4, value_width=4)
    options: dict[str, Any] = {"window": 3, "num_sinks": 1, "implementation": "triton"}

    def loss(tensors):
        return sink_attention(**tensors, **options).square().sum()

    results = []
    for run in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        fresh = arguments | {name: arguments[name].clone().requires_grad_() for name in TENSORS}
        run(fresh).backward()
        results.append([fresh[name].grad for name in TENSORS])
    for compiled_grad, eager_grad in zip(*results, strict=True):
        assert torch.equal(compiled_grad, eager_grad)
