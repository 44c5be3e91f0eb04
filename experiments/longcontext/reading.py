"""Block-by-block reading of a text of any length into a cache with a context policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from scrubjay.memory import context
from scrubjay.memory.context.quotes import ControlTokens


@torch.no_grad()
def read(
    model: PreTrainedModel, cache: context.PolicyCache, tokens: Int[Tensor, " time"], block: int
) -> Iterator[Float[Tensor, " vocabulary"]]:
    """Read the tokens in blocks; yield the next-token logits after each block.

    If the policy selects keys at the end of a prompt, all tokens are one block. With several blocks the
    policy would select keys at the end of each block.
    """
    for piece in tokens.split(cache.call_length(len(tokens), block)):
        yield model(piece[None].to(model.device), cache=cache, logits_to_keep=1).logits[0, -1]


@torch.no_grad()
def recompute(model: PreTrainedModel, tokens: Int[Tensor, " time"]) -> Float[Tensor, " vocabulary"]:
    """Run a forward pass over the tokens without a cache; return the next-token logits."""
    return model(tokens[None].to(model.device), use_cache=False, logits_to_keep=1).logits[0, -1]


@torch.no_grad()
def losses(
    model: PreTrainedModel,
    cache: context.PolicyCache,
    tokens: Int[Tensor, " time"],
    targets: Int[Tensor, " time"],
) -> Float[Tensor, " time"]:
    """Read one block; return the negative log-likelihood of each target, in nats."""
    pieces = tokens.split(cache.call_length(len(tokens), len(tokens)))
    logits = torch.cat([model(piece[None].to(model.device), cache=cache).logits[0] for piece in pieces])
    return torch.nn.functional.cross_entropy(logits.float(), targets.to(model.device), reduction="none")


def cache_nbytes(cache: context.PolicyCache) -> int:
    """Return the bytes of the cache on all devices and on disk."""
    return cache.nbytes() + cache.nbytes("cpu") + cache.nbytes("disk")


def tokenize(tokenizer: Any, text: str) -> Int[Tensor, " time"]:
    """Return the tokens of a prompt, without a warning if it exceeds the model's maximum length."""
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"])


def tokenize_text(tokenizer: Any, text: str) -> Int[Tensor, " time"]:
    """Return the tokens of a text of any length, with control tokens escaped."""
    return tokenize(tokenizer, ControlTokens(tokenizer).escape(text))
