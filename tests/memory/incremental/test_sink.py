"""Stepper of Sink: sinks are preserved when a stepper is recreated from a state."""

import torch

from scrubjay import memory


def test_sinks_and_window_are_those_of_steps(check_stepper):
    module = memory.make("sink", dim=16, num_sinks=3, window=5, sink_logit=True).double()
    x = torch.randn(3, 60, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    check_stepper(module, x)
