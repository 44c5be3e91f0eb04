"""KVzip: keep the tokens that the model needs to repeat the text.

Kim et al. 2025 (arXiv 2505.23416, section 3): after a prompt the model reads the prompt again, chunk by
chunk, each after an instruction to repeat it. The score of a token is the largest attention weight that it
receives then, over the queries of the chunk and the query heads that share its key head. One threshold
applies to all heads and layers of a row. The attention weights of a chunk are those over the sinks, the chunk
and the second reading itself, as in the authors' code. So the time is linear in the length of the text.

Differences from the authors' code: the instruction is the same for all chunks, the first `num_sinks` and the
last `window` tokens are always kept, and a head can be given a least share of its budget (`safeguard`).
Generated tokens are kept until the next prompt. They are then read again together with the prompt.

Memory: after a prompt at most the budget times the number of layers and key heads, split by the text. While a
prompt is read, all layers store it whole. Generation adds every token. Use it for many questions about one
text, also if they are not known yet. Reading takes about twice the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from scrubjay.memory.context.policies.base import CacheShape, ContextPolicy, LayerMemory, check_minimums
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.scored.base import Heads, Queries, ScoredPolicy
from scrubjay.memory.context.policies.scored.second_pass import RepeatedMemory, Repetition

INSTRUCTION = "\n\nRepeat the previous context exactly.\n\n"
"""Text before each repeated chunk."""


@dataclass(frozen=True)
class KVzipPolicy(ScoredPolicy):
    """Keep the tokens that receive the most attention while the model repeats the text."""

    chunk: int = 2048
    """Number of tokens that are repeated at once."""
    instruction: tuple[int, ...] | None = None
    """Token ids that stand before each repeated chunk. None: those of `INSTRUCTION` where the tokenizer is
    known, as in `LocalChatModel`, and no tokens elsewhere; see `for_tokenizer`."""

    heads: Heads = "adaptive"
    """Split of the budget; only "adaptive", since one threshold applies to all heads of all layers."""
    safeguard: float = 0.0
    """Share of its equal budget that every head keeps at least."""

    query_aware: ClassVar[bool] = False
    queries: ClassVar[Queries] = "none"
    reads_twice: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimums(self, chunk=1)
        if self.heads != "adaptive":
            raise ValueError(
                f"heads={self.heads!r}: must be 'adaptive', since one threshold applies to all heads of all "
                "layers"
            )
        if any(token < 0 for token in self.instruction or ()):
            raise ValueError(f"instruction={self.instruction}: token ids must not be negative")

    def for_tokenizer(self, tokenize: Callable[[str], Sequence[int]]) -> ContextPolicy:
        """Return the policy with the ids of `INSTRUCTION`, unless its instruction is set."""
        return (
            self if self.instruction is not None else replace(self, instruction=tuple(tokenize(INSTRUCTION)))
        )

    def score(
        self,
        keys: Tensor,
        values: Tensor,
        queries: Tensor,
        *,
        scoring: Scoring,
        repetition: Repetition,
        **_: object,
    ) -> Float[Tensor, "batch key_heads chunk"]:
        """Return the largest attention weight that each token of the chunk receives in the second reading."""
        return self.compute_weights(keys, queries, scoring, repetition).amax(dim=(2, 3))

    def compute_weights(
        self, keys: Tensor, queries: Tensor, scoring: Scoring, repetition: Repetition
    ) -> Float[Tensor, "batch key_heads shared length chunk"]:
        """Return the attention weights of the second reading to the tokens of the chunk."""
        groups = keys.shape[1]
        own_keys = keys[:, :, repetition.tokens]
        sinks = keys[:, :, : min(self.num_sinks, repetition.tokens.start)]
        columns = torch.cat([sinks, own_keys, repetition.keys], dim=2)
        products = queries.unflatten(1, (groups, -1)) @ columns.mT[:, :, None]
        length, before = queries.shape[2], sinks.shape[2] + own_keys.shape[2]
        column = torch.arange(columns.shape[2], device=keys.device)
        later = column > before + torch.arange(length, device=keys.device)[:, None]
        return scoring.compute_weights(products, later)[..., sinks.shape[2] : before]

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return RepeatedMemory(self)

    def call_length(self, prompt: int, block: int) -> int:
        """Return `prompt`: all tokens of a prompt are scored together."""
        return max(prompt, 1)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of keys, values, scores, lengths of heads, and ids of tokens without scores.

        Tokens that are read one by one are not evicted, and have no scores until the next prompt.
        """
        is_scored = at_once and tokens > 1
        columns = min(tokens, self.num_tokens) if is_scored else tokens
        rows = shape.layers * shape.batch * shape.key_heads
        ids = 0 if is_scored else 8 * shape.batch * tokens
        return columns * (shape.token_bytes + 4 * rows) + (8 * rows if tokens else 0) + ids
