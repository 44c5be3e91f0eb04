import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scrubjay.memory.contract.clock import Clock, shift_window
from scrubjay.memory.parts.window import (
    WindowAttention,
    resolve_heads,
)

DIM, HEADS = 12, 3


def attention(window: int, dtype: torch.dtype = torch.float64) -> WindowAttention:
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        module = WindowAttention(DIM, HEADS, window)
    finally:
        torch.set_default_dtype(usual)
    nn.init.normal_(module.content_bias)
    nn.init.normal_(module.position_bias)
    return module


def sinusoid(distance: int) -> Tensor:
    angles = [distance / 10_000 ** (2 * i / DIM) for i in range(DIM // 2)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)


def naive(module: WindowAttention, x: Tensor, recent: Tensor, age: Tensor, start: Tensor) -> Tensor:
    """Return the output one query at a time, from a list of its episode's inputs so far."""
    width = DIM // HEADS
    rows = []
    for b in range(x.shape[0]):
        num_recent = min(int(age[b]), module.window)
        history = list(recent[b, module.window - num_recent :])
        outputs = []
        for t in range(x.shape[1]):
            if start[b, t]:
                history = []
            history.append(x[b, t])
            visible = list(enumerate(reversed(history)))[: module.window + 1]
            reads = []
            for h in range(HEADS):
                rows_of_head = slice(h * width, (h + 1) * width)
                query = module.query.weight[rows_of_head] @ x[b, t]
                scores = []
                for distance, item in visible:
                    key = module.key.weight[rows_of_head] @ item
                    position = module.position.weight[rows_of_head] @ sinusoid(distance)
                    content_score = (query + module.content_bias[h]) @ key
                    position_score = (query + module.position_bias[h]) @ position
                    scores.append((content_score + position_score) / math.sqrt(width))
                weights = torch.stack(scores).softmax(0)
                values = [module.value.weight[rows_of_head] @ item for _, item in visible]
                reads.append(sum(w * v for w, v in zip(weights, values, strict=True)))
            outputs.append(module.output.weight @ torch.cat(reads))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def stepwise(
    module: WindowAttention, x: Tensor, recent: Tensor, age: Tensor, start: Tensor
) -> tuple[Tensor, ...]:
    outputs = []
    for t in range(x.shape[1]):
        recent = torch.where(start[:, t, None, None], 0, recent)
        age = torch.where(start[:, t], 0, age)
        outputs.append(module.step(x[:, t], recent, age))
        recent, age = torch.cat([recent[:, 1:], x[:, t, None]], dim=1), age + 1
    return torch.stack(outputs, dim=1), recent, age


def random_case(window: int, time: int, rate: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, time, DIM, dtype=torch.float64, generator=generator)
    age = torch.tensor([0, window // 2, window + 5])
    recent = torch.randn(3, window, DIM, dtype=torch.float64, generator=generator)
    recent = torch.where((torch.arange(window) >= window - age[:, None])[..., None], recent, 0)
    start = torch.rand(3, time, generator=generator) < rate
    return x, recent, age, start


cases = given(
    window=st.integers(1, 24),
    time=st.integers(1, 60),
    rate=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 2**16),
)


@pytest.mark.slow
@cases
@settings(max_examples=12, deadline=None)
def test_segment_agrees_with_one_query_at_a_time(window, time, rate, seed):
    module, (x, recent, age, start) = attention(window), random_case(window, min(time, 40), rate, seed)
    with torch.no_grad():
        expected = naive(module, x, recent, age, start)
        torch.testing.assert_close(
            module(x, recent, Clock.from_starts(age, start)), expected, atol=1e-10, rtol=1e-10
        )


@pytest.mark.slow
@cases
@settings(max_examples=25, deadline=None)
def test_steps_agree_with_segment_and_so_do_gradients(window, time, rate, seed):
    module, (x, recent, age, start) = attention(window), random_case(window, time, rate, seed)
    x.requires_grad_()
    recent.requires_grad_()
    y, recent_after, age_after = stepwise(module, x, recent, age, start)
    results = []
    for output, window_after in (
        (y, recent_after),
        (
            module(x, recent, Clock.from_starts(age, start)),
            shift_window(recent, x, Clock.from_starts(age, start)),
        ),
    ):
        loss = (output * torch.arange(DIM)).sum() + window_after.square().sum()
        grads = torch.autograd.grad(loss, [x, recent, *module.parameters()])
        results.append((output, window_after, *grads))
    torch.testing.assert_close(results[1], results[0], atol=1e-10, rtol=1e-10)
    assert torch.equal(Clock.from_starts(age, start).age_after, age_after)


def test_float32_steps_agree_with_segment():
    module = attention(9, torch.float32)
    x, recent, age, start = random_case(9, 100, 0.05, 1)
    x, recent = x.float(), recent.float()
    expected = stepwise(module, x, recent, age, start)[0]
    torch.testing.assert_close(
        module(x, recent, Clock.from_starts(age, start)), expected, atol=1e-5, rtol=1e-5
    )


def test_position_term_alone_decides_when_queries_and_contents_are_blind():
    module = attention(4)
    with torch.no_grad():
        module.query.weight.zero_()
        module.key.weight.zero_()
        module.value.weight.copy_(torch.eye(DIM))
        module.output.weight.copy_(torch.eye(DIM))
    x, recent, age, start = random_case(4, 30, 0.0, 2)
    y = module(x, recent, Clock.from_starts(age, start))
    for h in range(HEADS):
        head = slice(h * DIM // HEADS, (h + 1) * DIM // HEADS)
        scores = [
            module.position_bias[h] @ module.position.weight[head] @ sinusoid(d) / math.sqrt(DIM // HEADS)
            for d in range(5)
        ]
        weights = torch.stack(scores).softmax(0)
        expected = sum(weights[d] * x[:, 10 - d, head] for d in range(5))
        torch.testing.assert_close(y[:, 10, head], expected, atol=1e-12, rtol=0)


def test_distances_are_rounded_only_at_the_end():
    expected = torch.stack([sinusoid(distance) for distance in reversed(range(2000))]).float()
    torch.testing.assert_close(attention(1999, torch.float32).distances, expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("window", [3, 40])
def test_cost_is_linear_in_time(window):
    module = attention(window, torch.float32)

    def flops(time: int) -> int:
        x, recent, age, start = random_case(window, time, 0.02, 0)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(x.float(), recent.float(), Clock.from_starts(age, start))
        return counter.get_total_flops()

    assert flops(1280) < 2.05 * flops(640)


def test_window_after_a_segment_is_that_of_a_fresh_state_fed_from_the_start():
    x, recent, age, start = random_case(6, 10, 0.0, 3)
    start[:, 7] = True
    after = shift_window(recent, x, Clock.from_starts(age, start))
    fresh_clock = Clock.from_starts(torch.zeros_like(age), start[:, 7:])
    fresh = shift_window(torch.zeros_like(recent), x[:, 7:], fresh_clock)
    assert torch.equal(after, fresh)
    assert torch.equal(after[:, :3], torch.zeros(3, 3, DIM, dtype=torch.float64))
    assert torch.equal(after[:, 3:], x[:, 7:])


def test_a_step_ignores_the_values_in_empty_slots():
    module = attention(5)
    x, recent, age, _ = random_case(5, 1, 0.0, 4)
    empty = (torch.arange(5) < 5 - age[:, None])[..., None]
    with_nan = torch.where(empty, float("nan"), recent)
    assert torch.equal(module.step(x[:, 0], with_nan, age), module.step(x[:, 0], recent, age))


@pytest.mark.matrix  # memories built on it compile and export in test_conformance.py
def test_step_compiles_and_exports_with_dynamic_batch():
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention(5)

        def forward(self, x: Tensor, recent: Tensor, age: Tensor) -> Tensor:
            return self.attention.step(x, recent, age)

    module = Step()
    x, recent, age, _ = random_case(5, 1, 0.0, 5)
    args = (x[:, 0], recent, age)
    fewer = tuple(a[:2] for a in args)
    batch = torch.export.Dim("batch", min=1)
    exported_step = torch.export.export(
        module, args, dynamic_shapes=({0: batch}, {0: batch}, {0: batch})
    ).module()
    torch.compiler.reset()  # dynamo counts recompilations of shared code over a whole process
    compiled_step = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for case in (args, fewer):
        torch.testing.assert_close(exported_step(*case), module(*case), atol=1e-12, rtol=0)
        torch.testing.assert_close(compiled_step(*case), module(*case), atol=1e-12, rtol=0)


def test_heads_by_default_are_the_largest_divisor_up_to_four():
    assert [resolve_heads(dim, None) for dim in (8, 10, 14, 18, 22, 64)] == [4, 2, 2, 3, 2, 4]
    assert resolve_heads(64, 16) == 16


@pytest.mark.parametrize("num_heads", [0, -1, 5, 24])
def test_heads_that_do_not_divide_are_refused_with_the_choices(num_heads):
    with pytest.raises(ValueError, match=rf"num_heads={num_heads} .*dim=12; choose from 1, 2, 3, 4, 6, 12"):
        resolve_heads(12, num_heads)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="window=0"):
        WindowAttention(8, 2, 0)
    with pytest.raises(ValueError, match="dim=9"):
        WindowAttention(9, 3, 4)


@pytest.mark.parametrize("num_heads", [None, 3])
def test_a_width_may_be_any_number(num_heads):
    """A width may be mistyped or from an untrusted file, so the search for divisors must stay short."""
    if num_heads is None:
        assert resolve_heads(10**30, None) == 4
    else:
        with pytest.raises(ValueError, match="num_heads=3 does not divide"):
            resolve_heads(10**30, num_heads)
