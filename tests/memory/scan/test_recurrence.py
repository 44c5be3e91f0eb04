"""Tests of a user-defined `ScanMemory`: laws, steps and starts."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from scrubjay.memory import MemoryConfig, check_memory
from scrubjay.memory.contract.stepper import PlainStepper
from scrubjay.memory.scan.recurrence import ScanMemory, ScanUpdate, advance


@dataclass(frozen=True)
class TurningConfig(MemoryConfig):
    pairs: bool = True
    steady: bool = True

    def build(self):
        return Turning(self)


class Turning(ScanMemory[torch.Tensor]):
    """Memory whose channels add and return the raw input; with `pairs`, a channel takes two numbers."""

    def __init__(self, config):
        shape = (config.dim // 2, 2) if config.pairs else (config.dim,)
        super().__init__(config, shape, config.pairs)
        self.steady = config.steady
        self.decay = nn.Parameter(0.5 * torch.rand(shape))

    def fold_weights(self):
        return self.decay.tanh()

    def write(self, x, weights):
        value = x.to(self.state_dtype).unflatten(-1, self.shape)
        decay = weights.to(self.state_dtype)
        return ScanUpdate(decay if self.steady else decay * value.sigmoid(), value, (x,))

    def read(self, hidden, read_inputs, weights):
        return hidden.flatten(-len(self.shape)).to(read_inputs[0].dtype)


KINDS = [TurningConfig(10, pairs, steady) for pairs in (False, True) for steady in (False, True)]


@pytest.mark.one_in(4, rest="slow")
@pytest.mark.parametrize("config", KINDS, ids=str)
def test_numbers_and_pairs_with_and_without_a_decay_for_all_steps_obey_the_laws(config):
    torch.manual_seed(0)
    check_memory(config.build(), autocast=True)


@pytest.mark.parametrize("config", KINDS, ids=str)
def test_outputs_that_are_the_state_itself_are_not_written_over(config, check_stepper):
    module = config.build().double()
    x = torch.randn(4, 20, 10, dtype=torch.float64)
    check_stepper(module, x)
    stepper = module.stepper(module.initial_state(4))
    assert not isinstance(stepper, PlainStepper)
    first = stepper.step(x[:, 0])
    copy = first.clone()
    stepper.step(x[:, 1], torch.tensor([True, False, False, True]))
    assert torch.equal(first, copy)


def test_a_step_of_pairs_is_that_of_complex_numbers():
    decay, value, hidden = torch.randn(3, 5, 4, 2, dtype=torch.float64)
    complex_numbers = (torch.view_as_complex(x) for x in (value, decay, hidden))
    expected = torch.view_as_real(torch.addcmul(*complex_numbers))
    torch.testing.assert_close(advance(decay, value, hidden, pairs=True), expected)
    torch.testing.assert_close(advance(decay, value, hidden, pairs=False), value + decay * hidden)
