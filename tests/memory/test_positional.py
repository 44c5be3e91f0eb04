"""The positional memory has the time of the episode and nothing else, also in a stack."""

import torch

from scrubjay import memory
from scrubjay.memory.parts.layers import sinusoids
from scrubjay.memory.positional import PositionalConfig


def test_an_output_is_that_of_none_with_time_inputs():
    module = PositionalConfig(16).build()
    x = torch.randn(2, 9, 16)
    start = torch.zeros(2, 9, dtype=torch.bool)
    start[1, 4] = True
    y, state = module(x, {"time": torch.tensor([0, 10**6])}, start)
    time = torch.stack([torch.arange(9), torch.tensor([10**6 + t for t in range(4)] + [0, 1, 2, 3, 4])])
    with_time = x + module.time_projection(sinusoids(time, 16).float())
    torch.testing.assert_close(y, with_time + module.feed_forward(with_time))
    assert state["time"].tolist() == [9, 5]


def test_it_does_not_depend_on_earlier_inputs():
    module = memory.make("positional", dim=16)
    x = torch.randn(1, 6, 16, requires_grad=True)
    y, _ = module(x, module.initial_state(1))
    y[:, -1].sum().backward()
    assert x.grad is not None
    assert not x.grad[:, :-1].any()
    assert x.grad[:, -1].any()


def test_in_a_stack_it_lets_attention_count():
    """Attention over equal steps gives the same output for any number of them, so counting needs the time."""
    torch.manual_seed(0)
    alone = memory.make_config("gtrxl", dim=16)
    with_time = memory.make_config(
        "stack", dim=16, parts=(memory.make_config("positional", dim=16), alone), residual=False
    )
    x = torch.randn(1, 1, 16).expand(1, 12, 16)

    def changes(config):
        module = config.build()
        y, _ = module(x, module.initial_state(1))
        return (y[0, 1:] - y[0, :-1]).abs().amax(dim=-1)

    assert changes(alone).max() < 1e-5
    assert changes(with_time).min() > 1e-3
