"""Tests of Titans against the paper's equations, and of its stability."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch.nn import functional

from scrubjay import memory
from scrubjay.kernels.neural import loop
from scrubjay.kernels.neural import network as neural_network
from scrubjay.memory.parts.grid import ChunkGrid
from scrubjay.memory.titans import neural as layer_module

OPTIONS = [
    {"depth": 1, "chunk_size": 1, "convolution": 1, "output_gate": False},
    {"depth": 1, "chunk_size": 4, "read_before_write": False, "num_heads": 2},
    {"depth": 2, "chunk_size": 3, "num_heads": 2},
    {"depth": 2, "chunk_size": 5, "residual": True, "convolution": 2, "max_step": 0.3},
    {"depth": 3, "chunk_size": 2, "norm": True, "hidden_ratio": 1},
    {"depth": 1, "chunk_size": 4, "bound_steps": False, "max_step": 0.2},
    {"depth": 2, "chunk_size": 3, "bound_steps": False, "max_step": 0.2, "read_before_write": False},
]


def oracle(layer, x, start):
    """Return the outputs of one row by equations 8 to 16 and section 4.4, step by step."""
    config = layer.config
    heads, width, taps = config.heads, config.dim // config.heads, config.convolution
    outputs, history, weights, place = [], [], [], 0
    for t in range(len(x)):
        if start[t] or t == 0:
            history, place = [], 0
            weights = [[w[h] for w in layer.weights] for h in range(heads)]
            momenta = [[torch.zeros_like(w) for w in one] for one in weights]
            anchors = [list(one) for one in weights]
        history.append(layer.project_in(x[t]))
        convolved_x = history[-1]
        if taps > 1:
            recent = history[-1 : -1 - taps : -1]
            convolved_x = torch.stack(
                [layer.convolution[taps - 1 - back] * old for back, old in enumerate(recent)]
            ).sum(0)
        query, key, value = functional.silu(convolved_x).view(3, heads, width)
        query, key = (v / (v.square().sum(-1, keepdim=True) + 1e-6).sqrt() for v in (query, key))
        step, momentum, forgetting = torch.sigmoid(layer.gates(x[t]).view(3, heads))
        largest = (1.0 if config.bound_steps else 0.1) if config.max_step is None else config.max_step
        step = largest * step / config.chunk_size
        if config.bound_steps:
            momentum = momentum * config.chunk_size / (config.chunk_size + 1)
            step = step * (1 - momentum)
        read = []
        for h in range(heads):

            def network(inputs, layers):
                out = inputs
                for index, w in enumerate(layers):
                    out = out @ w if index == 0 else functional.silu(out) @ w
                out = functional.layer_norm(out, out.shape, eps=1e-5) if config.norm else out
                return inputs + out if config.residual else out

            before = weights[h]
            at = [a if a.requires_grad else a.requires_grad_() for a in anchors[h]]
            error = network(key[h], at) - value[h]
            gradient = torch.autograd.grad(error.square().sum() / 2, at, create_graph=True)
            length = torch.stack([g.square().sum() for g in gradient]).sum()
            step_size = step[h]
            if config.bound_steps and (config.depth > 1 or config.norm):
                max_step = (
                    (1 - momentum[h]) / config.chunk_size * error.square().sum() / length.clamp(min=1e-300)
                )
                step_size = torch.minimum(step_size, max_step)
            momenta[h] = [momentum[h] * s - step_size * g for s, g in zip(momenta[h], gradient, strict=True)]
            weights[h] = [
                initial + (1 - forgetting[h]) * (w - initial) + s
                for initial, w, s in zip([w[h] for w in layer.weights], weights[h], momenta[h], strict=True)
            ]
            read.append(network(query[h], before if config.read_before_write else weights[h]))
        place += 1
        if place % config.chunk_size == 0:
            anchors = [list(one) for one in weights]
        read = torch.stack(read)
        read = read / (read.square().mean(-1, keepdim=True) + 1e-4).sqrt() * layer.out_norm.weight
        read = read.flatten()
        if config.output_gate:
            read = read * functional.silu(layer.output_gate(x[t]))
        outputs.append(layer.out(read))
    return torch.stack(outputs)


def titans(seed=0, **fields) -> Any:
    torch.manual_seed(seed)
    module: Any = memory.make("titans", **({"dim": 8} | fields))
    # The initial weights of the last layer are zero; use others.
    with torch.no_grad():
        for layer in module.layers:
            torch.nn.init.normal_(layer.memory.weights[-1], std=0.4)
    return module


@pytest.mark.parametrize("fields", OPTIONS, ids=str)
def test_outputs_and_outer_gradients_equal_the_papers_equations(fields):
    module = titans(**fields).double()
    layer = module.layers[0].memory
    x = torch.randn(2, 17, 8, dtype=torch.float64, requires_grad=True)
    start = torch.zeros(2, 17, dtype=torch.bool)
    start[0, 6] = start[1, 0] = start[1, 7] = start[1, 8] = True
    age = torch.zeros(2, dtype=torch.int64)
    state = {name: value for name, value in layer.initial_state(2, torch.float64, x.device).items()}
    grid = ChunkGrid.from_starts(age, start, module.chunk_size)
    y, _, _ = layer.segment(x, state, grid)
    expected = torch.stack([oracle(layer, x[row], start[row]) for row in range(2)])
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    inputs = [x, *layer.parameters()]
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
    result = torch.autograd.grad(y, inputs, weights)
    expected_grads = torch.autograd.grad(expected, inputs, weights)
    torch.testing.assert_close(result, expected_grads, rtol=1e-9, atol=1e-9)


def test_a_grid_lays_every_step_once_at_its_place_in_its_episode():
    generator = torch.Generator().manual_seed(0)
    for chunk_size in (1, 3, 4):
        start = torch.rand(4, 23, generator=generator) < 0.2
        age = torch.tensor([0, 2, 7, 12])
        grid = ChunkGrid.from_starts(age, start, chunk_size)
        x = torch.randn(4, 23, 2, generator=generator, dtype=torch.float64, requires_grad=True)
        grid_x = grid.to_grid(x)
        torch.testing.assert_close(grid.from_grid(grid_x), x, rtol=0, atol=0)
        assert grid.position is not None
        assert torch.equal(grid.position % chunk_size, grid.clock.step % chunk_size)
        (grid_x.square().sum() / 2).backward()
        torch.testing.assert_close(x.grad, x.detach(), rtol=0, atol=0)


def adversaries(steps, generator) -> torch.Tensor:
    """Return one stream per row: zeros, ones, huge numbers, a repeated key, an alternating key, noise."""
    one = torch.randn(1, 1, 8, generator=generator)
    noise = torch.randn(6, steps, 8, generator=generator)
    flips = 1 - 2 * (torch.arange(steps) % 2)
    rows = [noise[:1] * 0, noise[:1] * 0 + 1, noise[2:3] * 1e6, one + 0.01 * noise[3:4], one * flips[:, None]]
    return torch.cat([*(row.expand(1, steps, 8) for row in rows), noise[5:]])


def worst(depth, momentum) -> Any:
    """Return a memory with saturated gates and large weights."""
    module = titans(depth=depth, chunk_size=16)
    layer = module.layers[0].memory
    with torch.no_grad():
        layer.gates.weight.zero_()
        for bias, value in zip(layer.gates.bias.view(3, -1), (20.0, momentum, -20.0), strict=True):
            bias.fill_(value)
        layer.project_in.weight *= 10
        for weight in layer.weights:
            weight.copy_(torch.randn_like(weight) * 8 * weight.shape[1] ** -0.5)
    return module


def greatest(module, steps, dtype=torch.float32) -> float:
    """Return the largest weight that the memory reaches on the adversarial streams."""
    module = module.to(dtype)
    generator, top = torch.Generator().manual_seed(0), torch.tensor(0.0)
    state = module.initial_state(6)
    with torch.no_grad():
        for _ in range(0, steps, 1000):
            y, state = module(adversaries(1000, generator).to(dtype), state)
            assert y.isfinite().all() or not state["delta_0"].isfinite().all()
            top = torch.maximum(top, state["delta_0"].abs().max().nan_to_num(torch.inf, torch.inf))
    return top.item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("depth", "momentum"), [(1, -20.0), (2, -20.0), (2, 6.0), (3, 2.0)])
def test_adversarial_streams_stay_bounded(depth, momentum, dtype):
    assert greatest(worst(depth, momentum), 3000, dtype) < 100


@pytest.mark.matrix
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.matrix)])
@pytest.mark.parametrize(("depth", "momentum"), [(1, 2.0), pytest.param(2, 6.0, marks=pytest.mark.matrix)])
def test_adversarial_streams_stay_bounded_for_a_million_steps(depth, momentum, dtype):
    assert greatest(worst(depth, momentum), 1_000_000, dtype) < 1000


@pytest.mark.parametrize("depth", [1, 2])
def test_steps_as_the_paper_prints_them_may_make_a_memory_diverge(depth):
    bounded_memory = titans(depth=depth, chunk_size=16)
    unbounded_memory = titans(depth=depth, chunk_size=16, bound_steps=False, max_step=0.2)
    assert greatest(bounded_memory, 1000) < 100
    for module in (unbounded_memory, bounded_memory):
        gates = module.layers[0].memory.gates
        with torch.no_grad():
            gates.bias.view(3, -1)[:2] = 5.0
    assert greatest(bounded_memory, 1000) < 100
    assert greatest(unbounded_memory, 1000) > 1e6


def test_without_the_clip_a_deep_memory_diverges(monkeypatch):
    def skip_clipping(step_size, *rest):
        return step_size, neural_network.clip_step(step_size, *rest)[1]

    monkeypatch.setattr(loop, "clip_step", skip_clipping)
    assert greatest(worst(2, -20.0), 1000) > 1e6


def relay(period, depth, dtype=torch.float32) -> float:
    """Return the largest weight if every `period` chunks one large step is followed by high momentum."""
    module = titans(depth=depth, chunk_size=16)
    layer = module.layers[0].memory
    with torch.no_grad():
        layer.gates.weight.zero_()
        step, momentum, _ = layer.gates.bias.view(3, -1)
        step.fill_(20.0)
        momentum.zero_()
        layer.gates.weight.view(3, -1, 8)[1, :, 0] = -20.0
        torch.nn.init.normal_(layer.project_in.weight)
        layer.project_in.weight[:, :2] = 0
    steps = 6000
    x = torch.tensor([0, 0, 1.0, -1, 1, -1, 1, -1]).repeat(1, steps, 1)
    x[0, :, 0] = torch.where(torch.arange(steps) % (period * 16) == 0, 1.0, -1.0)
    x[0, :, 1] = -x[0, :, 0]
    with torch.no_grad():
        _, state = module.to(dtype)(x.to(dtype), module.initial_state(1))
    return state["delta_0"].abs().max().nan_to_num(torch.inf, torch.inf).item()


@pytest.mark.one_in(5)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("period", [2, 3, 4, 5, 9])
def test_steps_that_momentum_relays_stay_bounded(period, depth, dtype):
    assert relay(period, depth, dtype) < 20


def test_without_a_bound_on_momentum_relayed_steps_diverge(monkeypatch):
    monkeypatch.setattr(layer_module, "compute_max_momentum", lambda chunk_size: 1.0)
    assert relay(4, 1) > 1e6


def test_steps_whose_sum_exceeds_two_make_a_matrix_diverge():
    with pytest.raises(
        ValueError, match=r"max_step=2\.2: must be above 0 and at most 1, because larger steps overshoot"
    ):
        titans(max_step=2.2)
    module = worst(1, -20.0)
    object.__setattr__(module.layers[0].memory.config, "max_step", 2.2)
    assert greatest(module, 4000) > 1e6


def test_a_memory_that_forgot_for_long_learns_like_a_newborn():
    module = titans(depth=2)
    layer = module.layers[0].memory
    with torch.no_grad():
        layer.gates.weight.zero_()
        layer.gates.bias.view(3, -1)[2].fill_(-2.0)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(1, 40, 8, generator=generator)
        expected, _ = module(x, module.initial_state(1))
        # From here on the memory only forgets: a network that decayed to zero could not learn again.
        layer.gates.bias.view(3, -1)[0].fill_(-200.0)
        state = module.initial_state(1)
        for _ in range(16):
            _, state = module(torch.randn(1, 1024, 8, generator=generator), state)
        layer.gates.bias.view(3, -1)[0].fill_(0.0)
        assert not state["delta_0"].any()
        state |= {"tail_0": torch.zeros_like(state["tail_0"])}
        result, _ = module(x, state)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_what_fades_becomes_zero_before_it_becomes_denormal():
    module = titans(depth=2)
    layer = module.layers[0].memory
    with torch.no_grad():
        _, state = module(torch.randn(2, 64, 8), module.initial_state(2))
        assert state["delta_0"].all()
        layer.gates.weight.zero_()
        for bias, value in zip(layer.gates.bias.view(3, -1), (-200.0, 0.0, 0.0), strict=True):
            bias.fill_(value)
        for x in (torch.randn(2, 192, 8), *torch.randn(192, 2, 1, 8)):
            _, state = module(x, state)
            tiny = torch.finfo(torch.float32).tiny
            for name in ("delta_0", "momentum_0", "anchor_0"):
                assert not ((state[name] != 0) & (state[name].abs() < tiny)).any()


def test_surprise_is_the_length_of_the_gradient_and_fades_with_repetition():
    module = titans(depth=2, chunk_size=4)
    x = torch.randn(1, 1, 8).expand(1, 60, 8).clone()
    x[:, 50] = torch.randn(8)
    start = torch.zeros(1, 60, dtype=torch.bool)
    y, surprise, after = module.segment_with_surprise(x, module.initial_state(1), start)
    plain, state = module(x, module.initial_state(1))
    torch.testing.assert_close(y, plain)
    assert all(torch.equal(after[name], state[name]) for name in state)
    assert surprise.shape == (1, 60)
    assert not surprise.requires_grad
    assert surprise[0, 49] < surprise[0, 5]
    assert surprise[0, 50] > 1.5 * surprise[0, 49]


@pytest.mark.parametrize("chunks", [1, 2])
def test_outer_gradients_stop_at_the_boundary_of_so_many_chunks(chunks):
    module = titans(chunk_size=4, bptt_chunks=chunks, convolution=1)
    x = torch.randn(1, 20, 8, requires_grad=True)
    y, _ = module(x, module.initial_state(1))
    y[0, 14].sum().backward()
    assert x.grad is not None
    has_gradient = x.grad[0].abs().sum(-1) > 0
    boundary = 12 if chunks == 1 else 8
    assert has_gradient[boundary:14].all()
    assert not has_gradient[:boundary].any()


@pytest.mark.parametrize("name", ["titans", "titans_mac", "titans_mag", "titans_mal"])
def test_higher_derivatives_and_transforms_of_a_segment_with_starts(name):
    torch.manual_seed(0)
    module: Any = memory.make(name, dim=8, chunk_size=3, depth=2).double()
    start = torch.zeros(1, 7, dtype=torch.bool)
    start[0, 4] = True

    def loss(x):
        return module(x, module.initial_state(1), start)[0].square().sum()

    x = torch.randn(1, 7, 8, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(x), x, create_graph=True)
    torch.testing.assert_close(torch.func.grad(loss)(x.detach()), expected.detach())
    direction = torch.randn_like(x)
    (by_row,) = torch.autograd.grad((expected * direction).sum(), x)
    small = 1e-5 * direction
    ahead, behind = (torch.func.grad(loss)((x + sign * small).detach()) for sign in (1, -1))
    torch.testing.assert_close(by_row, (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_all_that_a_gradient_needs_is_saved_by_autograd_which_frees_it():
    module = titans(depth=2)
    tensors = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: tensors.append(x) or x, lambda x: x):
        y, _ = module(torch.randn(2, 64, 8), module.initial_state(2))
    chunks, size = 4, module.initial_state(2)["delta_0"].numel()
    # Saved tensors include deltas and momenta at the start of every chunk, and other intermediate products.
    assert sum(x.numel() for x in tensors) > 3 * chunks * size
    largest = weakref.ref(max(tensors, key=torch.numel))
    tensors.clear()
    y.sum().backward()
    gc.collect()
    assert largest() is None


def test_impossible_sizes_are_named():
    for fields, message in [
        ({"chunk_size": 2.5}, r"chunk_size=2\.5: must be an integer"),
        ({"chunk_size": 0}, "chunk_size=0: must be an integer of at least 1"),
        ({"num_heads": 3}, "num_heads=3 does not divide dim=8"),
        ({"bptt_chunks": 0}, "bptt_chunks=0: must be at least 1, or None"),
        ({"num_layers": 0}, "num_layers=0: must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            titans(**fields)
