"""Sentences of a long text, English and Chinese, as they stream in, and a resumable reading position."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

LONGEST = 1000
"""Maximum number of characters of a sentence. A longer sentence is split at a line end if there is one,
otherwise between words, otherwise anywhere."""

_CLOSERS = "\"'”’»)\\]」』）》"
_END = re.compile(
    rf"[.!?…]+[{_CLOSERS}]*(?=\s+[^\sa-z])"  # a sentence continues before a lower-case letter
    rf"|[。！？]+[{_CLOSERS}]*(?=[^。！？{_CLOSERS}])"
    r"|\S(?=[^\S\n]*\n[^\S\n]*\n)"  # a blank line ends a heading
)
_ABBREVIATION = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|St|Prof|Sr|Jr|Rev|Hon|Capt|Col|Gen|Lt|Sgt|No|Vol|Fig|vs|cf|e\.g|i\.e|[A-Z])\.$"
)


def split_sentences(text: str | Iterable[str]) -> Iterator[str]:
    """Yield the sentences of a text. The text may consist of pieces that are split anywhere.

    Joined together, the sentences are the text: white space belongs to the following sentence. At most one
    piece and one sentence are in memory.
    """
    pieces = [text] if isinstance(text, str) else text
    buffer, start = "", 0
    for piece in pieces:
        buffer, start = buffer[start:] + piece, 0
        while (end := _end(buffer, start)) is not None:
            yield buffer[start:end]
            start = end
    if buffer[start:]:
        yield buffer[start:]


def _end(text: str, start: int) -> int | None:
    """Return the end of the sentence that begins at `start`, None if more text is needed to find the end."""
    limit = start + LONGEST
    at = start
    while (match := _END.search(text, at, limit)) is not None:
        if _ABBREVIATION.search(text, start, match.end()) is None:
            return match.end()
        at = match.end()
    if len(text) < limit:
        return None
    for mark in ("\n", " "):
        cut = text.rfind(mark, start + 1, limit)
        if cut > 0:
            return cut
    return limit


def cut_sentence(text: str, encode: Callable[[str], Sequence[int]], most_tokens: int) -> list[Sentence]:
    """Return a sentence as one part, or split in halves recursively until no part exceeds `most_tokens`."""
    tokens = encode(text)
    if len(tokens) <= most_tokens or len(text) == 1:
        return [Sentence(text, tuple(tokens))]
    middle = len(text) // 2
    return cut_sentence(text[:middle], encode, most_tokens) + cut_sentence(text[middle:], encode, most_tokens)


def group_sentences(sentences: Iterable[Sentence], most_tokens: int) -> Iterator[list[Sentence]]:
    """Yield chunks: lists of consecutive sentences with at most `most_tokens` tokens in total."""
    chunk: list[Sentence] = []
    chunk_length = 0
    for sentence in sentences:
        if chunk and chunk_length + len(sentence.tokens) > most_tokens:
            yield chunk
            chunk, chunk_length = [], 0
        chunk.append(sentence)
        chunk_length += len(sentence.tokens)
    if chunk:
        yield chunk


SAVE_SECONDS = 5.0
"""Seconds between saves."""
_LINE_SECONDS = 30.0


@dataclass(frozen=True)
class Sentence:
    """Sentence, or part of a long sentence, with its tokens."""

    text: str
    """Text, including white space, so that joined sentences give the whole text."""
    tokens: tuple[int, ...]
    """Token ids of this text, tokenized without the text around it."""


class ReadingPosition(NamedTuple):
    """Position in a text, and the sentences retained so far."""

    characters: int
    tokens: int
    sentences: list[Sentence]
    digest: str
    """SHA-256 of the text read so far."""


class Bookmark:
    """Reading position and retained sentences. They are saved in a file unless `path` is None.

    Raises ValueError if the file belongs to other `settings` or is damaged.
    """

    def __init__(self, path: Path | None, settings: str) -> None:
        self.path, self.settings = path, settings
        self.position = ReadingPosition(0, 0, [], hashlib.sha256().hexdigest())
        self._digest = hashlib.sha256()
        self._is_checked = False
        self._last_save = time.monotonic()
        if path is not None and path.exists():
            self._load(path)

    def iterate_unread(
        self, sentences: Iterable[str], cut: Callable[[str], Iterable[Sentence]]
    ) -> Iterator[Sentence]:
        """Yield the parts of sentences after the reading position.

        Raises ValueError if the text before the position differs from the text that was read.
        """
        offset, position = 0, self.position
        for text in sentences:
            if offset + len(text) <= position.characters:  # not split, which would tokenize the sentence
                offset = self._skip(text, offset)
                continue
            for part in cut(text):
                if offset < position.characters:
                    offset = self._skip(part.text, offset)
                    continue
                self._check(offset)
                yield part
        self._check(offset)

    def advance(self, chunk: Iterable[Sentence], sentences: list[Sentence]) -> None:
        """Move past a chunk that was read, and set the retained sentences."""
        chunk = list(chunk)
        text = "".join(sentence.text for sentence in chunk)
        self._digest.update(text.encode(errors="surrogatepass"))
        # A single assignment, because Ctrl-C may interrupt between any two statements.
        self.position = ReadingPosition(
            self.position.characters + len(text),
            self.position.tokens + sum(len(sentence.tokens) for sentence in chunk),
            sentences,
            self._digest.hexdigest(),
        )
        if time.monotonic() - self._last_save > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the reading position to its file atomically; without a file, do nothing."""
        self._last_save = time.monotonic()
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "settings": self.settings,
            "characters": self.position.characters,
            "tokens": self.position.tokens,
            "digest": self.position.digest,
            "kept": [[sentence.text, sentence.tokens] for sentence in self.position.sentences],
        }
        temporary = self.path.with_name(self.path.name + ".new")
        temporary.unlink(missing_ok=True)  # left by a process that crashed, or a link to another file
        temporary.write_text(json.dumps(state), encoding="utf-8")
        os.replace(temporary, self.path)

    def _load(self, path: Path) -> None:
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            settings = state["settings"]
            sentences = [Sentence(text, tuple(tokens)) for text, tokens in state["kept"]]
            numbers = [state["characters"], state["tokens"], *(t for one in sentences for t in one.tokens)]
            if not all(type(number) is int and number >= 0 for number in numbers):
                raise TypeError("a number is not an integer")
            self.position = ReadingPosition(state["characters"], state["tokens"], sentences, state["digest"])
        except RecursionError:
            raise ValueError(
                f"{path} is not a saved reading position: it is nested too deeply; delete it to start again"
            ) from None
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is not a saved reading position ({error}); delete it to start again"
            ) from error
        if settings != self.settings:
            raise ValueError(
                f"{path} belongs to another question or other settings; choose another file, or delete it"
            )

    def _skip(self, text: str, offset: int) -> int:
        self._digest.update(text.encode(errors="surrogatepass"))
        return offset + len(text)

    def _check(self, offset: int) -> None:
        """Raise ValueError if the skipped text differs from the text that was read.

        Only the first call compares the texts.
        """
        if not self._is_checked and (offset, self._digest.hexdigest()) != (
            self.position.characters,
            self.position.digest,
        ):
            raise ValueError(f"{self.path} belongs to another text; choose another file, or delete it")
        self._is_checked = True


