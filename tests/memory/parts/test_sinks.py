"""Slot contents of a window with sinks against slots that are filled step by step."""

import pytest
import torch

from scrubjay.kernels import sink_slot
from scrubjay.memory.parts.sinks import compute_slot_steps


@pytest.mark.parametrize(("num_sinks", "window"), [(0, 1), (0, 5), (1, 1), (4, 3), (3, 8)])
def test_slots_hold_what_was_written_last(num_sinks, window):
    slots = torch.full((num_sinks + window,), -1)
    expected = [slots.clone()]
    for step in range(3 * (num_sinks + window)):
        slots[sink_slot(torch.tensor([step]), num_sinks, window)] = step
        expected.append(slots.clone())
    # One row per age.
    assert torch.equal(
        compute_slot_steps(torch.arange(len(expected)), num_sinks, window), torch.stack(expected)
    )


def test_slots_hold_the_first_steps_and_the_last():
    for count in range(40):
        slot_steps = compute_slot_steps(torch.tensor([count]), 3, 5)[0]
        steps = {step for step in range(count) if step < 3 or step >= count - 5}
        assert sorted(slot_steps[slot_steps >= 0].tolist()) == sorted(steps)
