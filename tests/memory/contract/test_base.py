"""What is learned beside a layer's weights."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from scrubjay import memory


class Scaled(nn.Module):
    """A weight times a number that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, weight):
        return weight * self.scale


@pytest.mark.parametrize("name", memory.list_memories())
def test_what_a_weight_is_made_of_learns_by_segments_as_by_steps(name):
    torch.manual_seed(0)
    module = memory.make(name, dim=16).double()
    scales = []
    for layer in [layer for layer in module.modules() if isinstance(layer, nn.Linear)]:
        scaled = Scaled().double()
        parametrize.register_parametrization(layer, "weight", scaled)
        scales.append(scaled.scale)
    x, weights = torch.randn(2, 2, 21, 16, dtype=torch.float64)
    start = torch.zeros(2, 21, dtype=torch.bool)
    start[1, 9] = True

    def gradients(y):
        return torch.autograd.grad((y * weights).sum(), scales, allow_unused=True) if scales else ()

    whole, _ = module(x, module.initial_state(2), start)
    state, single = module.initial_state(2), []
    for at in range(21):
        y, state = module(x[:, at : at + 1], state, start[:, at : at + 1])
        single.append(y)
    torch.testing.assert_close(whole, torch.cat(single, dim=1), rtol=1e-7, atol=1e-9)
    for found, wanted in zip(gradients(whole), gradients(torch.cat(single, dim=1)), strict=True):
        assert (found is None) == (wanted is None)
        if found is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
