"""A model's reading of a long text under a context policy: losses, costs, and the answer to a question."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from scrubjay.experiments.lm.needles import Example, string_match_all
from scrubjay.experiments.resources import resident_bytes, stopwatch
from scrubjay.memory import context
from scrubjay.memory.context.infiniretri import InfiniRetri
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


def for_tokenizer(policy: context.ContextPolicy, tokenizer: Any) -> context.ContextPolicy:
    """Return a context policy for the texts of a tokenizer of transformers."""
    return policy.for_tokenizer(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class Answer:
    """Answer of a model, with its score and cost."""

    text: str
    """Text that the model generated, without the answer prefix of the example."""
    score: float
    """Fraction of the references that the answer contains."""
    tokens: int
    """Number of tokens that the model read."""
    wall: float
    """Wall-clock time to read the text and generate the answer, in seconds."""
    cpu: float
    """CPU time to read the text and generate the answer, in seconds."""
    cache_bytes: int
    """Size of the cached keys and values after the answer, on all devices, in bytes."""
    resident: int
    """Resident memory of the process after the answer, in bytes."""


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: Any,
    cache: context.PolicyCache,
    logits: Float[Tensor, " vocabulary"],
    example: Example,
) -> list[int]:
    """Generate an answer greedily after a prompt, and return its tokens.

    Generation stops at the end-of-sequence token or after `example.new_tokens` tokens. It also stops once the
    answer contains all references, because further text would not change the score. `logits` are those of the
    first token of the answer.
    """
    tokens: list[int] = []
    while len(tokens) < example.new_tokens:
        token = int(logits.argmax())
        if token == tokenizer.eos_token_id:
            break
        tokens.append(token)
        if string_match_all(tokenizer.decode(tokens), example.references) == 1:
            break
        (logits,) = read(model, cache, torch.tensor([token]), 1)
    return tokens


@torch.no_grad()
def answer(
    model: PreTrainedModel, tokenizer: Any, policy: context.ContextPolicy, example: Example, block: int
) -> Answer:
    """Read an example in blocks of tokens under a context policy, and `generate` the answer."""
    cache = context.PolicyCache(for_tokenizer(policy, tokenizer), model)
    tokens = tokenize(tokenizer, example.render(tokenizer))
    with stopwatch() as timer:
        *_, logits = read(model, cache, tokens, block)
        generated_tokens = generate(model, tokenizer, cache, logits, example)
    text = tokenizer.decode(generated_tokens)
    return Answer(
        text,
        string_match_all(text, example.references),
        len(tokens),
        timer.wall,
        timer.cpu,
        cache_nbytes(cache),
        resident_bytes(),
    )


def answer_with_infiniretri(
    model: PreTrainedModel,
    tokenizer: Any,
    reader: InfiniRetri,
    example: Example,
    block: int,
    folder: Path,
    quiet: bool,
) -> Answer:
    """Select sentences of an example's text with InfiniRetri, and answer from them under the full cache.

    The prompt has the same wording as in `answer`. If an interrupted reading was resumed, the reported times
    cover only the part after the last resumption.

    Args:
        model: a causal language model of transformers.
        tokenizer: the tokenizer of the model.
        reader: InfiniRetri reader, which selects sentences by the model's attention.
        example: text and question.
        block: tokens per forward pass when answering.
        folder: folder for the reader's progress file, which is deleted after the answer.
        quiet: hide the progress display.
    """
    name = hashlib.sha256(example.prompt.encode()).hexdigest()[:16]
    state = folder / f"reading-{name}.json"
    with stopwatch() as timer:
        selection = reader.read(
            example.context, example.question, state=state, max_new_tokens=1, progress=not quiet
        )
    shorter = dataclasses.replace(example, context=" ".join(selection.sentences))
    response = answer(model, tokenizer, context.make("full"), shorter, block)
    state.unlink()
    return dataclasses.replace(
        response,
        tokens=selection.tokens_read,
        wall=response.wall + timer.wall,
        cpu=response.cpu + timer.cpu,
    )


class Curve:
    """Losses and costs along a text that a model reads in blocks of tokens.

    `nats[i]` is the loss of token `i + 1` in nats. All other values are per block.
    """

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.nats: NDArray[np.float64] = np.concatenate([row["nats"] for row in rows])
        self.ends = np.cumsum([len(row["nats"]) for row in rows])
        self.rows = rows

    def perplexity(self, first: int = 0, last: int | None = None) -> float:
        """Return the perplexity: the exponential of the mean of the token losses `nats[first:last]`."""
        return math.exp(self.nats[first:last].mean())

    def per_block(self, name: str) -> NDArray[np.float64]:
        """Return one value per block; `name` is "cpu", "wall", "resident" or "cache_bytes"."""
        return np.array([row[name] for row in self.rows], dtype=float)

    def milliseconds(self, clock: str, first: float = 0.0) -> float:
        """Return the mean number of milliseconds per token; `clock` is "cpu" or "wall".

        The mean leaves out a fraction `first` of the blocks, from the beginning of the text.
        """
        begin = int(first * len(self.rows))
        tokens = sum(len(row["nats"]) for row in self.rows[begin:])
        return 1000 * self.per_block(clock)[begin:].sum() / tokens
