"""Routing in place: rings that go round, heads that share them, and rows that begin anew in them."""

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


def test_what_was_not_finite_is_forgotten(check_forgets):
    check_forgets(memory.make("routing", dim=16, num_centroids=2, capacity=3, window=2), harm_from=6)
