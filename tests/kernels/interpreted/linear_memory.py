"""The Triton kernels of linear memory under the interpreter, compared with the reference."""

import functools
import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from scrubjay.kernels import linear, linear_memory
from scrubjay.kernels.linear import gpu

TENSORS = ("query", "key", "value", "log_decay", "step", "state", "erase_key")


def draw(
    time=9,
    width=3,
    values=2,
    channel=False,
    starts=0.2,
    seed=0,
    batch=1,
    heads=1,
    dtype=torch.float32,
    **options,
) -> dict[str, Any]:
    """Return arguments of linear_memory, state and gates in float32.

    The rule "erase" is the delta rule with erase keys that differ from the keys.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator)

    arguments = {
        "query": normal(batch, time, heads, width).to(dtype),
        "key": functional.normalize(normal(batch, time, heads, width), dim=-1).to(dtype),
        "value": normal(batch, time, heads, values).to(dtype),
        "log_decay": -2 * uniform(batch, time, heads, *([width] if channel else [])),
        "step": 2 * uniform(batch, time, heads),
        "state": normal(batch, heads, width, values),
        "start": uniform(batch, time) < starts,
        "rule": "delta",
    } | options
    if arguments["rule"] == "erase":
        erase_key = functional.normalize(normal(batch, time, heads, width), dim=-1).to(dtype)
        arguments |= {"rule": "delta", "erase_key": erase_key}
    return arguments


def outcome(arguments: dict[str, Any], implementation: Any) -> dict[str, torch.Tensor]:
    """Return the outputs, the state after, and the gradients of a weighted sum of both."""
    dtype = None if implementation == "triton" else torch.float64
    fresh = dict(arguments)
    names = [name for name in TENSORS if name in arguments]
    for name in names:
        fresh[name] = arguments[name].detach().to(dtype or arguments[name].dtype).requires_grad_()
    result = dict(zip(("y", "after"), linear_memory(**fresh, implementation=implementation), strict=True))
    output_grads = [torch.linspace(-1, 1, x.numel()).view_as(x).to(x.dtype) for x in result.values()]
    grads = torch.autograd.grad(list(result.values()), [fresh[name] for name in names], output_grads)
    return {name: x.detach() for name, x in result.items()} | dict(zip(names, grads, strict=True))


def distances(result: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the root mean square errors relative to the root mean square of the expected values."""
    return {
        name: float(
            (result[name].double() - x).square().mean().sqrt() / x.square().mean().sqrt().clamp_min(1e-6)
        )
        for name, x in right.items()
    }


def assert_near(arguments: dict[str, Any], bound: float) -> None:
    errors = distances(outcome(arguments, "triton"), outcome(arguments, "reference"))
    assert max(errors.values()) < bound, errors


@pytest.mark.usefixtures("poison_memory")
@pytest.mark.parametrize("rule", ["hebbian", "delta", "erase"])
@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("read_before_write", [False, True])
def test_values_and_gradients_equal_the_definition(rule, channel, read_before_write):
    assert_near(draw(19, channel=channel, rule=rule, read_before_write=read_before_write), 3e-6)


@pytest.mark.usefixtures("poison_memory")
@pytest.mark.parametrize(
    "sizes",
    [
        {"time": 16, "width": 16, "values": 16, "starts": 0.0},
        {"time": 64, "width": 64, "values": 35, "heads": 2},
        {"time": 33, "width": 17, "values": 40, "channel": True},
        {"time": 33, "width": 16, "values": 20, "heads": 2, "rule": "erase"},
        {"time": 1, "batch": 3},
        {"time": 5, "batch": 2, "heads": 2, "chunk_size": 2, "starts": 0.6},
    ],
)
def test_sizes_that_fill_tiles_and_that_do_not(sizes):
    assert_near(draw(**sizes, seed=3), 5e-6)


def test_half_precision_stays_near_the_definition():
    assert_near(draw(dtype=torch.float16), 3e-3)
    assert_near(draw(dtype=torch.bfloat16, channel=True), 2e-2)


@pytest.mark.usefixtures("poison_memory")
@pytest.mark.parametrize("channel", [False, True])
def test_decays_of_zero_and_one(channel):
    arguments = draw(20, channel=channel)
    noise = torch.rand(arguments["log_decay"].shape, generator=torch.Generator().manual_seed(1))
    strong = torch.where(noise < 0.3, -70.0, arguments["log_decay"])
    arguments["log_decay"] = torch.where(noise > 0.9, -math.inf, torch.where(noise > 0.7, 0, strong))
    result = outcome(arguments, "triton")
    assert all(x.isfinite().all() for x in result.values())
    assert max(distances(result, outcome(arguments, "reference")).values()) < 5e-6


def test_poison_ends_with_its_episode():
    arguments = draw(12, batch=2, starts=0.0)
    arguments["start"][:, 7] = True
    y, after = linear_memory(**arguments, implementation="triton")
    arguments["value"][0, 3] = math.nan
    result, last = linear_memory(**arguments, implementation="triton")
    torch.testing.assert_close(result[:, 7:], y[:, 7:])
    torch.testing.assert_close(result[1], y[1])
    torch.testing.assert_close(last, after)
    assert result[0, 3:7].isnan().all()


