"""One answer to a question about a long text, by a model that reads it under a context policy."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from scrubjay.experiments.longcontext.examples import Example, string_match_all
from scrubjay.experiments.longcontext.reading import held_bytes, read, tokenize
from scrubjay.experiments.runs.cost import resident_bytes, stopwatch
from scrubjay.memory import context
from scrubjay.memory.reading.infiniretri import InfiniRetri


@dataclass(frozen=True)
class Answer:
    """What was answered, and what that took."""

    text: str
    """The answer, without its prefix."""
    score: float
    """Part of the references it contains."""
    tokens: int
    """Tokens that were read."""
    wall: float
    """Seconds on the clock."""
    cpu: float
    """Seconds of processor time."""
    cache_bytes: int
    """Bytes of keys and values at the end, wherever they lie."""
    resident: int
    """Bytes of the process's memory at the end."""


@torch.no_grad()
def answer(
    model: PreTrainedModel, tokenizer: Any, policy: context.ContextPolicy, example: Example, block: int
) -> Answer:
    """Read an example in blocks under a policy, and answer greedily.

    The answer ends where the model ends it, after the example's number of tokens, or once it holds all
    references: more of it would not change the score.
    """
    cache = context.PolicyCache(policy, model)
    tokens = tokenize(tokenizer, example.render(tokenizer))
    written: list[int] = []
    with stopwatch() as elapsed:
        *_, logits = read(model, cache, tokens, block)
        while len(written) < example.new_tokens:
            token = int(logits.argmax())
            if token == tokenizer.eos_token_id:
                break
            written.append(token)
            if string_match_all(tokenizer.decode(written), example.references) == 1:
                break
            (logits,) = read(model, cache, torch.tensor([token]), 1)
    text = tokenizer.decode(written)
    return Answer(
        text,
        string_match_all(text, example.references),
        len(tokens),
        elapsed.wall,
        elapsed.cpu,
        held_bytes(cache),
        resident_bytes(),
    )


def answer_from_kept(
    model: PreTrainedModel,
    tokenizer: Any,
    reader: InfiniRetri,
    example: Example,
    block: int,
    folder: Path,
    quiet: bool,
) -> Answer:
    """Let InfiniRetri keep sentences of an example's text, and answer from these under the full cache.

    So the model is asked in the same words as under a policy. The time told is that since it was last begun.

    Args:
        model: a causal language model of transformers.
        tokenizer: its own.
        reader: what chooses sentences, by the model's attention.
        example: text and question.
        block: tokens read at once when answering.
        folder: keeps how far the reader has come until it is done, for a text may take hours.
        quiet: show no progress.
    """
    name = hashlib.sha256(example.prompt.encode()).hexdigest()[:16]
    state = folder / f"reading-{name}.json"
    with stopwatch() as elapsed:
        kept = reader.read(
            example.context, example.question, state=state, max_new_tokens=1, progress=not quiet
        )
    shorter = dataclasses.replace(example, context=" ".join(kept.sentences))
    given = answer(model, tokenizer, context.make("full"), shorter, block)
    state.unlink()
    return dataclasses.replace(
        given,
        tokens=kept.tokens_read,
        wall=given.wall + elapsed.wall,
        cpu=given.cpu + elapsed.cpu,
    )
