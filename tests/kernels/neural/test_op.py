"""Neural memory: every path compared with the reference, and limit cases."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from scrubjay.kernels import Gates, NeuralState, neural_memory, neural_memory_step
from scrubjay.kernels.neural import chunk as custom_path
from scrubjay.kernels.neural import loop as torch_path

CASE = {
    "batch": st.integers(1, 2),
    "chunks": st.integers(1, 3),
    "chunk_size": st.integers(1, 4),
    "heads": st.integers(1, 2),
    "depth": st.integers(1, 3),
    "borders": st.booleans(),
    "seed": st.integers(0, 10_000),
}
OPTIONS = dict.fromkeys(("read_before_write", "residual", "norm", "clip"), st.booleans())


def draw(
    batch=2, chunks=3, chunk_size=4, heads=2, depth=2, borders=True, seed=0, width=3, dtype=torch.float64
) -> dict[str, Any]:
    """Return random arguments of neural_memory; about half of the steps are clipped."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=dtype)

    time, widths = chunks * chunk_size, [width, *[width + 2] * (depth - 1), width]
    layers = list(itertools.pairwise(widths))
    size = sum(a * b for a, b in layers)
    gates = (
        uniform(batch, time, heads).square() / 4 / chunk_size,
        *(-uniform(batch, time, heads) for _ in range(2)),
    )
    arguments: dict[str, Any] = {
        "query": functional.normalize(normal(batch, time, heads, width), dim=-1),
        "key": functional.normalize(normal(batch, time, heads, width), dim=-1),
        "value": normal(batch, time, heads, width),
        "gates": Gates(*gates),
        "weights": [normal(heads, a, b) for a, b in layers],
        "state": NeuralState(*(normal(batch, heads, size) * 0.3 for _ in range(3))),
        "chunk_size": chunk_size,
    }
    if borders:
        arguments |= {
            "valid": uniform(batch, time) < 0.8,
            "fresh": uniform(batch, chunks) < 0.3,
            "cut": uniform(batch, chunks) < 0.3,
        }
    return arguments


def replace_arguments(arguments: dict[str, Any], **changes) -> dict[str, Any]:
    return {**arguments, **changes}


def leaves(arguments: dict[str, Any]) -> list[torch.Tensor]:
    tokens = [arguments[name] for name in ("query", "key", "value")]
    return [*tokens, *arguments["gates"], *arguments["weights"], *arguments["state"]]