@pytest.mark.usefixtures("poison_memory")
def test_strided_tokens_are_supported():
    arguments = draw(batch=2, heads=2)
    exact = outcome(arguments, "triton")
    for name in ("query", "key", "value"):
        arguments[name] = arguments[name].permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3)
        assert not arguments[name].is_contiguous()
    result = outcome(arguments, "triton")
    assert all(torch.equal(result[name], exact[name]) for name in exact)


def test_a_decayed_state_is_exactly_zero():
    arguments = draw(70, starts=0.0)
    for name, value in (("step", 0.0), ("log_decay", -2.0)):
        arguments[name] = torch.full_like(arguments[name], value)
    _, after = linear_memory(**arguments, implementation="triton")
    assert not after.any()


def test_only_one_derivative_in_reverse_mode_is_supported():
    arguments = draw()
    query = arguments.pop("query").requires_grad_()

    def run(query):
        return linear_memory(query, **arguments, implementation="triton")[0]

    with pytest.raises(NotImplementedError, match="differentiable once"):
        torch.autograd.grad(run(query).sum(), query, create_graph=True)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        run(torch.autograd.forward_ad.make_dual(query.detach(), query.detach()))
    with pytest.raises(ValueError, match=r"torch\.func"):
        torch.func.vmap(run)(query[None].detach())


def test_unsupported_inputs_are_explained():
    with pytest.raises(ValueError, match="width 129"):
        linear_memory(**draw(width=129), implementation="triton")
    with pytest.raises(ValueError, match="float64"):
        linear_memory(**draw(state=torch.zeros(1, 1, 3, 2).double()), implementation="triton")


def test_no_tokens_and_no_rows():
    y, after = linear_memory(**draw(time=0), implementation="triton")
    assert y.shape == (1, 0, 1, 2)
    assert torch.equal(after, draw(time=0)["state"])
    y, _ = linear_memory(**draw(batch=0), implementation="triton")
    assert y.shape == (0, 9, 1, 2)


@functools.cache
def reference_calls() -> list[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """Return calls on which every mutation gives a wrong result, and their expected results."""
    options: tuple[dict[str, Any], ...] = (
        {"channel": False},
        {"channel": True},
        {"channel": False, "rule": "erase"},
    )
    calls = [draw(18, seed=7, starts=0.1, **more) for more in options]
    return [(call, outcome(call, "reference")) for call in calls]


def errors() -> list[float]:
    """Return the errors of these calls."""
    return [
        e for call, right in reference_calls() for e in distances(outcome(call, "triton"), right).values()
    ]


MUTATIONS = [
    ("((i >> 1) == (j >> 1)) & (i > j)", "(i >> 1) == (j >> 1)"),
    ("(c[None, :] == i) & (c[:, None] < i)", "(c[None, :] == i) & (c[:, None] < i - 1)"),
    ("errors -= dot(get(inverse_keys_ptr", "errors += dot(get(inverse_keys_ptr"),
    ("load_chunk_decay(from_start_ptr, chunk, d, C, F) * state", "1.0 * state"),
    ("decayed_key * load_decays(to_end_ptr, chunk, c, d, C, F)", "1.0 * decayed_key"),
    ("decayed_query * load_decays(from_start_ptr", "decayed_query + 0 * load_decays(from_start_ptr"),
    ("grad_state -= dot(tl.trans(inverse_keys)", "grad_state += dot(tl.trans(inverse_keys)"),
    ("c[None, :], grad_products, 0.0)", "c[None, :] + 1, grad_products, 0.0)"),
    ("c[None, :], -grad_products, 0.0)", "c[None, :], grad_products, 0.0)"),
    ("grad_chunk_decay += tl.sum(key * step[:, None]", "grad_chunk_decay -= tl.sum(key * step[:, None]"),
    ("grad_chunk_decay[None, :], 0.0) - key * grad_key", "grad_chunk_decay[None, :], 0.0)"),
    ("decays * dot(level_grad, other * decays", "dot(level_grad, other * decays"),
    ("level_grad = tl.trans(level_grad)", "level_grad = 0 * tl.trans(level_grad)"),
    ("result = own[:, None] * other", "result = 0 * other"),
    ("grad_key = grad_key * step[:, None]", "grad_key = grad_key + 0 * step[:, None]"),
    ("key = get(erase_key_ptr, chunk, c, d, C, K)", "key = get(key_ptr, chunk, c, d, C, K)"),
    ("if DELTA and not ERASE:", "if DELTA:"),
]  # fmt: skip


def test_the_right_kernel_passes_where_wrong_ones_are_caught():
    assert max(errors()) < 3e-6


@pytest.mark.parametrize(("right", "wrong"), MUTATIONS)
def test_a_wrong_kernel_is_caught(right, wrong, mutate_module, monkeypatch):
    monkeypatch.setattr(linear, "gpu", mutate_module(gpu, right, wrong))
    assert any(math.isnan(error) or error > 1e-3 for error in errors())
