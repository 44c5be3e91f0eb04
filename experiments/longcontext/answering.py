"""Answer of a model to a question about a long text that the model reads under a context policy."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from scrubjay.experiments.longcontext.examples import Example, string_match_all
from scrubjay.experiments.longcontext.reading import cache_nbytes, read, tokenize
from scrubjay.experiments.runs.cost import resident_bytes, stopwatch
from scrubjay.memory import context
from scrubjay.memory.reading.infiniretri import InfiniRetri


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
def answer(
    model: PreTrainedModel, tokenizer: Any, policy: context.ContextPolicy, example: Example, block: int
) -> Answer:
    """Read an example in blocks of tokens under a context policy, and generate the answer greedily.

    Generation stops at the end-of-sequence token or after `example.new_tokens` tokens. It also stops once the
    answer contains all references, because further text would not change the score.
    """
    cache = context.PolicyCache(policy, model)
    tokens = tokenize(tokenizer, example.render(tokenizer))
    generated_tokens: list[int] = []
    with stopwatch() as timer:
        *_, logits = read(model, cache, tokens, block)
        while len(generated_tokens) < example.new_tokens:
            token = int(logits.argmax())
            if token == tokenizer.eos_token_id:
                break
            generated_tokens.append(token)
            if string_match_all(tokenizer.decode(generated_tokens), example.references) == 1:
                break
            (logits,) = read(model, cache, torch.tensor([token]), 1)
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
