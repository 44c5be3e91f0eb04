"""TOVA: drop the token to which the last token attends least.

Oren et al. 2024 (arXiv 2401.06104, section 3.2): the score of a token is its attention weight for the last
token, as the mean over all heads. All heads of a layer keep the same tokens. After a prompt the tokens with
the largest weights remain, and each generated token displaces one.

Differences from the authors' code: the last token is always kept, and a larger `window` evicts several tokens
at once, less often.

Memory: the budget for each key head; generation adds up to `window - 1` tokens. Use it for long generated
texts that depend on their own last part. It computes a score at every token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.scored.base import Queries, ScoredPolicy
from scrubjay.memory.context.policies.scored.snapkv import window_attention


@dataclass(frozen=True)
class TOVAPolicy(ScoredPolicy):
    """Keep the tokens to which the last token attends most, as the mean over the heads."""

    window: int = 1
    """Number of last tokens that are always kept. A larger value evicts less often in generation."""
    num_sinks: int = 0
    """Number of first tokens that are always kept. The paper has none."""

    queries: ClassVar[Queries] = "window"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads != "equal":
            raise ValueError(
                f"heads={self.heads!r}: must be 'equal', since all heads of a layer keep the same tokens"
            )

    def score(
        self, keys: Tensor, values: Tensor, queries: Tensor, *, scoring: Scoring, **_: object
    ) -> Tensor:
        """Return the attention weight of each token for the last token, the same for all key heads."""
        weights = window_attention(keys, queries[:, :, -1:], scoring)
        return weights.mean(dim=(1, 2, 3))[:, None].expand(keys.shape[:3])
