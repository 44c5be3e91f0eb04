"""InfiniRetri: read a text of any length with a causal model; keep the sentences a question is about.

Ye et al. 2025 (arXiv 2502.12962): the text goes through the model chunk by chunk, each with the sentences
kept so far in front and the question behind. The attention of the question's rows, summed over a phrase,
picks the tokens whose sentences are kept, and in the end the question is answered from those alone. No keys
and values are carried over, so the cost is linear in the text's length, memory does not grow, and the model's
trained length is no limit.

Beyond the paper: the weights are those of retrieval heads in one layer, where the paper sums all heads of
the last layer; the forward pass ends at that layer, and only the question's rows of weights are computed,
where the paper runs eager attention in all layers; and the attention sink is taken out before neighbours are
summed, so that it does not smear into the first sentence, as phrases do not into the sentences beside them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from scrubjay.kernels.select import best
from scrubjay.memory.context.quotes import ControlTokens
from scrubjay.memory.heads.capture import attention_weights
from scrubjay.memory.heads.prompts import chat_prompt, opened
from scrubjay.memory.heads.retrieval import retrieval_heads
from scrubjay.memory.reading.bookmark import Bookmark, Sentence, Watch
from scrubjay.memory.reading.sentences import split_sentences

_LENGTHS_APART = 64


@dataclass(frozen=True)
class Retrieved:
    """What reading a text for a question gave."""

    sentences: tuple[str, ...]
    """The sentences kept, in the text's order."""
    answer: str
    """What the model answers from them."""
    tokens_read: int
    """Length of the text."""


class Judged(NamedTuple):
    """What became of sentences that were read at once: of those kept before, and behind them of a chunk's."""

    sentences: tuple[Sentence, ...]
    scores: tuple[float, ...]
    """Of each, that of its best token."""
    kept: tuple[int, ...]
    """Which of them are kept, in the text's order."""


