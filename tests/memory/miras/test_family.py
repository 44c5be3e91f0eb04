"""Tests of all Miras memories: limiting cases, state entries, and learning after complete forgetting."""

from typing import Any

import pytest
import torch

from scrubjay import memory
from scrubjay.kernels import neural_recall

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
