"""HCAM in place: chunks of equal summaries are chosen as by its steps."""

import torch

from scrubjay import memory


@torch.no_grad()
def test_of_equal_summaries_the_earlier_is_read():
    module = memory.make("hcam", dim=16, chunk_size=2, num_chunks=6, top_k=2).double()
    x = torch.randn(3, 60, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    # Every second chunk is the one before backwards: another content, the same mean.
    x = torch.cat([x[:, :2], x[:, :2].flip(1)], dim=1).repeat(1, 15, 1)
    state = module.initial_state(3)
    stepper = module.stepper(state)
    for t in range(60):
        expected, state = module.step(x[:, t], state)
        torch.testing.assert_close(stepper.step(x[:, t]), expected, rtol=0, atol=1e-10)
        if t % 7 == 3:
            stepper = module.stepper(stepper.state())
    for key, value in stepper.state().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=1e-10)
