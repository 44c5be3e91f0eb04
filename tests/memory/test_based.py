"""Context of a stack of linear attention and a window, and its registration."""

from typing import Any

import pytest
import torch

from scrubjay import memory
from scrubjay.memory.based import BasedConfig
from scrubjay.memory.stack import StackConfig


@torch.no_grad()
def test_a_step_outside_the_window_is_read_by_the_linear_part_alone():
    torch.manual_seed(0)
    module = BasedConfig(16, window=4).build().double()
    assert [type(part).__name__ for part in module.parts] == ["TaylorMemory", "Sink"]
    x = torch.randn(1, 40, 16, dtype=torch.float64)
    other = x.clone()
    other[0, 0] = x[0, 0].flip(-1)
    apart = (module(x, module.initial_state(1))[0] - module(other, module.initial_state(1))[0]).abs()
    assert apart[0, 39].max() > 1e-6
    window: Any = module.parts[1]
    apart = (window(x, window.initial_state(1))[0] - window(other, window.initial_state(1))[0]).abs()
    assert apart[0, 39].max() == 0


def test_its_config_is_its_own_and_its_parts_are_a_stack_without_norms_between():
    config = memory.make_config("based", dim=16, num_layers=2, window=8, num_sinks=1)
    assert isinstance(config, BasedConfig)
    module = config.build()
    assert memory.name_of(module.config) == "based"
    parts = config.stack()
    assert isinstance(parts, StackConfig)
    assert not parts.residual
    assert [type(part).__name__ for part in parts.parts] == ["TaylorConfig", "SinkConfig"] * 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"feature_width": 0}, "feature_width=0: must be at least 1"),
        ({"num_heads": 3}, "num_heads=3 does not divide dim=16"),
        ({"num_layers": 0}, "num_layers=0: must be at least 1"),
        ({"window": 1}, "window=1: must be at least 2, because the window includes"),
        ({"num_sinks": -1}, "num_sinks=-1: must not be negative"),
        ({"feed_forward_ratio": 0}, "feed_forward_ratio=0: must be at least 1"),
    ],
)
def test_sizes_that_cannot_work_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        BasedConfig(16, **wrong)
