"""Expected attention: keep the tokens to which future queries will attend.

Devoto et al. 2025 (arXiv 2510.00636, section 3): queries before their rotation are close to normally
distributed. Their mean and covariance are measured on the prompt. They are rotated to the next positions, as
the mean over `future` positions. The expected weight of a key k is exp(mean . k + k . covariance . k / 2).
The score is this weight, normalized over the tokens, times the norm of the value.

Differences from the authors' code: the normalization covers all tokens, theirs leaves out the sinks; the last
`window` tokens are always kept; in generation the last `window` queries are measured. A prompt that is read
in blocks is compressed after each block by the queries of this block.

Memory: the budget for each key head; generation adds up to `window - 1` tokens and the last `window` queries.
Use it if the question comes after the text was read. The model needs rotary positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scrubjay.memory.context.policies.base import check_minimums
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.rotary import PairedRotation, Rotary
from scrubjay.memory.context.policies.scored.base import Queries, ScoredPolicy


@dataclass(frozen=True)
class ExpectedAttentionPolicy(ScoredPolicy):
    """Keep the tokens to which normally distributed queries at the next positions attend most."""

    future: int = 512
    """Number of next positions over which the rotation of queries is averaged."""
    epsilon: float = 0.0
    """Weight that every token gets before the product with the norm of its value."""

    query_aware: ClassVar[bool] = False
    queries: ClassVar[Queries] = "call"
    rotates_queries: ClassVar[bool] = False
    reads_rotary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimums(self, future=1)
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon={self.epsilon}: must not be negative")

    def score(
        self,
        keys: Tensor,
        values: Tensor,
        queries: Tensor,
        *,
        scoring: Scoring,
        rotary: Rotary,
        position: int,
        **_: object,
    ) -> Tensor:
        """Return the expected attention weight of each token times the norm of its value."""
        groups = keys.shape[1]
        # The first queries are outliers, as their keys are sinks.
        queries = queries[:, :, min(self.num_sinks, queries.shape[2] - 1) :].float()
        mean = queries.mean(dim=2, keepdim=True)
        offsets = queries - mean
        covariance = offsets.mT @ offsets / queries.shape[2]
        places = torch.arange(position, position + self.future, device=keys.device)
        angles = rotary.compute_angles(places[None])[0]
        back = torch.polar(torch.ones_like(angles), -angles).mean(dim=0)
        # The product with a rotated query is the product of the query with the key rotated back.
        keys = PairedRotation(back.to(torch.complex64), rotary.layout).interleave_and_rotate(keys.float())
        keys = keys.repeat_interleave(queries.shape[1] // groups, dim=1)
        logits = (mean @ keys.mT).squeeze(2) * scoring.scale
        logits = logits + ((keys @ covariance) * keys).sum(dim=-1) * scoring.scale**2 / 2
        weights = torch.softmax(logits, dim=-1).unflatten(1, (groups, -1)).mean(dim=2)
        return (weights + self.epsilon) * values.float().norm(dim=-1)
