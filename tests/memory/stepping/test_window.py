"""Steps in a ring: those of the attention itself, with episodes that begin anywhere."""

import pytest
import torch

from scrubjay.memory.parts.window import WindowAttention, WindowOptions
from scrubjay.memory.stepping.window import Ring, WindowSteps


@pytest.mark.parametrize("positions", ["xl", "music", "only"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@torch.no_grad()
def test_a_ring_goes_round_as_windows_are_shifted(positions, activation):
    torch.manual_seed(0)
    options = WindowOptions(positions=positions, activation=activation)
    attention = WindowAttention(12, 3, 5, options).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    age, recent = torch.tensor([0, 2, 9]), torch.randn(3, 5, 12, dtype=torch.float64)
    recent[torch.arange(5) < 5 - age[:, None]] = 0
    ring = Ring(5, age, recent.dtype)
    steps = WindowSteps(attention, ring, recent)
    for _ in range(20):
        x, born = torch.randn(3, 12, dtype=torch.float64), torch.rand(3) < 0.15
        recent = torch.where(born[:, None, None], 0, recent)
        age = torch.where(born, 0, age)
        ring.advance(born.nonzero()[:, 0] if born.any() else None)
        read = steps.step(x.new_zeros(()), x, born.nonzero()[:, 0] if born.any() else None)
        torch.testing.assert_close(read, attention.step(x, recent, age), atol=1e-12, rtol=0)
        recent, age = torch.cat([recent[:, 1:], x[:, None]], dim=1), age + 1
        torch.testing.assert_close(steps.recent(5), recent, atol=0, rtol=0)
