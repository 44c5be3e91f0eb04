"""InfiniRetri: read a text of any length with a causal model; retain the sentences relevant to a question.

Ye et al. 2025 (arXiv 2502.12962): the model reads the text chunk by chunk. Each chunk is preceded by the
sentences retained so far and followed by the question. The score of a token is the attention of the question
to the phrase around the token. The sentences of the best tokens are retained. At the end the question is
answered from these sentences alone. No keys and values pass from one chunk to the next. The cost is therefore
linear in the length of the text, memory does not grow, and the text may be longer than the model's training
length.

Differences from the paper: the attention weights are those of retrieval heads in one layer; the paper sums
all heads of the last layer. The forward pass ends at that layer and computes only the weights of the
question's tokens; the paper runs eager attention in all layers. The weight of the attention sink is removed
before phrases are summed, so that it does not count for the first sentence. Phrases do not cross sentence
boundaries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from scrubjay.kernels.select import best
from scrubjay.memory.context.capture import attention_weights
from scrubjay.memory.context.quotes import ControlTokens, build_chat_prompt, prepend_bos
from scrubjay.memory.context.retrieval_heads import retrieval_heads
from scrubjay.memory.context.sentences import (
    Bookmark,
    ProgressDisplay,
    ReadingPosition,
    Sentence,
    cut_sentence,
    group_sentences,
    split_sentences,
)

_LENGTH_MULTIPLE = 64


@dataclass(frozen=True)
class ReadingResult:
    """Result of reading a text for a question."""

    sentences: tuple[str, ...]
    """Retained sentences, in the order of the text."""
    answer: str
    """Answer of the model from the retained sentences."""
    tokens_read: int
    """Length of the text in tokens."""


class SentenceSelection(NamedTuple):
    """Scores and selection of the sentences of one forward pass.

    The sentences that were retained before come first, then the sentences of the chunk.
    """

    sentences: tuple[Sentence, ...]
    scores: tuple[float, ...]
    """Score of the best token of each sentence."""
    indices: tuple[int, ...]
    """Indices of the sentences to retain, in the order of the text."""


class InfiniRetri:
    """Reader of long texts with a causal language model of transformers.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        chunk_tokens: Maximum number of tokens of a chunk, and of all retained sentences together.
        top_k: Number of best tokens. The sentences that contain these tokens are retained.
        phrase: Number of neighbouring tokens over which attention is summed for the score of a token.
        layer: Layer of the attention weights. Default: the layer that copies best (see `retrieval_heads`).
        heads: Heads of that layer. Default: the heads that copy best.
        row_weights: Weights of the question's tokens in the scores. "even" weights all tokens equally. "own"
            weights a token by the square of its attention to the question itself, as in the authors' package
            infini-retri. The package computes these weights for the first chunk only; here they are computed
            for each chunk.

    Raises:
        ValueError: on an invalid size, layer or head.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        chunk_tokens: int = 1024,
        top_k: int = 40,
        phrase: int = 8,
        layer: int | None = None,
        heads: Sequence[int] | None = None,
        row_weights: Literal["even", "own"] = "even",
    ) -> None:
        for name, size in (("chunk_tokens", chunk_tokens), ("top_k", top_k), ("phrase", phrase)):
            if size < 1:
                raise ValueError(f"{name}={size}: must be at least 1")
        if row_weights not in ("even", "own"):
            raise ValueError(f"row_weights={row_weights!r}; choose 'even' or 'own'")
        self.row_weights = row_weights
        self.model, self.tokenizer, self._control = model, tokenizer, ControlTokens(tokenizer)
        self.chunk_tokens, self.top_k, self.phrase = chunk_tokens, top_k, phrase
        if layer is None or heads is None:
            scores = retrieval_heads(model, tokenizer)
            layer = scores.best_layer() if layer is None else layer
            heads = scores.select_heads(layer) if heads is None else heads
        self.layer, self.heads = layer, list(heads)

    def read(
        self,
        text: str | Iterable[str],
        question: str,
        *,
        state: Path | str | None = None,
        max_new_tokens: int = 64,
        progress: bool = True,
        on_chunk: Callable[[SentenceSelection], None] = lambda selection: None,
    ) -> ReadingResult:
        """Read a text and answer the question from the retained sentences.

        Args:
            text: The text, or pieces of it that may be split anywhere.
            question: The question.
            state: File that stores the reading position every few seconds and at Ctrl-C; the same call
                resumes from it.
            max_new_tokens: Largest number of tokens in the answer.
            progress: Whether to display the progress.
            on_chunk: Callback with the selection after every chunk.

        Raises:
            ValueError: if the file `state` belongs to another text, question or setting.
        """
        bookmark = Bookmark(None if state is None else Path(state), self._settings(question))
        length = len(text) if isinstance(text, str) else None
        with ProgressDisplay(bookmark, length, progress, _count_sentences) as watch:
            sentences = bookmark.iterate_unread(split_sentences(text), self._cut)
            for chunk in group_sentences(sentences, self.chunk_tokens):
                selection = self.select_sentences([*bookmark.position.sentences, *chunk], question)
                bookmark.advance(chunk, [selection.sentences[at] for at in selection.indices])
                on_chunk(selection)
                watch.update()
        relevant = bookmark.position.sentences
        return ReadingResult(
            tuple(sentence.text.strip() for sentence in relevant),
            self._answer(relevant, question, max_new_tokens),
            bookmark.position.tokens,
        )

    def select_sentences(self, sentences: Sequence[Sentence], question: str) -> SentenceSelection:
        """Read these sentences with the question after them, and select the sentences to retain."""
        before, question_tokens, _ = self._prompt(question)
        tokens = [token for sentence in sentences for token in sentence.tokens]
        read_tokens = before + tokens + question_tokens
        length = len(read_tokens)
        # Padding to a multiple, after the question's rows: CPU libraries compile code for every new length.
        filler = question_tokens[-1:] * (-length % _LENGTH_MULTIPLE)
        prompt = torch.tensor([read_tokens + filler], device=self.model.device)
        rows = slice(length - len(question_tokens), length)
        weights = attention_weights(self.model, prompt, {self.layer: self.heads}, rows)[self.layer][0]
        if self.row_weights == "own":
            weights = weights * weights[..., rows].sum(dim=(0, 2)).square()[:, None]
        lengths = [len(sentence.tokens) for sentence in sentences]
        scores = phrase_scores(weights, len(before), lengths, self.phrase)
        best_of = tuple(float(part.amax()) if len(part) else 0.0 for part in scores.split(lengths))
        return SentenceSelection(
            tuple(sentences), best_of, _keep(lengths, scores, self.top_k, self.chunk_tokens)
        )

    def _cut(self, text: str) -> list[Sentence]:
        # Control tokens in the text are escaped, so that they cannot end the user's turn.
        return cut_sentence(text, self._control.encode, self.chunk_tokens)

    def _prompt(self, question: str) -> tuple[list[int], list[int], list[int]]:
        """Return the prompt's tokens before the text, those of the question, and those after the question."""
        parts = build_chat_prompt(self.tokenizer, question)
        before, question_tokens, tail = (
            self.tokenizer(part, add_special_tokens=False).input_ids for part in parts
        )
        return prepend_bos(self.tokenizer, before), question_tokens, tail

    def _answer(self, sentences: Sequence[Sentence], question: str, max_new_tokens: int) -> str:
        before, question_tokens, tail = self._prompt(question)
        tokens = [token for sentence in sentences for token in sentence.tokens]
        answer = self._continue(before + tokens + question_tokens + tail, max_new_tokens)
        return self.tokenizer.decode(answer, skip_special_tokens=True).strip()

    @torch.no_grad()
    def _continue(self, prompt: list[int], max_new_tokens: int) -> list[int]:
        """Return the most likely next tokens, one by one, up to a token that ends an answer.

        `generate` would obey generation_config.json, in which the author of a model may ask for any number of
        beams.
        """
        model: Any = self.model
        ends = getattr(model.generation_config, "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [ends]
        answer: list[int] = []
        cache = None
        while len(answer) < max_new_tokens and (not answer or answer[-1] not in ends):
            new = torch.tensor([answer[-1:] or prompt], device=model.device)
            output = model(new, cache=cache, use_cache=True, logits_to_keep=1, return_dict=True)
            cache = output.cache
            answer.append(int(output.logits[0, -1].argmax()))
        return answer

    def _settings(self, question: str) -> str:
        """Return a hash of the settings that a saved position depends on, besides the text."""
        settings = (
            question,
            self.chunk_tokens,
            self.top_k,
            self.phrase,
            self.layer,
            self.heads,
            self.row_weights,
        )
        return hashlib.sha256(repr(settings).encode()).hexdigest()


def _count_sentences(position: ReadingPosition) -> str:
    return f"{len(position.sentences)} sentences retained"


def phrase_scores(
    weights: Float[Tensor, "heads rows keys"], first: int, lengths: Sequence[int], phrase: int
) -> Float[Tensor, "tokens"]:
    """Return a score for each token: the total attention to the `phrase` tokens centered on that token.

    The attention is summed over heads and rows. The first sentence starts at key `first`, and `lengths` holds
    the number of tokens of each sentence. A phrase is cut off at the boundaries of its sentence. Keys outside
    the sentences count as zero. The attention sink at key 0 also counts as zero.
    """
    attention = weights.sum(dim=(0, 1)).double()
    attention[0] = 0
    total = functional.pad(attention[first : first + sum(lengths)].cumsum(0), (1, 0))
    size = torch.tensor(list(lengths), device=weights.device)
    end = size.cumsum(0).repeat_interleave(size)
    start = end - size.repeat_interleave(size)
    at = torch.arange(len(end), device=weights.device)
    low = torch.maximum(at - (phrase - 1) // 2, start)
    high = torch.minimum(at + phrase // 2 + 1, end)
    return (total[high] - total[low]).float()


def _keep(
    lengths: Sequence[int], scores: Float[Tensor, "tokens"], top_k: int, most_tokens: int
) -> tuple[int, ...]:
    """Return the indices of the sentences that contain the `top_k` best tokens, in ascending order.

    Sentences are added from the best one on. A sentence is skipped if its tokens would raise the total above
    `most_tokens`.
    """
    owner = [at for at, length in enumerate(lengths) for _ in range(length)]
    selection: dict[int, None] = {}
    left = most_tokens
    for token in best(scores, top_k).tolist():
        size = lengths[owner[token]]
        if owner[token] not in selection and size <= left:
            selection[owner[token]] = None
            left -= size
    return tuple(sorted(selection))
