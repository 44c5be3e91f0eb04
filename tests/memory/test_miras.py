"""Tests of the Miras memories: limiting cases, state entries, losses, and weights from duals."""

from typing import Any

import pytest
import torch

from scrubjay import memory
from scrubjay.kernels import neural_recall
from scrubjay.kernels.neural.network import NetworkShape, mirror_weights, unpack

PAPER: dict[str, Any] = {"depth": 2, "residual": True, "norm": True}
NAMES = ["memora", "moneta", "yaad"]


def build(name, seed=0, **fields) -> Any:
    torch.manual_seed(seed)
    return memory.make(name, dim=8, **fields)


def gates(module, index=0):
    """Return the gate projection of a layer, and its biases by gate name."""
    layer = module.layers[index].memory
    return layer.gates, dict(zip(layer.gate_names, layer.gates.bias.view(-1, layer.heads), strict=True))


def as_titans(module, **fields) -> Any:
    """Return a Titans memory without momentum that has the weights of `module`."""
    titans = build("titans", **fields)
    weights = module.state_dict()
    for name in ("weight", "bias"):
        gate = weights.pop(f"layers.0.memory.gates.{name}").unflatten(0, (-1, module.layers[0].memory.heads))
        step, forgetting = gate[:2]
        weights[f"layers.0.memory.gates.{name}"] = torch.cat([step, torch.zeros_like(step), forgetting])
    titans.load_state_dict(weights)
    with torch.no_grad():
        gates(titans)[1]["momentum"].fill_(-1e4)
    return titans.to(next(module.parameters()).dtype)


@pytest.mark.parametrize("bound_steps", [False, True])
def test_yaad_with_no_error_beyond_its_threshold_is_titans_without_momentum(bound_steps):
    module = build("yaad", bound_steps=bound_steps, chunk_size=4).double()
    with torch.no_grad():
        gates(module)[1]["threshold"].fill_(1e6)
    x = torch.randn(2, 50, 8, dtype=torch.float64)
    y, state = module(x, module.initial_state(2))
    titans = as_titans(module, bound_steps=bound_steps, chunk_size=4)
    expected, titans_state = titans(x, titans.initial_state(2))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state["delta_0"], titans_state["delta_0"])
    assert state["delta_0"].any()


def test_moneta_with_squares_and_a_norm_of_two_is_titans_without_momentum_with_half_its_steps():
    fields: dict[str, Any] = {"bound_steps": False, "chunk_size": 4}
    module = build("moneta", exponent=2.0, q=2.0, max_step=0.1, **fields).double()
    x = torch.randn(2, 50, 8, dtype=torch.float64)
    y, state = module(x, module.initial_state(2))
    titans = as_titans(module, max_step=0.2, **fields)
    expected, titans_state = titans(x, titans.initial_state(2))
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state["delta_0"], titans_state["delta_0"])


@pytest.mark.parametrize("name", NAMES)
def test_no_momentum_is_kept(name):
    module, titans = build(name, convolution=1), build("titans", convolution=1)
    assert module.initial_state(1).keys() == {"time", "delta_0", "anchor_0"}
    assert 3 * (module.state_bytes() - 8) == 2 * (titans.state_bytes() - 8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("net", "least"), [({}, 0.8), (PAPER, 0.3)], ids=["matrix", "paper"])
