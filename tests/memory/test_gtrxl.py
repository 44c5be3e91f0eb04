import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scrubjay.memory.contract.base import State
from scrubjay.memory.gtrxl import Gate, GTrXL, GTrXLConfig

BATCH, TIME = 3, 40


def build(dtype: torch.dtype = torch.float64, **fields) -> GTrXL:
    torch.manual_seed(0)
    return GTrXLConfig(**{"dim": 12, "window": 5, **fields}).build().to(dtype)


def random_case(memory: GTrXL, rate: float, seed: int = 0) -> tuple[Tensor, State, Tensor]:
    """Return inputs, the state of rows of different ages, and starts."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, TIME, memory.dim, dtype=torch.float64, generator=generator)
    earlier = torch.randn(BATCH, 7, memory.dim, dtype=torch.float64, generator=generator)
    starts = torch.zeros(BATCH, 7, dtype=torch.bool)
    starts[1, 4] = starts[2, 6] = True
    dtype = next(memory.parameters()).dtype
    with torch.no_grad():
        _, state = memory(earlier.to(dtype), memory.initial_state(BATCH), starts)
    state["recent"].requires_grad_()
    return x.to(dtype).requires_grad_(), state, torch.rand(BATCH, TIME, generator=generator) < rate


def gradients(memory: GTrXL, x: Tensor, state: State, y: Tensor, after: State) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    loss = (y * weights).sum() + (after["recent"] ** 3).sum()
    return y, *after.values(), *torch.autograd.grad(loss, [x, state["recent"], *memory.parameters()])


@given(
    cuts=st.sets(st.integers(1, TIME - 1)), rate=st.sampled_from([0.0, 0.1, 0.6]), seed=st.integers(0, 2**16)
)
@settings(max_examples=15, deadline=None)
def test_any_cut_gives_the_same_outputs_state_and_gradients(cuts, rate, seed):
    memory = build()
    x, state, start = random_case(memory, rate, seed)
    whole = gradients(memory, x, state, *memory(x, state, start))
    borders = [0, *sorted(cuts), TIME]
    outputs, current_state = [], state
    for begin, end in pairwise(borders):
        y, current_state = memory(x[:, begin:end], current_state, start[:, begin:end])
        outputs.append(y)
    by_pieces = gradients(memory, x, state, torch.cat(outputs, dim=1), current_state)
    torch.testing.assert_close(by_pieces, whole, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("dim", [8, 10, 14, 22])
def test_float32_segment_agrees_with_steps_at_any_even_width(dim):
    memory = build(torch.float32, dim=dim)
    x, state, start = random_case(memory, 0.1)
    with torch.no_grad():
        y, after = memory(x, state, start)
        by_steps, current_state = [], state
        for t in range(TIME):
            step, current_state = memory(x[:, t : t + 1], current_state, start[:, t : t + 1])
            by_steps.append(step)
    torch.testing.assert_close(y, torch.cat(by_steps, dim=1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after, current_state, atol=1e-5, rtol=1e-5)


def test_a_start_resets():
    memory = build()
    x, state, start = random_case(memory, 0.0)
    start[:, 21] = True
    y, after = memory(x, state, start)
    fresh_y, fresh_after = memory(x[:, 21:], memory.initial_state(BATCH))
    torch.testing.assert_close((y[:, 21:], after), (fresh_y, fresh_after), atol=1e-12, rtol=0)
    loss = y[:, 21:].square().sum() + after["recent"].sum()
    to_x, to_recent = torch.autograd.grad(loss, [x, state["recent"]])
    assert not to_x[:, :21].any()
    assert not to_recent.any()


def test_layers_reach_back_exactly_their_windows_together():
    memory = build(num_layers=2, window=4)
    x, state, start = random_case(memory, 0.0)
    y, _ = memory(x, state, start)
    (to_x,) = torch.autograd.grad(y[:, 30].sum(), [x])
    has_gradient = to_x.abs().sum(dim=(0, 2)) > 0
    assert has_gradient.nonzero().flatten().tolist() == list(range(30 - 2 * 4, 31))


def test_gate_is_the_papers_formula():
    torch.manual_seed(0)
    gate = Gate(6, 2.0).double()
    x, y = torch.randn(2, 5, 6, dtype=torch.float64)
    to_reset, to_gate, to_candidate = gate.update.weight.chunk(3)
    from_reset, from_gate = gate.stream.weight.chunk(2)
    reset = torch.sigmoid(y @ to_reset.T + x @ from_reset.T)
    opening = torch.sigmoid(y @ to_gate.T + x @ from_gate.T - gate.bias)
    candidate = torch.tanh(y @ to_candidate.T + (reset * x) @ gate.reset_stream.weight.T)
    torch.testing.assert_close(gate(x, y), (1 - opening) * x + opening * candidate, atol=1e-12, rtol=0)


def test_gates_start_nearly_closed_so_that_a_new_memory_is_nearly_the_identity():
    identity = build(gate_bias=50.0)
    x, state, start = random_case(identity, 0.1)
    torch.testing.assert_close(identity(x, state, start)[0], x, atol=1e-12, rtol=0)

    default = build()
    biases = [parameter for name, parameter in default.named_parameters() if name.endswith("gate.bias")]
    assert len(biases) == 2 * len(default.layers)
    assert all((bias == 2).all() for bias in biases)
    # A gate without weights lets sigmoid(-2) of a zero candidate in.
    gate = Gate(6, 2.0)
    for layer in (gate.update, gate.stream, gate.reset_stream):
        torch.nn.init.zeros_(layer.weight)
    loss = 1 / (1 + math.exp(-2))
    torch.testing.assert_close(gate(torch.ones(6), torch.ones(6)), torch.full((6,), loss))


def test_state_bytes_is_the_size_of_the_state():
    memory = build(torch.float32, num_layers=3, window=7)
    assert memory.state_bytes(2) == 2 * (3 * 7 * 12 * 4 + 8)


def test_bfloat16_keeps_a_float32_state_and_finite_gradients():
    memory = build(torch.bfloat16)
    x, state, start = random_case(memory, 0.1)
    y, after = memory(x, state, start)
    by_steps, _ = memory(x[:, :1], state, start[:, :1])
    assert y.dtype == by_steps.dtype == torch.bfloat16
    assert after["recent"].dtype == torch.float32
    (y.float().sum() + by_steps.float().sum()).backward()
    for name, tensor in (("x", x), *memory.named_parameters()):
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.any(), name


@pytest.mark.matrix  # law 8, which test_conformance.py tests
def test_step_compiles_and_exports_with_dynamic_batch():
    memory = build(torch.float32)
    x, state, start = random_case(memory, 0.5)
    state = {name: value.detach() for name, value in state.items()}
    args = (x.detach()[:, :1], state, start[:, :1])
    fewer = (args[0][:2], {name: value[:2] for name, value in state.items()}, args[2][:2])
    batch = torch.export.Dim("batch", min=1)
    shapes = ({0: batch}, {name: {0: batch} for name in state}, {0: batch})
    exported_step = torch.export.export(memory, args, dynamic_shapes=shapes).module()
    torch.compiler.reset()  # dynamo counts recompilations of shared code over a whole process
    compiled_step = torch.compile(memory, fullgraph=True, backend="aot_eager", dynamic=True)
    for case in (args, fewer):
        torch.testing.assert_close(exported_step(*case), memory(*case), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(compiled_step(*case), memory(*case), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 7}, "dim=7"),
        ({"num_heads": 5}, "num_heads=5 does not divide dim=12; choose from 1, 2, 3, 4, 6, 12"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"window": 0}, "window=0: must be at least 1"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"feed_forward_ratio": -1}, "feed_forward_ratio=-1"),
        ({"gate_bias": math.nan}, "gate_bias=nan: must be finite"),
    ],
)
def test_impossible_sizes_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        GTrXLConfig(**{"dim": 12, **fields})
