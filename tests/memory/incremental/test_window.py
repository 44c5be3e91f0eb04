"""The window stepper against the attention's own steps, with random episode starts."""

import pytest
import torch

from scrubjay.memory.incremental.window import WindowRingBuffer, WindowStepper
from scrubjay.memory.parts.window import WindowAttention, WindowOptions


@pytest.mark.parametrize("positions", ["xl", "music", "only"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@torch.no_grad()
def test_the_ring_buffer_equals_a_shifted_window(positions, activation):
    torch.manual_seed(0)
    options = WindowOptions(positions=positions, activation=activation)
    attention = WindowAttention(12, 3, 5, options).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    age, recent = torch.tensor([0, 2, 9]), torch.randn(3, 5, 12, dtype=torch.float64)
    recent[torch.arange(5) < 5 - age[:, None]] = 0
    ring = WindowRingBuffer(5, age, recent.dtype)
    steps = WindowStepper(attention, ring, recent)
    for _ in range(20):
        x, starts = torch.randn(3, 12, dtype=torch.float64), torch.rand(3) < 0.15
        recent = torch.where(starts[:, None, None], 0, recent)
        age = torch.where(starts, 0, age)
        ring.advance(starts.nonzero()[:, 0] if starts.any() else None)
        read = steps.step(x.new_zeros(()), x, starts.nonzero()[:, 0] if starts.any() else None)
        torch.testing.assert_close(read, attention.step(x, recent, age), atol=1e-12, rtol=0)
        recent, age = torch.cat([recent[:, 1:], x[:, None]], dim=1), age + 1
        torch.testing.assert_close(steps.recent(5), recent, atol=0, rtol=0)
