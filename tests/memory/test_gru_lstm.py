from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scrubjay.memory.contract.base import Memory, State
from scrubjay.memory.gru import GRUConfig
from scrubjay.memory.lstm import LSTMConfig

DIM, BATCH, TIME = 10, 4, 23
LAYERS = {GRUConfig: nn.GRU, LSTMConfig: nn.LSTM}
both = pytest.mark.parametrize("config_class", LAYERS, ids=["gru", "lstm"])
rates = pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])


def build(config_class: type, dtype: torch.dtype = torch.float64, dim: int = DIM) -> Memory:
    torch.manual_seed(0)
    return config_class(dim=dim).build().to(dtype)


def random_case(memory: Memory, rate: float, seed: int = 0) -> tuple[Tensor, State, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, TIME, memory.dim, dtype=torch.float64, generator=generator)
    state = {
        name: torch.randn(value.shape, dtype=torch.float64, generator=generator)
        .to(value.dtype)
        .requires_grad_()
        for name, value in memory.initial_state(BATCH).items()
    }
    return x.requires_grad_(), state, torch.rand(BATCH, TIME, generator=generator) < rate


def gradients(memory: Memory, x: Tensor, state: State, y: Tensor, after: State) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)
    loss = (y * weights).sum() + sum(value.square().sum() for value in after.values())
    grads = torch.autograd.grad(
        loss, [x, *state.values(), *memory.parameters()], allow_unused=True, materialize_grads=True
    )
    return (y, *after.values(), *grads)


def torch_layer_on_every_piece(
    memory: Memory, x: Tensor, state: State, start: Tensor
) -> tuple[Tensor, State]:
    """Cut every row at its starts and run torch's own layer on each piece alone."""
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    layer = LAYERS[type(memory.config)](memory.dim, memory.dim, batch_first=True).to(x.dtype)
    weights: dict[str, Tensor] = dict(zip(names, memory.parameters(), strict=True))
    outputs, afters = [], []
    for b in range(x.shape[0]):
        cuts = [0, *[t for t in range(1, x.shape[1]) if start[b, t]], x.shape[1]]
        current_state = [value[None, b : b + 1] for value in state.values()]
        pieces = []
        for begin, end in pairwise(cuts):
            if start[b, begin]:
                current_state = [torch.zeros_like(value) for value in current_state]
            hidden = tuple(current_state) if len(current_state) > 1 else current_state[0]
            y, hidden = torch.func.functional_call(layer, weights, (x[b : b + 1, begin:end], hidden))
            current_state = list(hidden) if isinstance(hidden, tuple) else [hidden]
            pieces.append(y)
        outputs.append(torch.cat(pieces, dim=1))
        afters.append(current_state)
    after = {name: torch.cat(parts, dim=1)[0] for name, *parts in zip(state, *afters, strict=True)}
    return torch.cat(outputs), after


@both
@rates
def test_segment_agrees_with_torch_layer_on_every_piece(config_class, rate):
    memory = build(config_class)
    x, state, start = random_case(memory, rate)
    ours = gradients(memory, x, state, *memory(x, state, start))
    theirs = gradients(memory, x, state, *torch_layer_on_every_piece(memory, x, state, start))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@both
@given(
    cuts=st.sets(st.integers(1, TIME - 1)), rate=st.sampled_from([0.0, 0.1, 0.6]), seed=st.integers(0, 2**16)
)
@settings(max_examples=20, deadline=None)
def test_any_cut_gives_the_same_outputs_state_and_gradients(config_class, cuts, rate, seed):
    memory = build(config_class)
    x, state, start = random_case(memory, rate, seed)
    whole = gradients(memory, x, state, *memory(x, state, start))
    borders = [0, *sorted(cuts), TIME]
    outputs, current_state = [], state
    for begin, end in pairwise(borders):
        y, current_state = memory(x[:, begin:end], current_state, start[:, begin:end])
        outputs.append(y)
    by_pieces = gradients(memory, x, state, torch.cat(outputs, dim=1), current_state)
    torch.testing.assert_close(by_pieces, whole, atol=1e-9, rtol=1e-9)


