"""Choose the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Raises ValueError on what no distribution can be made of."""

    temperature: float = 0.0
    """Flattens the distribution above 1, sharpens it below; 0 takes the likeliest token always."""
    top_p: float = 0.95
    """Draw among the likeliest tokens that have this much probability together (Holtzman et al. 2020)."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: must be 0 (take the likeliest) or positive")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1")

    def choose(self, logits: Float[Tensor, "vocabulary"], generator: torch.Generator) -> int:
        """Return one token; -inf logits are never drawn."""
        if self.temperature == 0:
            return int(logits.argmax())
        # Shifted first: a small temperature must not overflow.
        probabilities = ((logits - logits.max()).cpu() / self.temperature).softmax(-1)
        if self.top_p < 1:
            ordered, tokens = probabilities.sort(descending=True)
            # A token stays if those before it do not have `top_p` yet: the likeliest always does.
            ordered[ordered.cumsum(-1) - ordered >= self.top_p] = 0
            return int(tokens[torch.multinomial(ordered, 1, generator=generator)])
        return int(torch.multinomial(probabilities, 1, generator=generator))
