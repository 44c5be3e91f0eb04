"""Tests of segments with several chunks: attention context and the memory of recalls."""

from typing import Any

import pytest
import torch

from scrubjay import memory
from scrubjay.memory.contract.stepper import PlainStepper
from scrubjay.memory.parts.grid import ChunkGrid
from scrubjay.memory.titans import mac
from scrubjay.memory.titans.segments import SegmentContext


def build(**fields) -> Any:
    torch.manual_seed(0)
    module: Any = memory.make("titans_mac", **({"dim": 8, "chunk_size": 2, "num_persistent": 1} | fields))
    for layer in module.layers:
        torch.nn.init.normal_(layer.memory.weights[-1], std=0.4)
    return module.double()


@pytest.mark.parametrize("segment_chunks", [2, 4])
@torch.no_grad()
def test_a_step_sees_its_segment_and_no_other(segment_chunks):
    """With a step size of 0, only attention passes information between steps."""
    module, length = build(segment_chunks=segment_chunks), 2 * segment_chunks
    for layer in module.layers:
        layer.memory.gates.weight.zero_()
        layer.memory.gates.bias.view(3, -1)[0] = -1e9
    x = torch.randn(1, 3 * length, 8, dtype=torch.float64)
    y, _ = module(x, module.initial_state(1))
    for t in range(3 * length):
        changed_x = x.clone()
        changed_x[0, t] = x[0, t].flip(-1)
        differs = (module(changed_x, module.initial_state(1))[0] - y).abs().amax(-1)[0] > 1e-9
        end = (t // length + 1) * length
        assert differs.nonzero().flatten().tolist() == list(range(t, end))


@torch.no_grad()
def test_segments_of_one_chunk_are_chunks(monkeypatch):
    """A segment context with one chunk per segment has the same outputs as the chunk context."""
    module = build(segment_chunks=1, chunk_size=3)
    layer = module.layers[0]
    state = {name[:-2]: value for name, value in module.initial_state(2).items() if name != "time"}
    start = torch.rand(2, 20, generator=torch.Generator().manual_seed(1)) < 0.2
    grid = ChunkGrid.from_starts(torch.zeros(2, dtype=torch.int64), start, 3)
    state["before"] = state["anchor"].clone()
    x = torch.randn(2, 20, 8, dtype=torch.float64)
    expected, _, after = layer.segment(x, state, grid)
    monkeypatch.setattr(
        mac, "ChunkContext", lambda attention, x, state, grid: SegmentContext(attention, state, grid, 1)
    )
    layer._use_custom_backward = lambda x, state: False
    layer.names = (*layer.names, "before")
    result, _, result_after = layer.segment(x, state, grid)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    result_after.pop("before")
    assert result_after.keys() == after.keys()
    for name in ("delta", "momentum", "anchor"):
        torch.testing.assert_close(result_after[name], after[name], rtol=1e-12, atol=1e-12)


def test_its_state_is_that_of_a_whole_segment_and_steps_are_taken_one_by_one():
    module = build(segment_chunks=3)
    state = module.initial_state(2)
    assert state["keys_0"].shape == (2, 12, 8)
    assert state["before_0"].shape == state["anchor_0"].shape
    assert "before_0" not in build(segment_chunks=1).initial_state(2)
    assert isinstance(module.stepper(state), PlainStepper)
