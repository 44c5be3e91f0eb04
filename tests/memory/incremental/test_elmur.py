"""Stepper of ELMUR: current chunks by position, and cached keys of slots."""

import pytest
import torch

from scrubjay import memory


@pytest.mark.parametrize(
    "sizes",
    [
        {"chunk_size": 1, "num_slots": 1},
        {"chunk_size": 3, "num_slots": 2, "num_layers": 2},
        {"chunk_size": 4, "num_slots": 5, "blend": 0.0, "num_heads": 10},
        {"chunk_size": 5, "num_slots": 3, "blend": 1.0, "num_heads": 1},
    ],
    ids=lambda sizes: "-".join(map(str, sizes.values())),
)
def test_slots_and_own_chunks_are_those_of_steps(sizes, check_stepper):
    module = memory.make("elmur", dim=30, **sizes).double()
    x = torch.randn(3, 60, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    check_stepper(module, x)


def test_a_reset_removes_values_that_are_not_finite(check_forgets):
    check_forgets(memory.make("elmur", dim=16, chunk_size=3, num_slots=2))
