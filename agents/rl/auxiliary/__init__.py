"""Auxiliary losses by name: prediction tasks on the memory's output that teach it what to retain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from gymnasium import spaces
from torch import nn

from scrubjay.agents.rl.auxiliary.next_observation import NextObservation
from scrubjay.agents.rl.auxiliary.reconstruction import SegmentReconstruction
from scrubjay.agents.rl.auxiliary.verifier import Verifier

Auxiliary = Literal["reconstruction", "next_observation", "verifier"]

HEADS: dict[Auxiliary, Callable[[spaces.Space, spaces.Space, int], nn.Module]] = {
    "reconstruction": SegmentReconstruction,
    "next_observation": NextObservation,
    "verifier": Verifier,
}
"""Head classes by name, built from observation space, action space and feature width.

A head maps features and their segment to a scalar loss."""
