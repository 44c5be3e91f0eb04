"""Tell what is quoted in a prompt from what its template writes, so that no quote becomes a control token.

A tokenizer takes `<|im_end|>` for the end of a turn, whoever wrote it. So while a template is applied every
letter of a quote is exchanged for a code of its own, which the template hands on whatever else it does
(strips, joins, writes JSON), and afterwards it is known of every letter of the prompt whose it is. Then the
tokenizer itself is asked: where it would make a control token of a quote, or of a quote and what stands
beside it, a zero-width space breaks the quote. Other prompts stay as they are, letter by letter.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import Any

_BREAK = "\u200b"
_UNKNOWN = "\ufffd"
# What JSON writes in another way, and space, must stay what it is while a template is applied.
_AS_IT_IS = '"\\'
_SURROGATES = range(0xD800, 0xE000)
_BLOCK_MARK = re.compile(r"</?[^\s<>'\"{}\\]{1,64}>|\[/?[A-Z][A-Z_]*\]")


class ControlTokens:
    """The tokens of a tokenizer that only templates write: all that were added to its vocabulary.

    Raises ValueError on a tokenizer that does not tell where in a text its tokens are.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        # A single letter is a letter, unless it is said to be more.
        self._spelled = {
            token: mark.content for token, mark in added.items() if mark.special or len(mark.content) > 1
        }
        if self._spelled and not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} does not tell where in a text its tokens are, so its control "
                "tokens cannot be kept out of quotes; load the tokenizer with AutoTokenizer"
            )
        self._composing = [mark.content for mark in added.values() if mark.normalized]

    def places(self, text: str) -> list[tuple[int, int]]:
        """Return where the tokenizer makes control tokens of a text: from, to."""
        if not self._spelled:
            return []
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        found = [
            place
            for token, place in zip(encoded.input_ids, encoded.offset_mapping, strict=True)
            if token in self._spelled and self._is_meant(token, text[slice(*place)])
        ]
        # With an accent after it a mark is another letter to tokenizers that compose letters first.
        for mark in self._composing:
            for end in (match.end() for match in re.finditer(re.escape(mark), text)):
                if end < len(text) and unicodedata.combining(text[end]):
                    found.append((end - 1, end + 1))
        return found

    def count(self, tokens: Sequence[int]) -> int:
        """Return how many of these tokens are control tokens."""
        return sum(token in self._spelled for token in tokens)

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text that is a quote as a whole: none of them is a control token."""
        whole = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        if self._spelled.keys().isdisjoint(whole):
            return whole
        return self._tokenizer(self.plain(text), add_special_tokens=False).input_ids

    def plain(self, text: str) -> str:
        """Return a text that is a quote as a whole with what would become control tokens broken."""
        quotes = Quotes(self)
        return quotes.text(quotes.quote(text))

    def _is_meant(self, token: int, written: str) -> bool:
        # What a tokenizer does not know becomes a control token, too, and harms nobody.
        if token != getattr(self._tokenizer, "unk_token_id", None):
            return True
        return _folded(self._spelled[token]) in _folded(written)


class Quotes:
    """The quotes of one prompt: `quote` what others said, apply the template, and take its `text`.

    `template` is what the template writes: the marks of blocks in it, such as `<tool_call>`, are broken in
    quotes even where they are no tokens.
    """

    def __init__(self, control: ControlTokens, template: str = "") -> None:
        self._control, self._template = control, template
        self._codes = _Codes()

    def quote(self, said: Any) -> Any:
        """Return a text, or JSON of texts, in code."""
        if isinstance(said, dict):
            return {self.quote(name): self.quote(value) for name, value in said.items()}
        if isinstance(said, (list, tuple)):
            return [self.quote(value) for value in said]
        return said.translate(self._codes) if isinstance(said, str) else said

    def spelled(self, written: str) -> str:
        """Return what was written with quotes in code, word for word."""
        return written.translate(self._codes.letters)

    def text(self, written: str) -> str:
        """Return the prompt that a template wrote with quotes in code; no quote in it is a control token."""
        while places := self._to_break(written):
            parts, done = [], 0
            for begin, end in places:
                parts += [written[done:begin], self._broken(written[begin:end])]
                done = end
            written = "".join([*parts, written[done:]])
        return self.spelled(written)

    def _to_break(self, written: str) -> list[tuple[int, int]]:
        text, chosen = self.spelled(written), []
        found = self._control.places(text)
        if self._blocks is not None:
            found += [match.span() for match in self._blocks.finditer(text)]
        for begin, end in sorted(found):
            apart = not chosen or begin >= chosen[-1][1]
            if apart and self._broken(written[begin:end]) != written[begin:end]:
                chosen.append((begin, end))
        return chosen

    def _broken(self, mark: str) -> str:
        """Return a control token or a mark with its quoted part broken; as it is, if nothing is quoted."""
        space, unknown = self.quote(_BREAK), self.quote(_UNKNOWN)
        quoted = [at for at, code in enumerate(mark) if ord(code) in self._codes.letters]
        if not quoted:
            return mark
        if len(mark) > 1 and space not in mark:
            at = max(quoted[0], 1)
            return f"{mark[:at]}{space}{mark[at:]}"
        # The tokenizer passes over spaces without width, or the mark is a single letter.
        at = next((at for at in quoted if mark[at] not in (space, unknown)), None)
        return mark if at is None else f"{mark[:at]}{unknown}{mark[at + 1 :]}"

    @cached_property
    def _blocks(self) -> re.Pattern[str] | None:
        marks = sorted(set(_BLOCK_MARK.findall(self._template)), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, marks)), re.IGNORECASE) if marks else None


class _Codes(dict[int, int]):
    """The code of every letter, for `str.translate`: surrogates, which no text has, then private ones."""

    def __init__(self) -> None:
        super().__init__()
        self.letters: dict[int, int] = {}
        self._free = itertools.chain(_SURROGATES, range(0xF0000, 0x10FFFE))
        self[ord(_UNKNOWN)] = self._taken(ord(_UNKNOWN))

    def __missing__(self, letter: int) -> int:
        sign = chr(letter)
        if sign.isspace() or sign < " " or sign in _AS_IT_IS:
            self[letter] = letter
        else:
            self[letter] = self[ord(_UNKNOWN)] if letter in _SURROGATES else self._taken(letter)
        return self[letter]

    def _taken(self, letter: int) -> int:
        code = next(self._free, None)
        if code is None:
            return self[ord(_UNKNOWN)]
        self.letters[code] = letter
        return code


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