class InfiniRetri:
    """Reads texts with a causal language model of transformers and its tokenizer.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        chunk_tokens: Tokens of text read at once; of the best sentences as many are kept as fit into so many.
        top_k: Tokens whose sentences are kept, the best by score.
        phrase: A token's score is that of so many tokens around it.
        layer: Whose attention is looked at; by default the one that copies best (see `retrieval_heads`).
        heads: Which of its heads; by default those that copy best.
        row_weights: What the question's rows count: "even" all alike; "own", as in the authors' package
            infini-retri, by the square of what a row attends to the question itself. The package takes these
            weights from the first chunk for all; here each chunk has its own.

    Raises:
        ValueError: on a size, layer or head that cannot be.
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
            heads = scores.of_layer(layer) if heads is None else heads
        self.layer, self.heads = layer, list(heads)

    def read(
        self,
        text: str | Iterable[str],
        question: str,
        *,
        state: Path | str | None = None,
        max_new_tokens: int = 64,
        progress: bool = True,
        on_chunk: Callable[[Judged], None] = lambda judged: None,
    ) -> Retrieved:
        """Read a text, or pieces of one that may be cut anywhere, and answer the question from what was kept.

        Args:
            text: The text.
            question: What is asked of it.
            state: A file, where the place reached is saved every few seconds and at Ctrl-C; the same call
                goes on from there.
            max_new_tokens: Tokens of the answer at most.
            progress: Whether to show how far it has read.
            on_chunk: Is told what became of every chunk.

        Raises:
            ValueError: if the file belongs to another text, question or setting.
        """
        bookmark = Bookmark(None if state is None else Path(state), self._settings(question))
        length = len(text) if isinstance(text, str) else None
        with Watch(bookmark, length, enabled=progress) as watch:
            for chunk in self._chunks(bookmark.parts(split_sentences(text), self._cut)):
                judged = self.judge([*bookmark.place.kept, *chunk], question)
                bookmark.turn(chunk, [judged.sentences[at] for at in judged.kept])
                on_chunk(judged)
                watch.update()
        sentences = bookmark.place.kept
        return Retrieved(
            tuple(sentence.text.strip() for sentence in sentences),
            self._answer(sentences, question, max_new_tokens),
            bookmark.place.tokens,
        )

    def judge(self, sentences: Sequence[Sentence], question: str) -> Judged:
        """Read these sentences before the question, and say which of them to keep."""
        before, asked, _ = self._prompt(question)
        tokens = [token for sentence in sentences for token in sentence.tokens]
        read = before + tokens + asked
        length = len(read)
        # What stands after the question, unread: a processor's library builds code anew for every length it
        # meets.
        unread = asked[-1:] * (-length % _LENGTHS_APART)
        prompt = torch.tensor([read + unread], device=self.model.device)
        rows = slice(length - len(asked), length)
        weights = attention_weights(self.model, prompt, {self.layer: self.heads}, rows)[self.layer][0]
        if self.row_weights == "own":
            weights = weights * weights[..., rows].sum(dim=(0, 2)).square()[:, None]
        lengths = [len(sentence.tokens) for sentence in sentences]
        scores = phrase_scores(weights, len(before), lengths, self.phrase)
        best_of = tuple(float(part.amax()) if len(part) else 0.0 for part in scores.split(lengths))
        return Judged(tuple(sentences), best_of, _keep(lengths, scores, self.top_k, self.chunk_tokens))

    def _chunks(self, sentences: Iterable[Sentence]) -> Iterator[list[Sentence]]:
        """Give lists of whole sentences of together at most `chunk_tokens`."""
        chunk: list[Sentence] = []
        held = 0
        for sentence in sentences:
            if chunk and held + len(sentence.tokens) > self.chunk_tokens:
                yield chunk
                chunk, held = [], 0
            chunk.append(sentence)
            held += len(sentence.tokens)
        if chunk:
            yield chunk

    def _cut(self, text: str) -> list[Sentence]:
        """Return a sentence whole, or in halves and halves of halves that fit into a chunk."""
        # A mark of the chat template within a text is quoted there: it must not end the user's turn.
        tokens = self._control.tokens(text)
        if len(tokens) <= self.chunk_tokens or len(text) == 1:
            return [Sentence(text, tuple(tokens))]
        middle = len(text) // 2
        return self._cut(text[:middle]) + self._cut(text[middle:])

    def _prompt(self, question: str) -> tuple[list[int], list[int], list[int]]:
        """Return the tokens before a text, those of the question, and those behind it."""
        parts = chat_prompt(self.tokenizer, question)
        before, asked, tail = (self.tokenizer(part, add_special_tokens=False).input_ids for part in parts)
        return opened(self.tokenizer, before), asked, tail

    def _answer(self, sentences: Sequence[Sentence], question: str, max_new_tokens: int) -> str:
        before, asked, tail = self._prompt(question)
        tokens = [token for sentence in sentences for token in sentence.tokens]
        prompt = torch.tensor([before + tokens + asked + tail], device=self.model.device)
        model: Any = self.model  # to type checkers its `generate` is a tensor
        answer = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=max_new_tokens
        )
        return self.tokenizer.decode(answer[0, prompt.shape[1] :], skip_special_tokens=True).strip()

    def _settings(self, question: str) -> str:
        """Return what a saved place depends on, besides the text."""
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


def phrase_scores(
    weights: Float[Tensor, "heads rows keys"], first: int, lengths: Sequence[int], phrase: int
) -> Float[Tensor, "tokens"]:
    """Return how much the rows attend to the `phrase` tokens around each token of these sentences.

    They begin at key `first` and fill the keys after it. A phrase does not reach into other sentences; what
    lies outside them, and the sink at key 0 wherever they begin, counts nothing.
    """
    received = weights.sum(dim=(0, 1)).double()
    received[0] = 0
    total = functional.pad(received[first : first + sum(lengths)].cumsum(0), (1, 0))
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
    """Return which sentences own the `top_k` best tokens, in order.

    Those of the best that fit into `most_tokens`.
    """
    owner = [at for at, length in enumerate(lengths) for _ in range(length)]
    kept: dict[int, None] = {}
    left = most_tokens
    for token in best(scores, top_k).tolist():
        size = lengths[owner[token]]
        if owner[token] not in kept and size <= left:
            kept[owner[token]] = None
            left -= size
    return tuple(sorted(kept))
