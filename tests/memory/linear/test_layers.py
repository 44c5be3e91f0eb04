"""Tests of the default number of heads, and of stacked layers with separate states."""

import pytest
import torch

from scrubjay.memory.linear.flow import FlowConfig
from scrubjay.memory.parts.window import count_heads


@pytest.mark.parametrize(
    ("dim", "heads"), [(8, 1), (22, 1), (64, 1), (128, 2), (192, 3), (256, 4), (134, 1), (130, 5), (146, 1)]
)
def test_heads_are_as_few_as_are_8_to_64_wide_or_one(dim, heads):
    assert count_heads(dim, None) == heads


def test_a_number_of_heads_that_divides_the_width_is_taken():
    assert [count_heads(24, heads) for heads in (1, 2, 3, 24)] == [1, 2, 3, 24]
    with pytest.raises(ValueError, match="num_heads=5 does not divide dim=24"):
        count_heads(24, 5)


def test_layers_are_alike_but_for_their_weights_and_read_one_after_the_other():
    torch.manual_seed(0)
    both = FlowConfig(8, num_layers=2).build()
    alone = [FlowConfig(8).build() for _ in range(2)]
    x = y = torch.randn(2, 7, 8)
    whole, after = both(x, both.initial_state(2))
    for index, single in enumerate(alone):
        single.layers[0].load_state_dict(both.layers[index].state_dict())
        y, state = single(y, single.initial_state(2))
        for name, value in state.items():
            torch.testing.assert_close(after[f"{name[:-2]}_{index}"], value)
    torch.testing.assert_close(whole, y)