@both
def test_float32_segment_agrees_with_steps(config_class):
    memory = build(config_class, torch.float32, dim=64)
    x, state, start = random_case(memory, 0.1)
    x = x.detach().float()
    with torch.no_grad():
        y, after = memory(x, state, start)
        by_steps, stepped_after = Memory.segment(memory, x, state, start)
    torch.testing.assert_close(y, by_steps, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after, stepped_after, atol=1e-5, rtol=1e-5)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("weight_scale", [1.0, 1000.0])
def test_nothing_crosses_a_start(config_class, dtype, weight_scale):
    memory = build(config_class, dtype)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.mul_(weight_scale)
    x, state, start = random_case(memory, 0.0)
    x = x.detach().to(dtype).requires_grad_()
    # Row 0 starts once, row 1 twice in a row, row 2 at the end, row 3 never.
    start[0, 7] = start[1, 7] = start[1, 8] = start[2, TIME - 1] = True
    newest = [7, 8, TIME - 1]
    y, after = memory(x, state, start)
    for row, first in enumerate(newest):
        loss = y[row, first:].float().square().sum() + sum(
            value[row].square().sum() for value in after.values()
        )
        grads = torch.autograd.grad(loss, [x, *state.values()], retain_graph=True)
        # Weights this large saturate every gate, and then nothing need reach the inputs.
        assert weight_scale > 1 or grads[0][row, first:].any()
        assert not grads[0][row, :first].any()
        assert not any(grad.any() for grad in grads[1:])

    other_x = x.detach().clone()
    for row, first in enumerate(newest):
        other_x[row, :first] = 100.0
    other = {name: value.detach() * -3 + 1 for name, value in state.items()}
    other_y, other_after = memory(other_x, other, start)
    for row, first in enumerate(newest):
        assert torch.equal(other_y[row, first:], y[row, first:])
        assert all(torch.equal(other_after[name][row], after[name][row]) for name in after)


@both
def test_gradients_agree_with_finite_differences_across_starts(config_class):
    memory = build(config_class, dim=8)
    start = torch.zeros(2, 4, dtype=torch.bool)
    start[0, 2] = start[1, 1] = start[1, 3] = True
    x = torch.randn(2, 4, 8, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in memory.named_parameters()]

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        call = (x, memory.initial_state(2), start)
        y, after = torch.func.functional_call(memory, dict(zip(names, weights, strict=True)), call)
        return torch.cat([y.flatten(), *[value.flatten() for value in after.values()]])

    assert torch.autograd.gradcheck(run, (x, *memory.parameters()), fast_mode=True)


@both
def test_bfloat16_keeps_a_float32_state_and_finite_gradients(config_class):
    memory = build(config_class, torch.bfloat16)
    for rate in (0.0, 0.3):
        x, _, start = random_case(memory, rate)
        x = x.detach().bfloat16().requires_grad_()
        y, after = memory(x, memory.initial_state(BATCH), start)
        by_steps, _ = memory(x[:, :1], memory.initial_state(BATCH), start[:, :1])
        assert y.dtype == by_steps.dtype == torch.bfloat16
        assert {value.dtype for value in after.values()} == {torch.float32}
        memory.zero_grad()
        (y.float().sum() + by_steps.float().sum()).backward()
        for tensor in (x, *memory.parameters()):
            assert tensor.grad is not None
            assert tensor.grad.isfinite().all()
            assert tensor.grad.any()


@pytest.mark.matrix  # law 8, which test_conformance.py tests
@both
def test_step_compiles_and_exports_with_dynamic_batch(config_class):
    memory = build(config_class, torch.float32)
    x, state, start = random_case(memory, 0.5)
    x, state = x.detach().float()[:, :1], {name: value.detach() for name, value in state.items()}
    args = (x, state, start[:, :1])
    fewer = (x[:2], {name: value[:2] for name, value in state.items()}, start[:2, :1])
    batch = torch.export.Dim("batch", min=1)
    shapes = ({0: batch}, {name: {0: batch} for name in state}, {0: batch})
    exported_step = torch.export.export(memory, args, dynamic_shapes=shapes).module()
    torch.compiler.reset()  # dynamo counts recompilations of shared code over a whole process
    compiled_step = torch.compile(memory, fullgraph=True, backend="aot_eager", dynamic=True)
    for case in (args, fewer):
        torch.testing.assert_close(exported_step(*case), memory(*case), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(compiled_step(*case), memory(*case), atol=1e-6, rtol=1e-6)