def test_a_key_is_recalled_by_what_was_written_with_it(name, net, least):
    """An untrained memory recalls the newest of two values written with a key.

    The paper's network has outputs of one length, which few values have; its limit is lower.
    """
    module = build(name, chunk_size=4, convolution=1, num_heads=1, **net)
    layer = module.layers[0].memory
    with torch.no_grad():
        gates(module)[0].weight.zero_()
        gates(module)[1]["step"].fill_(4.0)
        _, _, values = layer.project_in.weight.view(3, 8, 8)
        key, noise = torch.randn(1, 1, 8), torch.randn(1, 160, 8)
        noisy_key = key.expand(1, 160, 8) + 0.05 * noise
        state = layer.initial_state(1, torch.float32, torch.device("cpu"))

        def recall_value(state):
            queries = layer.normalize_queries(key @ layer.project_in.weight.view(3, 8, 8)[1].T)
            options = {name: getattr(layer.config, name) for name in ("residual", "norm", "learning")}
            return neural_recall(queries, list(layer.weights), state["anchor"], **options)[0, 0, 0]

        cosines = []
        for sign in (1, -1):
            values.mul_(sign)
            value = torch.nn.functional.silu(key @ values.T)[0, 0]
            for t in range(160):
                _, _, state = layer.step(noisy_key[:, t], state, torch.tensor([t]))
            cosines.append(torch.cosine_similarity(recall_value(state), value, dim=0).item())
    assert min(cosines) > least


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", NAMES)
def test_a_memory_that_forgot_for_long_learns_like_a_newborn(name):
    module = build(name, **PAPER)
    with torch.no_grad():
        gates(module)[0].weight.zero_()
        _, biases = gates(module)
        biases["forgetting"].fill_(-2.0)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(1, 40, 8, generator=generator)
        expected, expected_state = module(x, module.initial_state(1))
        assert expected_state["delta_0"].any()
        # From here on the memory only forgets: a network that decayed to zero could not learn again.
        biases["step"].fill_(-200.0)
        state = module.initial_state(1)
        for _ in range(16):
            _, state = module(torch.randn(1, 1024, 8, generator=generator), state)
        biases["step"].fill_(0.0)
        assert not state["delta_0"].any()
        result, _ = module(x, state | {"tail_0": torch.zeros_like(state["tail_0"])})
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("net", [{}, PAPER], ids=["matrix", "paper"])
def test_gates_open_to_the_end_and_harsh_streams_keep_weights_finite(name, net):
    module = build(name, **net)
    layer = module.layers[0].memory
    with torch.no_grad():
        layer.gates.weight.zero_()
        gates(module)[1]["step"].fill_(20.0)
        gates(module)[1]["forgetting"].fill_(-20.0)
        layer.project_in.weight *= 10
        one, noise = torch.randn(1, 1, 8), torch.randn(4, 3000, 8)
        flips = 1 - 2 * (torch.arange(3000) % 2)
        rows = [noise[:1] * 0, noise[1:2] * 1e6, one + 0.01 * noise[2:3], one * flips[:, None], noise[3:]]
        x = torch.cat([row.expand(1, 3000, 8) for row in rows])
        y, state = module(x, module.initial_state(5))
    assert y.isfinite().all()
    assert state["delta_0"].abs().max() < 1e4


