"""Titans in place: a stepper may be made in the middle of a chunk."""

import torch

from scrubjay import memory


@torch.no_grad()
def test_a_chunk_may_be_cut_anywhere():
    module = memory.make("titans", dim=16, chunk_size=5, num_heads=2, read_before_write=False).double()
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
