"""The sLSTM block compared with its parts, and its first forget gates."""

import torch
from torch.nn import functional

from scrubjay.memory.xlstm.cells import run_reference
from scrubjay.memory.xlstm.slstm import SLSTMBlock


def build():
    """Return a block in float64 with random parameters."""
    torch.manual_seed(0)
    block = SLSTMBlock(8, 2, 3, 10).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return block


@torch.no_grad()
def test_i_and_f_see_the_convolution_and_all_gates_see_the_last_hidden_vector():
    block = build()
    x, start = torch.randn(2, 30, 8).double(), torch.zeros(2, 30, dtype=torch.bool)
    start[0, 11] = True
    state = block.initial_state(2, torch.float64)
    y, after = block.segment(x, state, start)
    h = block.norm(x)
    features, tail = block.convolution(h, state["tail"], start)
    features = functional.silu(features + block.convolution_bias)
    vectors = state["hidden"], state["cell"], state["log_norm"]
    hidden, cell, log_norm = run_reference(
        start, features, h, *vectors, block.weight, block.recurrent, block.bias
    )
    inner = x + block.out_norm(hidden.unflatten(-1, (2, 4)))
    gate, value = block.feed_in(block.feed_norm(inner)).chunk(2, dim=-1)
    torch.testing.assert_close(y, inner + block.feed_out(functional.gelu(gate) * value))
    expected = {"hidden": hidden[:, -1], "cell": cell, "log_norm": log_norm, "tail": tail}
    torch.testing.assert_close(after, expected)


def test_each_head_forgets_at_many_rates_at_first():
    block = SLSTMBlock(16, 2, 4, 21)
    assert block.bias[:, 0].max() == 5
    torch.testing.assert_close(block.bias[:, 0].min(), torch.tensor(-7.0))
    assert (block.bias[:, 0].diff(dim=1) < 0).all()
