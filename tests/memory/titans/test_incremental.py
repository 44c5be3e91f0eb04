"""Tests of the Titans steppers, created at any step of a chunk."""

import pytest
import torch

from scrubjay import memory


def test_a_chunk_may_be_cut_anywhere(check_stepper):
    module = memory.make("titans", dim=16, chunk_size=5, num_heads=2, read_before_write=False).double()
    x = torch.randn(3, 60, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    check_stepper(module, x)


@pytest.mark.parametrize(
    "fields",
    [{"chunk_size": 5}, {"chunk_size": 3, "num_persistent": 0, "num_layers": 2, "attention_heads": 1}],
    ids=str,
)
def test_a_context_may_be_cut_anywhere(check_stepper, fields):
    module = memory.make("titans_mac", dim=16, num_heads=2, **fields).double()
    x = torch.randn(3, 60, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    check_stepper(module, x)


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize("name", ["titans_mag", "titans_mal"])
@pytest.mark.parametrize(
    "fields",
    [{"window": 7}, {"window": 2, "num_persistent": 0, "num_layers": 2, "attention_heads": 1}],
    ids=str,
)
def test_a_window_may_be_cut_anywhere(check_stepper, name, fields):
    module = memory.make(name, dim=16, chunk_size=5, **fields).double()
    x = torch.randn(3, 60, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    check_stepper(module, x)


@pytest.mark.parametrize("name", ["titans_mac", "titans_mag"])
def test_what_attention_of_one_head_keeps_is_a_copy(name):
    module = memory.make(name, dim=16, attention_heads=1)
    state = module(torch.randn(2, 5, 16), module.initial_state(2))[1]
    state_before = {name: value.clone() for name, value in state.items()}
    stepper = module.stepper(state)
    stepper.step(torch.randn(2, 16))
    out = stepper.state()
    out_before = {name: value.clone() for name, value in out.items()}
    stepper.step(torch.randn(2, 16))
    for part in state:
        assert torch.equal(state[part], state_before[part])
        assert torch.equal(out[part], out_before[part])
