"""Chosen chunks in place: stores go round, heads choose apart, own chunks are written by their places."""

from typing import Any

import pytest
import torch

from scrubjay import memory
from scrubjay.memory.chosen.chunked import ChunkedLayer
from scrubjay.memory.chosen.nsa import NSALayer
from scrubjay.memory.contract.stepper import PlainStepper

NAMES = ("landmark", "moba", "nsa")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "sizes",
    [
        {"chunk_size": 1, "num_chunks": 1, "top_k": 1},
        {"chunk_size": 3, "num_chunks": 4, "top_k": 2, "num_layers": 2},
        {"chunk_size": 2, "num_chunks": 7, "top_k": 3, "num_heads": 3},
        {"chunk_size": 4, "num_chunks": 3, "top_k": 9, "num_heads": 1},
        {"chunk_size": 5, "num_chunks": 6, "top_k": 1, "num_heads": 10},
    ],
    ids=lambda sizes: "-".join(map(str, sizes.values())),
)
def test_stores_and_own_chunks_are_those_of_steps(name, sizes, check_stepper):
    """Heads of a width that cannot be halved, too, whose last coordinate stands still."""
    module = memory.make(name, dim=30, **sizes).double()
    x = torch.randn(3, 60, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    check_stepper(module, x)


@pytest.mark.parametrize("name", NAMES)
def test_of_chunks_that_are_alike_any_is_as_good(name, check_stepper):
    """An observation that lasts makes all chunks equal, and their scores."""
    module = memory.make(name, dim=16, chunk_size=2, num_chunks=9, top_k=2).double()
    check_stepper(module, torch.ones(2, 50, 16, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_what_was_not_finite_is_forgotten(name, check_forgets):
    check_forgets(memory.make(name, dim=16, chunk_size=3, num_chunks=4, top_k=2))


class Nearer(ChunkedLayer):
    combine = "joint"

    def summarise(self, keys, values, landmarks):
        return keys.mean(dim=2), landmarks

    def mix(self, x, own, query, stored):
        return own[0]


class Unturned(NSALayer):
    def turned(self, x, place):
        return x


@pytest.mark.parametrize(("name", "kind"), [("landmark", Nearer), ("nsa", Unturned)])
@pytest.mark.parametrize("which", [0, 1])
def test_a_layer_that_reads_otherwise_takes_its_own_steps(name, kind, which, check_stepper):
    """Be it one of many."""
    module: Any = memory.make(name, dim=16, num_layers=2)
    module.layers[which] = kind(module.config)
    assert isinstance(module.stepper(module.initial_state(2)), PlainStepper)
    check_stepper(module.double(), torch.randn(2, 40, 16, dtype=torch.float64))
