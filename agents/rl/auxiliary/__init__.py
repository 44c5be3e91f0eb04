"""Losses beside reward, by one name: what a memory's output must tell, so that it learns what to keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from gymnasium import spaces
from torch import nn

from scrubjay.agents.rl.auxiliary.next_observation import NextObservation
from scrubjay.agents.rl.auxiliary.reconstruction import Redrawing
from scrubjay.agents.rl.auxiliary.verifier import Verifier

Auxiliary = Literal["reconstruction", "next_observation", "verifier"]

HEADS: dict[Auxiliary, Callable[[spaces.Space, spaces.Space, int], nn.Module]] = {
    "reconstruction": Redrawing,
    "next_observation": NextObservation,
    "verifier": Verifier,
}
"""Heads of observation space, action space and width; a loss is of features and their segment."""
