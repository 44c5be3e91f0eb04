"""Checks of the base class on all memories: parametrized weights, and invalid inputs."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from scrubjay import memory


class ScaledWeight(nn.Module):
    """Parametrization of a weight by a learned scale."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, weight):
        return weight * self.scale


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", memory.list_memories())
def test_parametrized_weights_get_the_same_gradients_from_segments_and_steps(name):
    torch.manual_seed(0)
    module = memory.make(name, dim=16).double()
    scales = []
    for layer in [layer for layer in module.modules() if isinstance(layer, nn.Linear)]:
        parametrization = ScaledWeight().double()
        parametrize.register_parametrization(layer, "weight", parametrization)
        scales.append(parametrization.scale)
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
    for actual, expected in zip(gradients(whole), gradients(torch.cat(single, dim=1)), strict=True):
        assert (actual is None) == (expected is None)
        if actual is not None:
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("time", [1, 3])
@pytest.mark.parametrize("name", memory.list_memories())
def test_a_state_of_another_memory_or_width_is_refused(name, time):
    module, wide = memory.make(name, dim=8), memory.make(name, dim=16)
    x, state, other = torch.zeros(2, time, 8), module.initial_state(2), wide.initial_state(2)
    for entry in state:
        less = {key: value for key, value in state.items() if key != entry}
        with pytest.raises(ValueError, match=rf"state has .*, but no '{re.escape(entry)}': start from"):
            module(x, less)
        if other[entry].shape != state[entry].shape:
            actual, expected = (re.escape(str(tuple(value.shape))) for value in (other[entry], state[entry]))
            with pytest.raises(ValueError, match=rf"state '.*' has shape {actual}; expected {expected}"):
                module(x, state | {entry: other[entry]})
            with pytest.raises(ValueError, match=rf"has shape {actual}; expected {expected}"):
                module.stepper(state | {entry: other[entry]}).step(x[:, 0])
    # Other entries, such as those of a policy, are ignored.
    y, after = module(x, state | {"beside": torch.zeros(2, 1)})
    torch.testing.assert_close(y, module(x, state)[0])
    assert after.keys() == state.keys()


@pytest.mark.parametrize("time", [1, 3])
@pytest.mark.parametrize("name", memory.list_memories())
def test_inputs_of_another_dtype_than_the_parameters_are_refused(name, time):
    module = memory.make(name, dim=8)
    x, state = torch.zeros(2, time, 8), module.initial_state(2)
    with pytest.raises(
        ValueError, match=r"dtype torch\.float64, the memory's .* torch\.float32; pass x\.to\("
    ):
        module(x.double(), state)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x.bfloat16(), state)[0].shape == x.shape


@pytest.mark.parametrize(
    "name", [name for name in memory.list_memories() if memory.make(name, dim=8).max_segment]
)
def test_a_long_segment_equals_its_parts(name):
    """A memory may divide a segment; outputs, state and gradients are those of the undivided segment."""
    torch.manual_seed(0)
    module = memory.make(name, dim=8).double()
    x = torch.randn(2, 70, 8, dtype=torch.float64)
    start = torch.zeros(2, 70, dtype=torch.bool)
    start[1, [0, 33, 50]] = True
    results, lengths = [], []
    segment = module.segment

    def record(x, state, start):
        lengths.append(x.shape[1])
        return segment(x, state, start)

    module.segment = record
    for limit in (None, 70, 23):
        module.max_segment = limit
        inputs = x.clone().requires_grad_()
        y, state = module(inputs, module.initial_state(2), start)
        gradients = torch.autograd.grad(y.square().sum(), [inputs, *module.parameters()], allow_unused=True)
        results.append([y, *state.values(), *(value for value in gradients if value is not None)])
    assert lengths == [70, 70, 23, 23, 23]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-9, atol=1e-9)
