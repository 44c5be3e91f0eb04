"""From tokens to text, as they come: whole characters only, and never a part of what ends the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class AnswerText:
    """The text of an answer that grows by tokens.

    `push` returns what is sure to be part of the answer: half a character, or what may turn out to be the
    begin of a stop sequence, waits. `said` is all the text the tokens make, stop sequence included.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        if "" in stops:
            raise ValueError("stop='': an empty stop sequence would end every answer at once")
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._tokens: list[int] = []
        # Tokens before `_anchor` are only there because some tokenizers write a first word without its space.
        self._anchor = self._read = 0
        self._shown = 0
        self._ends = [0]
        self.said = ""
        self.stop_at: int | None = None

    @property
    def tokens(self) -> Sequence[int]:
        """All that were pushed."""
        return self._tokens

    @property
    def stopped(self) -> bool:
        """Whether a stop sequence has come; `stop_at` is where in `said` it begins."""
        return self.stop_at is not None

    def push(self, token: int) -> str:
        """Add a token; return the text that may be shown now."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._anchor : self._read])
        now = self._decode(self._tokens[self._anchor :])
        if len(now) > len(before) and not now.endswith("\ufffd"):
            self.said += now[len(before) :]
            self._anchor, self._read = self._read, len(self._tokens)
        self._ends.append(len(self.said))
        found = [at for stop in self._stops if (at := self.said.find(stop, self._earliest())) >= 0]
        if not found:
            return self._show(len(self.said) - self._waiting())
        self.stop_at = min(found)
        return self._show(self.stop_at)

    def finish(self) -> str:
        """Return what waited, now that no token follows."""
        if not self.stopped and self._read < len(self._tokens):
            before = self._decode(self._tokens[self._anchor : self._read])
            self.said += self._decode(self._tokens[self._anchor :])[len(before) :]
            self._ends[-1] = len(self.said)
        return self._show(self.stop_at if self.stop_at is not None else len(self.said))

    def tokens_within(self, length: int) -> tuple[int, int]:
        """Return how many tokens lie wholly in so many characters of `said`, and how many those make."""
        end = max(end for end in self._ends if end <= length)
        # The first with this end: those after it are halves of a character that is not whole yet.
        return self._ends.index(end), end

    def _show(self, end: int) -> str:
        new, self._shown = self.said[self._shown : end], max(self._shown, end)
        return new

    def _earliest(self) -> int:
        longest = max((len(stop) for stop in self._stops), default=1)
        return max(0, self._shown - longest + 1)

    def _waiting(self) -> int:
        """Return the length of the longest end of `said` with which a stop sequence begins."""
        sizes = (
            size for stop in self._stops for size in range(1, len(stop)) if self.said.endswith(stop[:size])
        )
        return max(sizes, default=0)

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
