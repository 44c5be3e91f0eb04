"""KeyDiff: keep the tokens whose keys differ most from the others.

Park et al. 2025 (arXiv 2504.15364, section 3): the score of a token is minus the cosine similarity of its key
to the mean of all normalized keys. It needs neither queries nor attention weights, so a text can be scored
before its question is known.

Differences from the authors' code: the first `num_sinks` and the last `window` tokens are always kept. Like
theirs, a prompt that is read in blocks is compressed after each block.

Memory: the budget for each key head; generation adds up to `window - 1` tokens. Use it for long texts in
small blocks, since no block needs the whole prompt. It finds less than policies that read the question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from scrubjay.memory.context.policies.scored.base import ScoredPolicy


@dataclass(frozen=True)
class KeyDiffPolicy(ScoredPolicy):
    """Keep the tokens whose keys are least similar to the mean key."""

    query_aware: ClassVar[bool] = False

    def score(self, keys: Tensor, values: Tensor, queries: Tensor, **_: object) -> Tensor:
        """Return minus the cosine similarity of each key to the mean of the normalized keys."""
        mean = functional.normalize(keys.float(), dim=-1).mean(dim=2, keepdim=True)
        return -functional.cosine_similarity(keys.float(), mean, dim=-1)