def run(
    arguments: dict[str, Any], implementation: Any, **options
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the outputs of valid tokens, the state, and the gradients of a weighted sum of both."""
    inputs = [x.requires_grad_() for x in leaves(arguments)]
    y, surprise, after = neural_memory(**arguments, **options, implementation=implementation)
    if "valid" in arguments:
        y = torch.where(arguments["valid"][..., None, None], y, 0)
        surprise = torch.where(arguments["valid"][..., None], surprise, 0)
    weights = [torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out) for out in (y, *after)]
    outputs = [(out, w) for out, w in zip((y, *after), weights, strict=True) if out.requires_grad]
    gradients = torch.autograd.grad(
        [out for out, _ in outputs],
        inputs,
        [w for _, w in outputs],
        allow_unused=True,
        materialize_grads=True,
    )
    return [y, surprise, *after], list(gradients)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("implementation", ["torch", "closed"])
@settings(max_examples=40, deadline=None)
@given(**CASE, **OPTIONS)
@example(
    batch=2,
    chunks=3,
    chunk_size=4,
    heads=2,
    depth=2,
    borders=True,
    seed=1,
    read_before_write=True,
    residual=True,
    norm=False,
    clip=True,
)
@example(
    batch=2,
    chunks=3,
    chunk_size=4,
    heads=1,
    depth=3,
    borders=False,
    seed=2,
    read_before_write=False,
    residual=False,
    norm=False,
    clip=True,
)
def test_values_and_gradients_equal_the_definition(
    implementation, read_before_write, residual, norm, clip, **case
):
    options: Any = {"read_before_write": read_before_write, "residual": residual, "norm": norm, "clip": clip}
    expected, expected_gradients = run(draw(**case), "reference", **options)
    values, gradients = run(draw(**case), implementation, **options)
    # With `norm` nearly equal outputs are divided by a value near zero.
    tolerance: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-7} if norm else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(values, expected, **tolerance)
    torch.testing.assert_close(gradients, expected_gradients, **tolerance)


def test_some_but_not_all_steps_are_clipped_in_these_tests():
    arguments = draw(borders=False, seed=1)
    clipped_shares = []
    clip_step = torch_path.clip_step

    def spy(step_size, *rest):
        step, squared_norm = clip_step(step_size, *rest)
        clipped_shares.append((step < step_size).double().mean().item())
        return step, squared_norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_path, "clip_step", spy)
        run(arguments, "closed")
    assert 0.1 < sum(clipped_shares) / len(clipped_shares) < 0.9


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    "options", [{}, {"clip": False}, {"read_before_write": False, "residual": True, "norm": True}]
)
def test_steps_equal_chunks(depth, options):
    arguments = draw(depth=depth, borders=False)
    chunk_size = arguments["chunk_size"]
    arguments["state"] = arguments["state"]._replace(anchor=arguments["state"].delta)
    y, surprise, after = neural_memory(**arguments, **options)
    state = arguments["state"]
    for t in range(y.shape[1]):
        tokens = {name: arguments[name][:, t] for name in ("query", "key", "value")}
        gates = Gates(*(gate[:, t] for gate in arguments["gates"]))
        completes = torch.full((2,), t % chunk_size == chunk_size - 1)
        one, step_surprise, state = neural_memory_step(
            **tokens,
            gates=gates,
            weights=arguments["weights"],
            state=state,
            completes=completes,
            chunk_size=chunk_size,
            **options,
        )
        torch.testing.assert_close(one, y[:, t], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(step_surprise, surprise[:, t], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(list(state), list(after), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, pytest.param(2, marks=pytest.mark.matrix)])
def test_derivatives_equal_finite_differences_twice(depth):
    arguments = draw(batch=1, chunks=2, chunk_size=2, heads=1, depth=depth, width=2, borders=False)
    inputs = [x.requires_grad_() for x in leaves(arguments)]

    def function(query, key, value, *tensors):
        gates, weights, state = tensors[:3], tensors[3 : 3 + depth], tensors[3 + depth :]
        y, _, after = neural_memory(
            query,
            key,
            value,
            Gates(*gates),
            weights,
            NeuralState(*state),
            chunk_size=2,
            implementation="torch",
        )
        return y, *after

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("interval", [2, 3, 20])
@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("borders", [False, True])
def test_recomputed_states_give_the_same_gradients(interval, depth, borders, monkeypatch):
    case: dict[str, Any] = {"depth": depth, "borders": borders, "chunks": 19}
    expected = run(draw(**case), "torch")
    # Groups of chunks whose coefficients are computed at once also end inside the segment.
    monkeypatch.setattr(torch_path, "_MAX_PAIR_NUMBERS", 6 * 4 * 4**2)
    monkeypatch.setattr(custom_path, "_choose_interval", lambda *_: interval)
    result = run(draw(**case), "torch")
    torch.testing.assert_close(result, expected, rtol=1e-13, atol=1e-13)


def test_large_states_are_saved_at_some_borders_only(monkeypatch):
    def count_saved():
        arguments, sizes = draw(borders=False, width=80, chunks=25, chunk_size=2, heads=4), []
        arguments["weights"] = [weight / 10 for weight in arguments["weights"]]
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            _, gradients = run(arguments, "torch")
        return sum(sizes), gradients

    few_numbers, result = count_saved()
    monkeypatch.setattr(custom_path, "_MAX_SAVED_BYTES", 2**40)
    all_numbers, expected = count_saved()
    states = 25 * 2 * 2 * 4 * 2 * 80 * 82
    assert all_numbers - few_numbers > 0.4 * states
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_a_matrix_with_chunks_of_one_and_no_momentum_is_the_delta_rule():
    arguments = draw(depth=1, chunk_size=1, chunks=12, borders=False)
    steps = arguments["gates"].step_size
    arguments["gates"] = Gates(steps, torch.full_like(steps, -torch.inf), torch.zeros_like(steps))
    arguments["state"] = NeuralState(*(torch.zeros_like(part) for part in arguments["state"]))
    y, _, _ = neural_memory(**arguments, read_before_write=False)
    matrix = arguments["weights"][0].expand(2, -1, -1, -1)
    for t in range(12):
        q, k, v = (arguments[name][:, t, :, None] for name in ("query", "key", "value"))
        matrix = matrix + steps[:, t, :, None, None] * k.mT @ (v - k @ matrix)
        torch.testing.assert_close(y[:, t], (q @ matrix)[:, :, 0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("implementation", ["torch", "closed"])
def test_gates_of_zero_and_one(implementation):
    arguments = draw(borders=False, depth=2)
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(arguments["gates"].step_size.shape, generator=generator)
    minus_infinity = torch.tensor(-torch.inf, dtype=torch.float64)
    arguments["gates"] = Gates(
        torch.where(noise < 0.2, 0, arguments["gates"].step_size),
        torch.where(
            noise < 0.4, minus_infinity, torch.where(noise > 0.8, 0, arguments["gates"].log_momentum)
        ),
        torch.where(
            noise > 0.6, minus_infinity, torch.where(noise < 0.3, 0, arguments["gates"].log_retention)
        ),
    )
    expected, _ = run(arguments, "reference")
    values, gradients = run(arguments, implementation)
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-10)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_decayed_state_is_exactly_zero():
    arguments = draw(chunks=40, borders=False, dtype=torch.float32)
    zeros = torch.zeros_like(arguments["gates"].step_size)
    arguments["gates"] = Gates(zeros, zeros - 1, zeros - 1)
    _, _, after = neural_memory(**arguments)
    assert not any(part.any() for part in after)
    state = NeuralState(*(part * 1e-31 for part in arguments["state"]))
    one = {name: arguments[name][:, 0] for name in ("query", "key", "value")}
    gates = Gates(*(gate[:, 0] for gate in arguments["gates"]))
    _, _, after = neural_memory_step(
        **one,
        gates=gates,
        weights=arguments["weights"],
        state=state,
        completes=torch.ones(2, dtype=torch.bool),
        chunk_size=4,
    )
    assert not any(part.any() for part in after)


def test_no_tokens_and_no_rows():
    arguments = draw(borders=False)
    no_tokens: dict[str, Any] = {name: arguments[name][:, :0] for name in ("query", "key", "value")}
    gates = Gates(*(gate[:, :0] for gate in arguments["gates"]))
    y, surprise, after = neural_memory(**replace_arguments(arguments, gates=gates, **no_tokens))
    assert y.shape == (2, 0, 2, 3)
    assert surprise.shape == (2, 0, 2)
    torch.testing.assert_close(list(after), list(arguments["state"]))
    no_rows: dict[str, Any] = {name: arguments[name][:0] for name in ("query", "key", "value")}
    gates = Gates(*(gate[:0] for gate in arguments["gates"]))
    state = NeuralState(*(part[:0] for part in arguments["state"]))
    y, _, _ = neural_memory(**replace_arguments(arguments, gates=gates, state=state, **no_rows))
    assert y.shape == (0, 12, 2, 3)


def test_invalid_arguments_are_named():
    arguments = draw()
    with pytest.raises(ValueError, match="chunk_size=5: must be at least 1 and divide the token count 12"):
        neural_memory(**replace_arguments(arguments, chunk_size=5))
    with pytest.raises(ValueError, match=r"fresh has shape \(2, 4\); expected \(2, 3\)"):
        neural_memory(**replace_arguments(arguments, fresh=torch.zeros(2, 4, dtype=torch.bool)))
    with pytest.raises(ValueError, match="do not form a network"):
        neural_memory(**replace_arguments(arguments, weights=arguments["weights"][:1] * 2))
    with pytest.raises(ValueError, match="weights map inputs of width 3 to outputs of width 5"):
        neural_memory(**replace_arguments(arguments, weights=arguments["weights"][:1]))


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_integer_tensors_raise(name):
    arguments = draw()
    with pytest.raises(TypeError, match=f"{name} has dtype torch.int64"):
        neural_memory(**replace_arguments(arguments, **{name: arguments[name].long()}))
