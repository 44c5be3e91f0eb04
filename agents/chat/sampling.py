"""Choose the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Sampling distribution of the next token. Raises ValueError on invalid values."""

    temperature: float = 0.0
    """Softmax temperature; 0 selects the most likely token (greedy decoding)."""
    top_p: float = 0.95
    """Nucleus sampling: total probability of the most likely tokens to sample from (Holtzman et al. 2020)."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: must be 0 (greedy) or positive and finite")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1")

    def choose(self, logits: Float[Tensor, "vocabulary"], generator: torch.Generator) -> int:
        """Return one token; a token with logit -inf is never sampled."""
        if self.temperature == 0:
            return int(logits.argmax())
        # Subtract the maximum first: a small temperature must not overflow.
        probabilities = ((logits - logits.max()).cpu() / self.temperature).softmax(-1)
        if self.top_p < 1:
            sorted_probabilities, tokens = probabilities.sort(descending=True)
            # A token stays if the tokens before it sum to less than `top_p`; the most likely one always
            # stays.
            sorted_probabilities[sorted_probabilities.cumsum(-1) - sorted_probabilities >= self.top_p] = 0
            return int(tokens[torch.multinomial(sorted_probabilities, 1, generator=generator)])
        return int(torch.multinomial(probabilities, 1, generator=generator))
