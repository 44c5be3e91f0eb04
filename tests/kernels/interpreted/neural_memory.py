"""The Triton kernels of neural memory under the interpreter, compared with the reference."""

import functools
import itertools
import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from scrubjay.kernels import Gates, NeuralState, neural, neural_memory
from scrubjay.kernels.neural import gpu


def draw(
    depth=2,
    chunks=3,
    chunk_size=3,
    borders=True,
    seed=0,
    batch=1,
    heads=2,
    width=3,
    hidden=5,
    dtype=torch.float32,
) -> dict[str, Any]:
    """Return random arguments of neural_memory in float32; about half of the steps are clipped."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator)

    time, layers = chunks * chunk_size, [(width, width)] if depth == 1 else [(width, hidden), (hidden, width)]
    size = sum(a * b for a, b in layers)
    arguments: dict[str, Any] = {
        "query": functional.normalize(normal(batch, time, heads, width), dim=-1).to(dtype),
        "key": functional.normalize(normal(batch, time, heads, width), dim=-1).to(dtype),
        "value": normal(batch, time, heads, width).to(dtype),
        "gates": Gates(
            uniform(batch, time, heads) * 2 / chunk_size, *(-uniform(batch, time, heads) for _ in range(2))
        ),
        "weights": [normal(heads, a, b) for a, b in layers],
        "state": NeuralState(*(normal(batch, heads, size) * 0.3 for _ in range(3))),
        "chunk_size": chunk_size,
    }
    if borders:
        arguments |= {
            "valid": uniform(batch, time) < 0.7,
            "fresh": uniform(batch, chunks) < 0.3,
            "cut": uniform(batch, chunks) < 0.3,
        }
    return arguments


def outcome(arguments: dict[str, Any], implementation: Any) -> list[torch.Tensor]:
    """Return the outputs of valid tokens, the state, and the gradients of a weighted sum of both."""
    dtype = None if implementation == "triton" else torch.float64
    leaf_names = ("query", "key", "value", "gates", "weights", "state")
    rest = {name: value for name, value in arguments.items() if name not in leaf_names}

    def leaf(x: torch.Tensor) -> torch.Tensor:
        return (x if dtype is None else x.to(dtype)).detach().requires_grad_()

    query, key, value = (leaf(arguments[name]) for name in ("query", "key", "value"))
    gates, state = Gates(*map(leaf, arguments["gates"])), NeuralState(*map(leaf, arguments["state"]))
    weights = [leaf(weight) for weight in arguments["weights"]]
    y, surprise, after = neural_memory(
        query, key, value, gates, weights, state, **rest, implementation=implementation
    )
    if "valid" in arguments:
        y = torch.where(arguments["valid"][..., None, None], y, 0)
        surprise = torch.where(arguments["valid"][..., None], surprise, 0)
    outputs, inputs = (
        [x for x in (y, *after) if x.requires_grad],
        [query, key, value, *gates, *weights, *state],
    )
    output_grads = [torch.linspace(-1, 1, x.numel()).view_as(x).to(x.dtype) for x in outputs]
    grads = torch.autograd.grad(outputs, inputs, output_grads, allow_unused=True, materialize_grads=True)
    return [x.detach() for x in (y, surprise, *after, *grads)]


def errors(arguments: dict[str, Any], implementation="reference") -> list[float]:
    return distances(outcome(arguments, "triton"), outcome(arguments, implementation))


def distances(result: list[torch.Tensor], right: list[torch.Tensor]) -> list[float]:
    """Return the root mean square errors relative to the root mean square of the expected values."""
    return [
        float((actual.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt().clamp_min(1e-6))
        for actual, exact in zip(result, right, strict=True)
    ]


@pytest.mark.usefixtures("poison_memory")
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"residual": True},
        {"read_before_write": False, "borders": False},
        pytest.param({"read_before_write": False, "residual": True}, marks=pytest.mark.slow),
    ],
)
def test_values_and_gradients_equal_the_definition(options, depth):
    options = dict(options)
    arguments = draw(depth, borders=options.pop("borders", True), seed=depth) | options
    assert max(errors(arguments)) < 2e-6


@pytest.mark.usefixtures("poison_memory")
@pytest.mark.parametrize(
    "sizes",
    [
        {"depth": 1, "width": 17, "chunk_size": 1, "heads": 1},
        {"depth": 2, "hidden": 16, "width": 16, "chunk_size": 16, "chunks": 2, "heads": 1},
        pytest.param(
            {"depth": 2, "hidden": 33, "width": 18, "chunk_size": 17, "chunks": 2, "batch": 2},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_sizes_that_fill_tiles_and_that_do_not(sizes):
    assert max(errors(draw(**sizes, seed=3), "closed")) < 5e-6


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "seed"), itertools.product((1, 2), range(8)))
def test_many_borders(depth, seed):
    for read_before_write, residual in itertools.product((False, True), repeat=2):
        arguments = draw(depth, chunks=5, seed=seed)
        arguments |= {"read_before_write": read_before_write, "residual": residual}
        assert max(errors(arguments)) < 5e-6


@pytest.mark.usefixtures("poison_memory")
def test_every_border_meets_every_other():
    """Cover a plain, a fresh, a cut and another incomplete chunk after an incomplete one."""
    arguments = draw(chunks=8, chunk_size=1, batch=1, heads=1)
    no, yes = False, True
    arguments["valid"] = torch.tensor([[no, no, yes, no, yes, no, no, no]])
    arguments["fresh"] = torch.tensor([[no, no, no, no, yes, no, no, no]])
    arguments["cut"] = torch.tensor([[no, no, yes, no, no, no, yes, no]])
    assert max(errors(arguments)) < 2e-6


def test_half_precision_stays_near_the_definition():
    assert max(errors(draw(chunks=2, heads=1, dtype=torch.float16))) < 2e-3


@pytest.mark.usefixtures("poison_memory")
def test_strided_tokens_are_read_in_place():
    arguments = draw(depth=1)
    exact = outcome(arguments, "triton")
    for name in ("query", "key", "value"):
        arguments[name] = arguments[name].permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3)
        assert not arguments[name].is_contiguous()
    arguments["key"] = torch.stack([arguments["key"]] * 2, dim=-1)[..., 0]
    assert all(torch.equal(*pair) for pair in zip(outcome(arguments, "triton"), exact, strict=True))


@pytest.mark.slow
@pytest.mark.usefixtures("poison_memory")
def test_gates_of_zero_and_one():
    arguments = draw(borders=False)
    step, momentum, retention = arguments["gates"]
    noise = torch.rand(step.shape, generator=torch.Generator().manual_seed(3))
    arguments["gates"] = Gates(
        torch.where(noise < 0.2, 0, step),
        torch.where(noise < 0.4, -math.inf, torch.where(noise > 0.8, 0, momentum)),
        torch.where(noise > 0.6, -math.inf, torch.where(noise < 0.3, 0, retention)),
    )
    result, right = outcome(arguments, "triton"), outcome(arguments, "closed")
    assert all(x.isfinite().all() for x in result)
    for x, y in zip(result, right, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=1e-5)


def test_a_decayed_state_is_exactly_zero():
    arguments = draw(1, chunks=20, chunk_size=2, borders=False, heads=1)
    zeros = torch.zeros_like(arguments["gates"].step_size)
    arguments["gates"] = Gates(zeros, zeros - 2, zeros - 2)
    with torch.no_grad():
        _, _, after = neural_memory(**arguments, implementation="triton")
    assert not any(part.any() for part in after)


def test_only_one_derivative_in_reverse_mode_is_supported():
    arguments = draw(depth=1, batch=1, heads=1, borders=False)
    query = arguments.pop("query").requires_grad_()

    def run(query):
        return neural_memory(query, **arguments, implementation="triton")[0]

    with pytest.raises(NotImplementedError, match="differentiable once"):
        torch.autograd.grad(run(query).sum(), query, create_graph=True)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        run(torch.autograd.forward_ad.make_dual(query.detach(), query.detach()))
    with pytest.raises(ValueError, match=r"torch\.func"):
        torch.func.vmap(run)(query[None].detach())


def test_unsupported_inputs_are_explained():
    with pytest.raises(ValueError, match="65"):
        neural_memory(**draw(chunk_size=65, chunks=1), implementation="triton")
    with pytest.raises(ValueError, match="norm"):
        neural_memory(**draw(), norm=True, implementation="triton")
    deep = draw(depth=1)
    deep["weights"] = deep["weights"] * 3
    deep["state"] = NeuralState(*(part.repeat(1, 1, 3) for part in deep["state"]))
    with pytest.raises(ValueError, match="3 layers"):
        neural_memory(**deep, implementation="triton")
    double = draw()
    double["query"] = double["query"].double()
    with pytest.raises(ValueError, match="float64"):
        neural_memory(**double, implementation="triton")


def test_no_tokens():
    arguments = draw(borders=False)
    nothing: dict[str, Any] = {name: arguments[name][:, :0] for name in ("query", "key", "value")}
    gates = Gates(*(gate[:, :0] for gate in arguments["gates"]))
    y, _, after = neural_memory(**{**arguments, "gates": gates, **nothing}, implementation="triton")
    assert y.shape == (1, 0, 2, 3)
    torch.testing.assert_close(list(after), list(arguments["state"]))


@functools.cache
def reference_call() -> tuple[dict[str, Any], list[torch.Tensor]]:
    """Return a call on which every mutation gives a wrong result, and its expected results."""
    arguments = draw(chunks=4, chunk_size=2, heads=1, seed=7)
    no, yes = False, True
    arguments["valid"] = torch.tensor([[yes, no, yes, yes, yes, no, yes, yes]])
    arguments["fresh"], arguments["cut"] = (
        torch.tensor([[no, no, no, yes]]),
        torch.tensor([[no, no, yes, no]]),
    )
    return arguments, outcome(arguments, "closed")


def mutation_errors() -> list[float]:
    """Return the errors of that call."""
    arguments, right = reference_call()
    return distances(outcome(arguments, "triton"), right)


MUTATIONS = [
    ("step = tl.where(step * squared_norm > bound", "step = tl.where(squared_norm > bound"),
    ("keep_state = (flags & FRESH_NEXT) == 0", "keep_state = flags >= 0"),
    ("if (flags & OLD_ANCHOR) != 0:", "if (flags & OLD_ANCHOR) == 99:"),
    ("out += buildup[:, None]", "out += 0 * buildup[:, None]"),
    ("per_square * x_squares + clip_grad * share", "per_square * x_squares"),
    ("grad_share = 0.5 * clip_grad", "grad_share = clip_grad"),
    ("if (flags & (FRESH_OR_CUT | OLD_ANCHOR)) == 0:", "if (flags & FRESH_OR_CUT) == 0:"),
    ("grad_buildup += tl.sum(momentum * grad_delta", "grad_buildup += tl.sum(momentum * grad_momentum"),
    ("if (flags & FRESH_OR_CUT) != 0:", "if (flags & 1) != 0:"),
    ("end_buildup * momentum", "0 * momentum"),
    ("squared_norm += squares(get_tokens(p_key", "squared_norm += 0 * squares(get_tokens(p_key"),
    ("gate * complement * (2 + x * (complement - gate))", "gate * complement * (2 + x)"),
    ("if source >= 0:", "if source >= 99:"),
    ('product(view_tokens(grads, "slope_grad"), view_tokens(trace.trace, "error"))', "0"),
]


def test_the_right_kernel_passes_where_wrong_ones_are_caught():
    assert max(mutation_errors()) < 2e-6


@pytest.mark.parametrize(
    ("right", "wrong"),
    [*MUTATIONS[:8], *(pytest.param(*pair, marks=pytest.mark.slow) for pair in MUTATIONS[8:])],
)
def test_a_wrong_kernel_is_caught(right, wrong, mutate_module, monkeypatch):
    monkeypatch.setattr(neural, "gpu", mutate_module(gpu, right, wrong))
    assert any(math.isnan(error) or error > 1e-3 for error in mutation_errors())
