"""Neural memories with other learning rules than Titans: every path compared with the reference."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from scrubjay.kernels import Gates, NeuralState, neural_memory, neural_memory_step, neural_recall
from scrubjay.kernels.neural.bias import Huber, Power
from scrubjay.kernels.neural.mirror_map import QNorm, Simplex
from scrubjay.kernels.neural.network import Learning, NetworkShape, mirror_weights, unpack

LEARNINGS = {
    "gelu": Learning("gelu"),
    "yaad": Learning("gelu", Huber()),
    "coordinates": Learning("silu", Huber("coordinate")),
    "moneta": Learning("gelu", Power(3.0), QNorm(4.0)),
    "memora": Learning("gelu", mirror=Simplex(2.0)),
    "uniform": Learning("gelu", mirror=Simplex(2.0, "uniform")),
}


def draw(
    learning,
    batch=2,
    chunks=3,
    chunk_size=4,
    heads=2,
    depth=2,
    borders=True,
    seed=0,
    width=3,
    dtype=torch.float64,
) -> dict[str, Any]:
    """Return random arguments of neural_memory without momentum; about half of the steps are clipped."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=dtype)

    time = chunks * chunk_size
    layers = list(itertools.pairwise([width, *[width + 2] * (depth - 1), width]))
    size = sum(a * b for a, b in layers)
    steps = uniform(batch, time, heads).square() / 4 / chunk_size
    delta, anchor = (normal(batch, heads, size) * 0.3 for _ in range(2))
    arguments: dict[str, Any] = {
        "query": functional.normalize(normal(batch, time, heads, width), dim=-1),
        "key": functional.normalize(normal(batch, time, heads, width), dim=-1),
        "value": normal(batch, time, heads, width),
        "gates": Gates(steps, torch.full_like(steps, -torch.inf), -uniform(batch, time, heads)),
        "weights": [normal(heads, a, b) for a, b in layers],
        "state": NeuralState(delta, torch.zeros_like(delta), anchor),
        "chunk_size": chunk_size,
        "learning": learning,
    }
    if learning.has_threshold:
        arguments["threshold"] = uniform(batch, time, heads) * 2
    if borders:
        arguments |= {
            "valid": uniform(batch, time) < 0.8,
            "fresh": uniform(batch, chunks) < 0.3,
            "cut": uniform(batch, chunks) < 0.3,
        }
    return arguments


def replace_arguments(arguments: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**arguments, **changes}


