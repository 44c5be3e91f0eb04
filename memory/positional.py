"""No memory but for the time: where in its episode each step stands.

Sinusoids of a step's number (Vaswani et al. 2017, arXiv 1706.03762, section 3.5) are added to each input,
which then passes the layer of `none`. With it alone a policy is POPGym's PosMLP (Morad et al. 2023, arXiv
2303.01859).

Before another memory of a `stack` it tells that one the time, as `PolicyConfig.clock` does. Attention weighs
what it sees to a sum of one: it finds the share of the steps that it asks for, and only with their number it
can count them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scrubjay.memory.contract.base import State
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.none import NoMemory, NoMemoryConfig
from scrubjay.memory.parts.sinusoids import sinusoids


@dataclass(frozen=True)
class PositionalConfig(NoMemoryConfig):
    """Sizes of `Positional`."""

    def build(self) -> Positional:
        """Return a layer that knows the time, and remembers nothing else."""
        return Positional(self)


class Positional(NoMemory):
    """One residual feed-forward layer of the input and the time.

    State: `time [batch]`, steps since the episode began.
    """

    def __init__(self, config: PositionalConfig) -> None:
        super().__init__(config)
        self.told = nn.Linear(self.dim, self.dim, bias=False)
        # Sinusoids are of mean square 1/2; the time is to be as loud as what an encoder says.
        nn.init.orthogonal_(self.told.weight, gain=2.0)

    def initial_state(self, batch_size: int) -> State:
        """Return the time at birth."""
        return {"time": torch.zeros(batch_size, dtype=torch.int64, device=self.device)}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the layer's output, and the time after it."""
        y, _ = super().step(x + self._tell(state["time"]), {})
        return y, {"time": state["time"] + 1}

    def segment(self, x: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """Return every step's output at once."""
        clock = Clock.of(state["time"], start)
        y, _ = super().segment(x + self._tell(clock.step), {}, start)
        return y, {"time": clock.after}

    def _tell(self, time: Tensor) -> Tensor:
        return self.told(sinusoids(time, self.dim).to(self.told.weight.dtype))
