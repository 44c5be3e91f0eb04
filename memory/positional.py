"""Baseline whose only memory is the time: the number of each step in its episode.

Sinusoids of the step number (Vaswani et al. 2017, arXiv 1706.03762, section 3.5) are projected and added to
each input. The sum then passes the feed-forward layer of the memory `none`. A policy with only this memory is
the PosMLP of POPGym (Morad et al. 2023, arXiv 2303.01859).

In a `stack`, this memory provides the time to the next memory, as `PolicyConfig.clock` does. Attention
weights sum to one, so attention can compute the fraction of steps that match a query. To compute the number
of these steps, attention also needs the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scrubjay.memory.contract.base import SAME_AS_PAPER, State
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.none import NoMemory, NoMemoryConfig
from scrubjay.memory.parts.layers import sinusoids


@dataclass(frozen=True)
class PositionalConfig(NoMemoryConfig):
    """Sizes of `Positional`."""

    paper_values = SAME_AS_PAPER

    def build(self) -> Positional:
        """Return a newly initialized layer with time inputs."""
        return Positional(self)


class Positional(NoMemory):
    """One residual feed-forward layer, applied to the input plus an embedding of the time.

    State: `time [batch]`, steps since the start of the episode.
    """

    def __init__(self, config: PositionalConfig) -> None:
        super().__init__(config)
        self.time_projection = nn.Linear(self.dim, self.dim, bias=False)
        # Sinusoids have mean square 1/2; the gain scales the time to the magnitude of an encoder's outputs.
        nn.init.orthogonal_(self.time_projection.weight, gain=2.0)

    def initial_state(self, batch_size: int) -> State:
        """Return time 0 for every row."""
        return {"time": torch.zeros(batch_size, dtype=torch.int64, device=self.device)}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the layer's output and the next state."""
        y, _ = super().step(x + self._embed_time(state["time"]), {})
        return y, {"time": state["time"] + 1}

    def segment(self, x: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """Return the outputs of all steps, and the state after the last step."""
        clock = Clock.from_starts(state["time"], start)
        y, _ = super().segment(x + self._embed_time(clock.step), {}, start)
        return y, {"time": clock.age_after}

    def _embed_time(self, time: Tensor) -> Tensor:
        return self.time_projection(sinusoids(time, self.dim).to(self.time_projection.weight.dtype))