def test_impossible_sizes_are_named():
    for name, fields, message in [
        ("moneta", {"exponent": 0.5}, r"exponent=0\.5: must be at least 1"),
        ("moneta", {"sharpness": -1.0}, r"sharpness=-1\.0: must be positive"),
        ("moneta", {"q": 1.0}, r"q=1\.0: must be at least 2"),
        ("yaad", {"measure": "mean"}, "measure='mean'; choose from norm, coordinate"),
        ("memora", {"total": 0.0}, r"total=0\.0: must be positive"),
        ("memora", {"forgets_to": "zero"}, "forgets_to='zero'; choose from born, uniform"),
        ("memora", {"depth": 0}, "depth=0: must be an integer of at least 1"),
        ("yaad", {"num_heads": 3}, "num_heads=3 does not divide dim=8"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(name, **fields)


@pytest.mark.parametrize("measure", ["norm", "coordinate"])
@pytest.mark.parametrize("bound_steps", [False, True])
def test_one_outlier_of_a_million_moves_weights_no_further_than_its_threshold(measure, bound_steps):
    torch.manual_seed(0)
    module: Any = memory.make("yaad", dim=16, num_heads=2, measure=measure, bound_steps=bound_steps)
    layer = module.layers[0].memory
    with torch.no_grad():
        layer.gates.weight.zero_()
        # Disable forgetting.
        layer.gates.bias.view(3, 2)[1] = -200.0
        state = layer.initial_state(3, torch.float32, torch.device("cpu"))
        for t in range(20):
            _, _, state = layer.step(torch.randn(3, 16), state, torch.tensor([t] * 3))
        outlier = 1e6 * torch.randn(3, 16)
        _, surprise, after = layer.step(outlier, state, torch.tensor([20] * 3))
    step, _, threshold = layer.gates.bias.view(3, 2)
    step = (1 if bound_steps else 0.1) * torch.sigmoid(step) / layer.chunk_size
    threshold = torch.nn.functional.softplus(threshold) * (1 if measure == "norm" else 8**0.5)
    change = torch.linalg.vector_norm(after["delta"] - state["delta"], dim=-1)
    assert (change <= step * threshold * (1 + 1e-4)).all()
    assert (change > 0.5 * step * threshold).all()
    assert (surprise <= threshold.mean() * (1 + 1e-4)).all()


def test_thresholds_are_learned():
    torch.manual_seed(0)
    module: Any = memory.make("yaad", dim=16)
    with torch.no_grad():
        module.layers[0].memory.gates.bias[2] = 0.0
    y, _ = module(3 * torch.randn(4, 40, 16), module.initial_state(4))
    y.square().sum().backward()
    assert module.layers[0].memory.gates.weight.grad[2].any()


@pytest.mark.parametrize("fields", [{}, {"depth": 2, "residual": True, "norm": True}, {"q": 2.5}], ids=str)
def test_weights_keep_the_norm_of_their_dual_however_long_it_lives(fields):
    torch.manual_seed(0)
    module: Any = memory.make("moneta", dim=16, num_heads=2, **fields)
    layer, q = module.layers[0].memory, module.config.q
    weights = list(layer.weights)
    shape = NetworkShape.from_weights(weights, False, False, learning=layer.learning)
    with torch.no_grad():
        state = module.initial_state(3)
        for _ in range(5):
            _, state = module(torch.randn(3, 200, 16), state)
        for state_delta in (torch.zeros_like(state["anchor_0"]), state["anchor_0"]):
            duals = [w + x for w, x in zip(weights, unpack(state_delta, shape), strict=True)]
            for weight, dual in zip(
                mirror_weights(weights, unpack(state_delta, shape), shape), duals, strict=True
            ):
                norms = [torch.linalg.vector_norm(x, q, dim=(-1, -2)) for x in (weight, dual)]
                torch.testing.assert_close(norms[0], norms[1] ** (3 - q))
                if not state_delta.any():
                    torch.testing.assert_close(norms[0], torch.ones_like(norms[0]))
                    torch.testing.assert_close(weight, dual)
    assert state["anchor_0"].any()


def weights_of(module, state):
    layer = module.layers[0].memory
    weights = list(layer.weights)
    shape = NetworkShape.from_weights(weights, False, False, learning=layer.learning)
    return mirror_weights(weights, unpack(state["anchor_0"], shape), shape)


@pytest.mark.parametrize("forgets_to", ["born", "uniform"])
@pytest.mark.parametrize("net", [{}, {"depth": 2, "residual": True, "norm": True}], ids=["matrix", "paper"])
def test_weights_to_an_output_are_positive_and_sum_up_to_the_root_of_the_width(net, forgets_to):
    torch.manual_seed(0)
    module: Any = memory.make("memora", dim=16, num_heads=1, forgets_to=forgets_to, **net)
    with torch.no_grad():
        state = module.initial_state(3)
        for _ in range(5):
            _, state = module(10 * torch.randn(3, 200, 16), state)
        for weight in weights_of(module, state):
            assert (weight >= 0).all()
            torch.testing.assert_close(weight.sum(-2), torch.full_like(weight.sum(-2), 4.0))
    assert state["anchor_0"].any()


@pytest.mark.matrix
@pytest.mark.parametrize("forgets_to", ["born", "uniform"])
@pytest.mark.parametrize("net", [{}, {"depth": 2, "residual": True, "norm": True}], ids=["matrix", "paper"])
@torch.no_grad()
def test_weights_are_distributions_after_100_000_steps(net, forgets_to):
    """Inputs are large and random, constant, or of alternating sign."""
    torch.manual_seed(0)
    module: Any = memory.make("memora", dim=8, num_heads=1, forgets_to=forgets_to, **net)
    state, constant = module.initial_state(3), torch.randn(1, 1, 8).expand(1, 1000, 8)
    alternating = constant * (-1) ** torch.arange(1000)[:, None]
    for _ in range(100):
        _, state = module(torch.cat([10 * torch.randn(1, 1000, 8), constant, alternating]), state)
    assert state["anchor_0"].flatten(1).any(dim=1).all()
    for weight in weights_of(module, state):
        assert (weight >= 0).all()
        torch.testing.assert_close(weight.sum(-2), torch.full_like(weight.sum(-2), 8**0.5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("forgets_to", ["born", "uniform"])
def test_what_is_not_written_goes_where_the_config_says(forgets_to):
    torch.manual_seed(0)
    module: Any = memory.make("memora", dim=16, num_heads=1, forgets_to=forgets_to)
    with torch.no_grad():
        torch.nn.init.normal_(module.layers[0].memory.weights[0])
        initial = weights_of(module, module.initial_state(1))[0]
        _, state = module(torch.randn(1, 64, 16), module.initial_state(1))
        gates = module.layers[0].memory.gates
        gates.weight.zero_()
        gates.bias.copy_(torch.tensor([-200.0, -2.0]))
        for _ in range(4):
            _, state = module(torch.randn(1, 128, 16), state)
        final = weights_of(module, state)[0]
    expected = initial if forgets_to == "born" else torch.full_like(initial, 1 / 4)
    torch.testing.assert_close(final, expected, rtol=1e-5, atol=1e-6)
    assert (initial - 1 / 4).abs().max() > 0.1


def test_a_matrix_is_born_with_equal_weights():
    module: Any = memory.make("memora", dim=16, num_heads=1)
    weights = weights_of(module, module.initial_state(1))[0]
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 4))
