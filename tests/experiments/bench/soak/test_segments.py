"""Soak of memories in small: it passes, and it finds growth, other outputs and values that are not finite."""

import sys

import pytest
import torch

from scrubjay.experiments.bench.soak import segments
from scrubjay.experiments.bench.soak.segments import Segment, SegmentsSoak, run_memory, run_segments

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SMALL = SegmentsSoak(memories=("gru",), steps=200, dim=8)


@pytest.mark.slow
def test_an_ordinary_memory_passes():
    rows = run_memory(SMALL, "gru")
    assert [row["part"] for row in rows] == ["step", "cut", "whole", "learn"]
    assert not any(row["error"] for row in rows)
    assert all(row["difference"] < 1e-12 for row in rows)


def run_with(monkeypatch, change):
    """Return the errors by part, after `change` of the memory."""

    class OtherSegment(Segment):
        def __init__(self, soak, name):
            super().__init__(soak, name)
            change(self.memory)

    monkeypatch.setattr(segments, "Segment", OtherSegment)
    return {row["part"]: row["error"] for row in run_memory(SMALL, "gru")}


@pytest.mark.slow
def test_growth_is_found(monkeypatch):
    hoard = []

    def change(memory):
        memory.register_forward_hook(lambda *_: hoard.append(torch.ones(2**20)))

    assert run_with(monkeypatch, change)["cut"] == "grows"


@pytest.mark.slow
def test_values_that_are_not_finite_are_found(monkeypatch):
    def change(memory):
        for parameter in memory.parameters():
            parameter.data[...] = float("nan")

    assert run_with(monkeypatch, change)["whole"].startswith("not finite: output")


@pytest.mark.slow
def test_outputs_that_depend_on_the_cuts_are_found(monkeypatch):
    def change(memory):
        memory.register_forward_hook(lambda _, inputs, result: (result[0] + inputs[0].shape[1], result[1]))

    assert run_with(monkeypatch, change)["cut"] == "differs"


@pytest.mark.slow
def test_finished_memories_are_not_run_again(tmp_path):
    rows = run_segments(SMALL, tmp_path)
    assert len(rows) == 4
    assert run_segments(SMALL, tmp_path) == rows
