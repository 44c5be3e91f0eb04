"""Incremental detokenization: yields whole characters only, and never a part of a stop sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class AnswerText:
    """Text of an answer that grows token by token.

    `push` returns only text that is certain to be part of the answer. It holds back an incomplete character,
    and text that may be the beginning of a stop sequence. `text` contains all text so far, including a stop
    sequence.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        if "" in stops:
            raise ValueError("stop='': a stop sequence must not be empty")
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._tokens: list[int] = []
        # Decoding starts at `_anchor`, some tokens earlier: some tokenizers drop the space of the first word.
        self._anchor = self._read = 0
        self._shown_length = 0
        self._ends = [0]
        self.text = ""
        self.stop_at: int | None = None

    @property
    def tokens(self) -> Sequence[int]:
        """Tokens of the answer so far."""
        return self._tokens

    @property
    def is_stopped(self) -> bool:
        """True if the text contains a stop sequence, which begins at `stop_at`."""
        return self.stop_at is not None

    def push(self, token: int) -> str:
        """Add a token; return the text that is now certain to be part of the answer."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._anchor : self._read])
        now = self._decode(self._tokens[self._anchor :])
        if len(now) > len(before) and not now.endswith("\ufffd"):
            self.text += now[len(before) :]
            self._anchor, self._read = self._read, len(self._tokens)
        self._ends.append(len(self.text))
        positions = [at for stop in self._stops if (at := self.text.find(stop, self._search_start())) >= 0]
        if not positions:
            return self._show(len(self.text) - self._count_held_back())
        self.stop_at = min(positions)
        return self._show(self.stop_at)

    def finish(self) -> str:
        """End the answer; return the text that was held back and is part of the answer."""
        if not self.is_stopped and self._read < len(self._tokens):
            before = self._decode(self._tokens[self._anchor : self._read])
            self.text += self._decode(self._tokens[self._anchor :])[len(before) :]
            self._ends[-1] = len(self.text)
        return self._show(self.stop_at if self.stop_at is not None else len(self.text))

    def tokens_within(self, length: int) -> tuple[int, int]:
        """Return a pair: how many tokens end in the first `length` characters, and where the last one ends.

        The second number is a position in `text`.
        """
        end = max(end for end in self._ends if end <= length)
        # The first token with this end: tokens after it belong to an incomplete character.
        return self._ends.index(end), end

    def _show(self, end: int) -> str:
        new, self._shown_length = self.text[self._shown_length : end], max(self._shown_length, end)
        return new

    def _search_start(self) -> int:
        longest = max((len(stop) for stop in self._stops), default=1)
        return max(0, self._shown_length - longest + 1)

    def _count_held_back(self) -> int:
        """Return the length of the longest suffix of `text` that is the beginning of a stop sequence."""
        sizes = (
            size for stop in self._stops for size in range(1, len(stop)) if self.text.endswith(stop[:size])
        )
        return max(sizes, default=0)

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
