"""Stepper of Routing: ring buffers shared by heads, and resets of rows."""

import pytest
import torch

from scrubjay import memory


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize(("capacity", "window"), [(1, 1), (3, 5)])
def test_rings_and_window_are_those_of_steps(heads, capacity, window, check_stepper):
    sizes = {"num_centroids": 3, "capacity": capacity, "window": window, "num_layers": 2}
    module = memory.make("routing", dim=16, num_heads=heads, **sizes).double()
    x = torch.randn(3, 60, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    check_stepper(module, x)


def test_a_reset_removes_values_that_are_not_finite(check_forgets):
    check_forgets(memory.make("routing", dim=16, num_centroids=2, capacity=3, window=2), harm_from=6)
