"""Steppers of memories with selected chunks: ring buffers, selection by head, current chunks by position."""

from typing import Any

import pytest
import torch

from scrubjay import memory
from scrubjay.memory.contract.stepper import PlainStepper
from scrubjay.memory.sparse.chunked import ChunkedLayer
from scrubjay.memory.sparse.nsa import NSALayer

NAMES = ("landmark", "moba", "nsa")


@pytest.mark.one_in(4)
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
    """Includes heads of an odd width, whose last coordinate is not rotated."""
    module = memory.make(name, dim=30, **sizes).double()
    x = torch.randn(3, 60, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    check_stepper(module, x)


@pytest.mark.parametrize("name", NAMES)
def test_of_chunks_that_are_alike_any_is_as_good(name, check_stepper):
    """Constant observations give equal chunks and scores."""
    module = memory.make(name, dim=16, chunk_size=2, num_chunks=9, top_k=2).double()
    check_stepper(module, torch.ones(2, 50, 16, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_a_reset_removes_values_that_are_not_finite(name, check_forgets):
    check_forgets(memory.make(name, dim=16, chunk_size=3, num_chunks=4, top_k=2))


class Nearer(ChunkedLayer):
    combine = "joint"

    def summarise(self, keys, values, landmarks):
        return keys.mean(dim=2), landmarks

    def mix(self, x, own, query, chunks):
        return own[0]


class WithoutRotation(NSALayer):
    def rotate(self, x, place):
        return x


@pytest.mark.parametrize(("name", "kind"), [("landmark", Nearer), ("nsa", WithoutRotation)])
@pytest.mark.parametrize("which", [0, 1])
def test_a_layer_that_reads_otherwise_takes_its_own_steps(name, kind, which, check_stepper):
    """One modified layer is enough."""
    module: Any = memory.make(name, dim=16, num_layers=2)
    module.layers[which] = kind(module.config)
    assert isinstance(module.stepper(module.initial_state(2)), PlainStepper)
    check_stepper(module.double(), torch.randn(2, 40, 16, dtype=torch.float64))
