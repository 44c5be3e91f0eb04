"""AdaKV: SnapKV whose heads share the budget of their layer.

Feng et al. 2024 (arXiv 2407.11550, section 3.3): the tokens with the highest scores of all heads of a layer
are kept. A head with concentrated attention keeps fewer tokens than a head whose attention is spread. Every
head keeps at least the share `safeguard` of its equal budget.

Differences from the authors' code: query heads that share a key head select together, the first tokens are
kept, pooling is wider (see `kernel`), and generated tokens are compressed too.

Memory: the budget times the number of key heads, for each layer; generation adds up to `window - 1` tokens a
head. The split among the heads depends on the text, the sum does not. Use it where SnapKV fits: the question
is at the end of the prompt, and the budget is small.
"""

from __future__ import annotations

from dataclasses import dataclass

from scrubjay.memory.context.policies.scored.base import Heads
from scrubjay.memory.context.policies.scored.snapkv import SnapKVPolicy


@dataclass(frozen=True)
class AdaKVPolicy(SnapKVPolicy):
    """SnapKV whose heads share the budget of their layer."""

    heads: Heads = "adaptive"
    """Split of a layer's budget among its key heads: equal, or adaptive to their scores."""