def as_titans(arguments: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the arguments without those of other learning rules than Titans."""
    titans_arguments = {
        name: part for name, part in arguments.items() if name not in ("learning", "threshold")
    }
    return {**titans_arguments, **changes}


def leaves(arguments: dict[str, Any]) -> list[torch.Tensor]:
    step, _, retention = arguments["gates"]
    delta, _, anchor = arguments["state"]
    tokens = [arguments[name] for name in ("query", "key", "value", "threshold") if name in arguments]
    return [*tokens, step, retention, *arguments["weights"], delta, anchor]


def run(arguments: dict[str, Any], implementation: Any, **options):
    """Return the outputs of valid tokens, the state, and the gradients of a weighted sum of both."""
    inputs = [x.requires_grad_() for x in leaves(arguments)]
    y, surprise, (delta, _, anchor) = neural_memory(**arguments, **options, implementation=implementation)
    if "valid" in arguments:
        y = torch.where(arguments["valid"][..., None, None], y, 0)
        surprise = torch.where(arguments["valid"][..., None], surprise, 0)
    outputs = [y, delta, anchor]
    weights = [torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out) for out in outputs]
    differentiable = [(out, w) for out, w in zip(outputs, weights, strict=True) if out.requires_grad]
    gradients = torch.autograd.grad(
        [out for out, _ in differentiable],
        inputs,
        [w for _, w in differentiable],
        allow_unused=True,
        materialize_grads=True,
    )
    return [*outputs, surprise], list(gradients)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", LEARNINGS)
@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2),
    chunks=st.integers(1, 3),
    chunk_size=st.integers(1, 4),
    depth=st.integers(1, 3),
    borders=st.booleans(),
    seed=st.integers(0, 10_000),
    options=st.fixed_dictionaries(
        dict.fromkeys(("read_before_write", "residual", "norm", "clip"), st.booleans())
    ),
)
def test_values_and_gradients_equal_the_definition(name, options, **case):
    learning = LEARNINGS[name]
    expected = run(draw(learning, **case), "reference", **options)
    result = run(draw(learning, **case), "torch", **options)
    tolerance: dict[str, Any] = (
        {"rtol": 1e-7, "atol": 1e-7} if options["norm"] else {"rtol": 1e-10, "atol": 1e-10}
    )
    torch.testing.assert_close(result, expected, **tolerance)


@pytest.mark.parametrize("name", LEARNINGS)
@pytest.mark.parametrize("options", [{}, {"read_before_write": False, "residual": True, "norm": True}])
def test_steps_equal_chunks(name, options):
    arguments = draw(LEARNINGS[name], borders=False)
    chunk_size = arguments["chunk_size"]
    arguments["state"] = arguments["state"]._replace(anchor=arguments["state"].delta)
    y, surprise, after = neural_memory(**arguments, **options)
    state = arguments["state"]
    tokens = {name: arguments[name] for name in ("query", "key", "value", "threshold") if name in arguments}
    for t in range(y.shape[1]):
        one, step_surprise, state = neural_memory_step(
            **{name: whole[:, t] for name, whole in tokens.items()},
            gates=Gates(*(gate[:, t] for gate in arguments["gates"])),
            weights=arguments["weights"],
            state=state,
            completes=torch.full((2,), t % chunk_size == chunk_size - 1),
            chunk_size=chunk_size,
            learning=arguments["learning"],
            **options,
        )
        torch.testing.assert_close(one, y[:, t], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(step_surprise, surprise[:, t], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state[::2], after[::2], rtol=1e-9, atol=1e-9)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", LEARNINGS)
@pytest.mark.parametrize("norm", [False, True])
def test_derivatives_equal_finite_differences_twice(name, norm):
    arguments = draw(LEARNINGS[name], batch=1, chunks=2, chunk_size=2, heads=1, width=2, borders=False)
    inputs = [x.requires_grad_() for x in leaves(arguments)]
    threshold = "threshold" in arguments
    _, momentum, _ = arguments["gates"]

    def function(query, key, value, *rest):
        limits, (step, retention, *weights, delta, anchor) = rest[:threshold], rest[threshold:]
        y, _, after = neural_memory(
            query,
            key,
            value,
            Gates(step, momentum, retention),
            weights,
            NeuralState(delta, torch.zeros_like(delta), anchor),
            chunk_size=2,
            norm=norm,
            learning=arguments["learning"],
            threshold=limits[0] if limits else None,
        )
        return y, after.delta, after.anchor

    assert torch.autograd.gradcheck(function, inputs)
    if not norm:
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize(
    ("learning", "factor"),
    [
        (Learning(bias=Power(2.0), mirror=QNorm(2.0)), 2.0),
        (Learning(bias=Huber()), 1.0),
        (Learning(bias=Huber("coordinate")), 1.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("depth", [1, 2])
def test_in_their_limits_they_are_titans_without_momentum(learning, factor, depth):
    arguments = draw(learning, depth=depth)
    if learning.has_threshold:
        arguments["threshold"] = torch.full_like(arguments["threshold"], torch.inf)
    result = neural_memory(**arguments, clip=False)
    step, *logs = arguments["gates"]
    expected = neural_memory(**as_titans(arguments, gates=Gates(factor * step, *logs)), clip=False)
    torch.testing.assert_close((result[0], *result[2][::2]), (expected[0], *expected[2][::2]))
    # The clipped step removes a fixed share of the error and does not depend on the scale of the loss.
    hard = Gates(1e3 + step, *logs)
    if depth == 2:
        member_state, titans_state = (
            neural_memory(**case)[2]
            for case in (replace_arguments(arguments, gates=hard), as_titans(arguments, gates=hard))
        )
        torch.testing.assert_close(member_state[::2], titans_state[::2])


@pytest.mark.parametrize("measure", ["norm", "coordinate"])
@pytest.mark.parametrize("clip", [False, True])
def test_one_outlier_changes_a_matrix_by_at_most_step_times_threshold(measure, clip):
    arguments = draw(Learning(bias=Huber(measure)), chunks=1, depth=1, borders=False, dtype=torch.float32)
    step, momentum, _ = arguments["gates"]
    outlier = torch.arange(4) == 2
    step = torch.where(outlier[:, None], step, 0)
    arguments["gates"] = Gates(step, momentum, torch.zeros_like(step))
    arguments["value"] = torch.where(outlier[:, None, None], 1e6, arguments["value"])
    before = arguments["state"].delta
    _, _, after = neural_memory(**arguments, clip=clip)
    distance = torch.linalg.vector_norm(after.delta - before, dim=-1)
    # Clipped by coordinate, the norm is at most the threshold times the root of their number.
    reach = arguments["threshold"] * (1 if measure == "norm" else 3**0.5)
    farthest = (step * reach)[:, 2]
    assert (distance <= farthest * (1 + 1e-4) + 1e-6).all()
    assert (distance > 0.9 * farthest).all()
    _, _, titans_after = neural_memory(**as_titans(arguments), clip=clip)
    assert (torch.linalg.vector_norm(titans_after.delta - before, dim=-1) > 1e3 * farthest).all()


@pytest.mark.parametrize("forgets_to", ["born", "uniform"])
def test_a_token_of_memora_is_its_closed_form(forgets_to):
    """Check W = c softmax(alpha log W - n / c eta gradient) for a matrix, over the inputs of each output."""
    learning = Learning(mirror=Simplex(2.0, forgets_to))
    arguments = draw(learning, chunks=1, chunk_size=1, depth=1, borders=False)
    zeros = torch.zeros_like(arguments["state"].delta)
    arguments["state"] = NeuralState(zeros, zeros, zeros)
    initial = arguments["weights"][0]
    weights = 2 * torch.softmax(3 / 2 * initial, dim=-2)
    step, _, log_retention = (gate[:, 0, :, None, None] for gate in arguments["gates"])
    key, value = (arguments[name][:, 0, :, None] for name in ("key", "value"))
    gradient = key.mT @ (key @ weights - value)
    _, _, after = neural_memory(**arguments, clip=False)
    result = 2 * torch.softmax(3 / 2 * (initial + after.anchor.unflatten(-1, initial.shape[-2:])), dim=-2)
    decayed_logs = weights.log() if forgets_to == "uniform" else weights.log() * 0
    other_logs = 0 if forgets_to == "uniform" else weights.log()
    expected = 2 * torch.softmax(
        log_retention.exp() * decayed_logs + other_logs - 3 / 2 * step * gradient, dim=-2
    )
    torch.testing.assert_close(result, expected)
    assert (result > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("forgets_to", ["born", "uniform"])
def test_weights_stay_distributions_for_a_hundred_thousand_steps(forgets_to):
    learning = Learning("gelu", mirror=Simplex(2.0, forgets_to))
    arguments = draw(learning, batch=1, chunks=20, chunk_size=50, heads=1, borders=False, dtype=torch.float32)
    shape = NetworkShape.from_weights(arguments["weights"], True, True, learning=learning)
    step, *_ = arguments["gates"]
    arguments["gates"] = Gates(step + 0.1, step - torch.inf, -step * 0.01)
    state = arguments.pop("state")
    with torch.no_grad():
        for _ in range(100):
            y, _, state = neural_memory(state=state, **arguments, residual=True, norm=True)
            assert y.isfinite().all()
        for weights in mirror_weights(arguments["weights"], unpack(state.anchor, shape), shape):
            assert (weights >= 0).all()
            torch.testing.assert_close(
                weights.sum(-2), torch.full_like(weights.sum(-2), 2.0), rtol=1e-6, atol=0
            )
        assert not torch.equal(state.anchor, torch.zeros_like(state.anchor))


@pytest.mark.parametrize("forgets_to", ["born", "uniform"])
def test_without_a_gradient_weights_approach_their_limit(forgets_to):
    learning = Learning(mirror=Simplex(2.0, forgets_to))
    arguments = draw(learning, borders=False)
    arguments["state"] = arguments["state"]._replace(anchor=arguments["state"].delta)
    shape = NetworkShape.from_weights(arguments["weights"], False, False, learning=learning)
    zeros = torch.zeros_like(arguments["gates"].step_size)

    def distance(delta):
        weights = mirror_weights(arguments["weights"], unpack(delta, shape), shape)
        initial = mirror_weights(arguments["weights"], unpack(torch.zeros_like(delta), shape), shape)
        limit = [torch.full_like(w, 2 / w.shape[-2]) for w in initial] if forgets_to == "uniform" else initial
        return sum((a - b).abs().sum() for a, b in zip(weights, limit, strict=True))

    distances = []
    for _ in range(6):
        distances.append(distance(arguments["state"].delta))
        gates = Gates(zeros, zeros - torch.inf, zeros - 0.02)
        _, _, arguments["state"] = neural_memory(**replace_arguments(arguments, gates=gates))
    assert all(b < 0.95 * a for a, b in itertools.pairwise(distances))
    gates = Gates(zeros, zeros - torch.inf, zeros - 80)
    _, _, after = neural_memory(**replace_arguments(arguments, gates=gates))
    assert distance(after.delta) < 1e-12


def test_recall_uses_mirrored_weights():
    arguments = draw(LEARNINGS["memora"], borders=False)
    delta = arguments["state"].delta
    y = neural_recall(arguments["query"], arguments["weights"], delta, learning=LEARNINGS["memora"])
    first, second = (
        2 * torch.softmax(w.shape[-2] / 2 * (w + x), dim=-2)
        for w, x in zip(
            arguments["weights"],
            unpack(delta, NetworkShape.from_weights(arguments["weights"], False, False)),
            strict=True,
        )
    )
    expected = functional.gelu(arguments["query"].transpose(1, 2) @ first) @ second
    torch.testing.assert_close(y, expected.transpose(1, 2))


def test_invalid_thresholds_and_activations_are_named():
    arguments = draw(LEARNINGS["yaad"])
    with pytest.raises(ValueError, match=r"threshold has shape \(2, 12\); expected \(2, 12, 2\)"):
        neural_memory(**replace_arguments(arguments, threshold=arguments["threshold"][..., 0]))
    with pytest.raises(ValueError, match=r"threshold=None: Huber\(measure='norm'\) requires a threshold"):
        neural_memory(**replace_arguments(arguments, threshold=None))
    with pytest.raises(
        ValueError, match=r"threshold is not supported by SquaredError\(\); pass threshold=None"
    ):
        neural_memory(**replace_arguments(arguments, learning=Learning()))
    with pytest.raises(ValueError, match="activation='relu'; choose from silu, gelu"):
        Learning("relu")  # pyright: ignore[reportArgumentType]


def test_kernels_name_an_unsupported_learning_rule():
    arguments = draw(LEARNINGS["memora"], dtype=torch.float32)
    with pytest.raises(ValueError, match=r"no kernel for Learning\(activation='gelu', .*total=2\.0"):
        neural_memory(**arguments, implementation="triton")