class ProgressDisplay:
    """Progress display on stderr; it also saves the bookmark when reading ends or fails."""

    def __init__(
        self,
        bookmark: Bookmark,
        characters: int | None,
        is_enabled: bool,
        describe: Callable[[ReadingPosition], str],
    ) -> None:
        self._bookmark, self._characters, self._is_enabled = bookmark, characters, is_enabled
        self._describe = describe
        self._is_terminal = sys.stderr.isatty()
        self._start = self._last_print = time.monotonic()
        self._first = bookmark.position

    def __enter__(self) -> Self:
        self._first = self._bookmark.position
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bookmark.save()
        if self._is_enabled and self._is_terminal:
            print(file=sys.stderr)

    def update(self) -> None:
        """Print the position: continuously on a terminal, otherwise one line every 30 seconds."""
        now = time.monotonic()
        if not self._is_enabled or now - self._last_print < (0.1 if self._is_terminal else _LINE_SECONDS):
            return
        self._last_print = now
        print(self._line(now), end="" if self._is_terminal else "\n", file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        position, first = self._bookmark.position, self._first
        seconds = max(now - self._start, 1e-9)
        parts = [f"read {position.tokens:,} tokens"]
        if self._characters:
            left = (
                (self._characters - position.characters)
                * seconds
                / max(position.characters - first.characters, 1)
            )
            parts += [f"{position.characters / self._characters:.0%}", f"ETA {left:,.0f} s"]
        parts += [
            f"{(position.tokens - first.tokens) / seconds:,.0f} tokens/s",
            self._describe(position),
        ]
        return ("\r" if self._is_terminal else "") + "  ".join(parts)
