"""Neural memory: every path against the definition, differentiated token by token, and its limits."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from scrubjay.kernels import Gates, NeuralState, neural_memory, neural_memory_step
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
    """Return arguments of neural_memory, of which about half the tokens' steps are clipped."""
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


def but(arguments: dict[str, Any], **changed) -> dict[str, Any]:
    return {**arguments, **changed}


def leaves(arguments: dict[str, Any]) -> list[torch.Tensor]:
    named = [arguments[name] for name in ("query", "key", "value")]
    return [*named, *arguments["gates"], *arguments["weights"], *arguments["state"]]


def run(
    arguments: dict[str, Any], implementation: Any, **options
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return outputs where tokens are valid, and the gradients of a functional of them and of the state."""
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
    # With `norm` a network of nearly equal outputs is divided by almost nothing.
    bound: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-7} if norm else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(values, expected, **bound)
    torch.testing.assert_close(gradients, expected_gradients, **bound)


def test_the_clip_is_met_and_missed_in_these_tests():
    arguments = draw(borders=False, seed=1)
    seen = []
    step = torch_path.clipped_step

    def spy(step_size, *rest):
        taken, squared = step(step_size, *rest)
        seen.append((taken < step_size).double().mean().item())
        return taken, squared

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_path, "clipped_step", spy)
        run(arguments, "closed")
    assert 0.1 < sum(seen) / len(seen) < 0.9


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
        one, surprised, state = neural_memory_step(
            **tokens,
            gates=gates,
            weights=arguments["weights"],
            state=state,
            completes=completes,
            chunk_size=chunk_size,
            **options,
        )
        torch.testing.assert_close(one, y[:, t], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(surprised, surprise[:, t], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(list(state), list(after), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("depth", [1, 2])
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


@pytest.mark.parametrize("every", [2, 3, 20])
@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("borders", [False, True])
def test_chunks_gone_through_a_second_time_have_the_same_gradients(every, depth, borders, monkeypatch):
    case: dict[str, Any] = {"depth": depth, "borders": borders, "chunks": 19}
    expected = run(draw(**case), "torch")
    # Groups of chunks whose rule is formed at once end inside the segment, too.
    monkeypatch.setattr(torch_path, "_MOST_TIES", 6 * 4 * 4**2)
    monkeypatch.setattr(torch_path, "_interval", lambda *_: every)
    found = run(draw(**case), "torch")
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_states_of_many_bytes_are_kept_at_some_borders_alone(monkeypatch):
    def saved_and_gradients():
        arguments, saved = draw(borders=False, width=80, chunks=25, chunk_size=2, heads=4), []
        arguments["weights"] = [weight / 10 for weight in arguments["weights"]]
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
            _, gradients = run(arguments, "torch")
        return sum(saved), gradients

    few, found = saved_and_gradients()
    monkeypatch.setattr(torch_path, "_MOST_KEPT", 2**40)
    all_of_them, expected = saved_and_gradients()
    states = 25 * 2 * 2 * 4 * 2 * 80 * 82
    assert all_of_them - few > 0.4 * states
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


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
def test_gates_shut_and_open_to_the_end(implementation):
    arguments = draw(borders=False, depth=2)
    generator = torch.Generator().manual_seed(3)
    shut = torch.rand(arguments["gates"].step_size.shape, generator=generator)
    nothing = torch.tensor(-torch.inf, dtype=torch.float64)
    arguments["gates"] = Gates(
        torch.where(shut < 0.2, 0, arguments["gates"].step_size),
        torch.where(shut < 0.4, nothing, torch.where(shut > 0.8, 0, arguments["gates"].log_momentum)),
        torch.where(shut > 0.6, nothing, torch.where(shut < 0.3, 0, arguments["gates"].log_retention)),
    )
    expected, _ = run(arguments, "reference")
    values, gradients = run(arguments, implementation)
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-10)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_what_has_faded_is_exactly_zero():
    arguments = draw(chunks=40, borders=False, dtype=torch.float32)
    none = torch.zeros_like(arguments["gates"].step_size)
    arguments["gates"] = Gates(none, none - 1, none - 1)
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
    nothing: dict[str, Any] = {name: arguments[name][:, :0] for name in ("query", "key", "value")}
    gates = Gates(*(gate[:, :0] for gate in arguments["gates"]))
    y, surprise, after = neural_memory(**but(arguments, gates=gates, **nothing))
    assert y.shape == (2, 0, 2, 3)
    assert surprise.shape == (2, 0, 2)
    torch.testing.assert_close(list(after), list(arguments["state"]))
    nobody: dict[str, Any] = {name: arguments[name][:0] for name in ("query", "key", "value")}
    gates = Gates(*(gate[:0] for gate in arguments["gates"]))
    state = NeuralState(*(part[:0] for part in arguments["state"]))
    y, _, _ = neural_memory(**but(arguments, gates=gates, state=state, **nobody))
    assert y.shape == (0, 12, 2, 3)


def test_sizes_that_disagree_are_named():
    arguments = draw()
    with pytest.raises(ValueError, match="chunk_size=5 must be at least 1 and divide the 12 tokens"):
        neural_memory(**but(arguments, chunk_size=5))
    with pytest.raises(ValueError, match=r"fresh has shape \(2, 4\); expected \(2, 3\)"):
        neural_memory(**but(arguments, fresh=torch.zeros(2, 4, dtype=torch.bool)))
    with pytest.raises(ValueError, match="do not make a network"):
        neural_memory(**but(arguments, weights=arguments["weights"][:1] * 2))
    with pytest.raises(ValueError, match="weights map 3 to 5"):
        neural_memory(**but(arguments, weights=arguments["weights"][:1]))


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_whole_numbers_are_refused_and_not_answered_in_kind(name):
    given = draw()
    with pytest.raises(TypeError, match=f"{name} has dtype torch.int64"):
        neural_memory(**but(given, **{name: given[name].long()}))
