"""Sink in place: what sinks hold survives steppers made anew."""

import torch

from scrubjay import memory


@torch.no_grad()
def test_sinks_and_window_are_those_of_steps():
    module = memory.make("sink", dim=16, num_sinks=3, window=5, sink_logit=True).double()
    x = torch.randn(3, 60, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    state = module.initial_state(3)
    stepper = module.stepper(state)
    for t in range(60):
        expected, state = module.step(x[:, t], state)
        torch.testing.assert_close(stepper.step(x[:, t]), expected, rtol=0, atol=1e-10)
        if t % 7 == 3:
            stepper = module.stepper(stepper.state())
    for key, value in stepper.state().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=1e-10)
