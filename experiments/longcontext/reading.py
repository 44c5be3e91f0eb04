"""How a model reads a text of any length: block by block, into a cache that a policy keeps small."""

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
    """Read the tokens in blocks; yield after each the logits of the token that follows.

    A policy that chooses at the end of a prompt reads all as one block, or the end of each would choose.
    """
    for piece in tokens.split(cache.call_length(len(tokens), block)):
        yield model(piece[None].to(model.device), cache=cache, logits_to_keep=1).logits[0, -1]


@torch.no_grad()
def recompute(model: PreTrainedModel, tokens: Int[Tensor, " time"]) -> Float[Tensor, " vocabulary"]:
    """Read the tokens afresh, without any cache; return the logits of the token that follows."""
    return model(tokens[None].to(model.device), use_cache=False, logits_to_keep=1).logits[0, -1]


@torch.no_grad()
def losses(
    model: PreTrainedModel,
    cache: context.PolicyCache,
    tokens: Int[Tensor, " time"],
    targets: Int[Tensor, " time"],
) -> Float[Tensor, " time"]:
    """Read one block; return the negative log-likelihood, in nats, of the token after each of its tokens."""
    pieces = tokens.split(cache.call_length(len(tokens), len(tokens)))
    logits = torch.cat([model(piece[None].to(model.device), cache=cache).logits[0] for piece in pieces])
    return torch.nn.functional.cross_entropy(logits.float(), targets.to(model.device), reduction="none")


def held_bytes(cache: context.PolicyCache) -> int:
    """Return the bytes of keys, values and what goes with them, wherever they lie."""
    return cache.nbytes() + cache.nbytes("cpu") + cache.nbytes("disk")


def tokenize(tokenizer: Any, text: str) -> Int[Tensor, " time"]:
    """Return the tokens of a prompt that may be longer than the model was trained for."""
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"])


def tokenize_text(tokenizer: Any, text: str) -> Int[Tensor, " time"]:
    """Return the tokens of a text of any length: what looks like a control token in it is broken."""
    return tokenize(tokenizer, ControlTokens(tokenizer).plain(text))
