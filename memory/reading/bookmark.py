"""The place a reader has reached in a long text: kept on disk, shown to who waits."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

SAVE_SECONDS = 5.0
"""Time between savings."""
_LINE_SECONDS = 30.0


@dataclass(frozen=True)
class Sentence:
    """A sentence, or a part of one too long, and its tokens."""

    text: str
    """What joins to the text it is of."""
    tokens: tuple[int, ...]
    """Its tokens, alone."""


class Place(NamedTuple):
    """How far a text is read."""

    characters: int
    tokens: int
    kept: list[Sentence]
    digest: str
    """SHA-256 of what was read."""


class Bookmark:
    """How far a text is read, and what was kept of it: in memory, and in a file if a path is given.

    Raises ValueError if the file is of other `settings`, or damaged.
    """

    def __init__(self, path: Path | None, settings: str) -> None:
        self.path, self.settings = path, settings
        self.place = Place(0, 0, [], hashlib.sha256().hexdigest())
        self._digest = hashlib.sha256()
        self._skipped = False
        self._saved = time.monotonic()
        if path is not None and path.exists():
            self._load(path)

    def parts(self, sentences: Iterable[str], cut: Callable[[str], Iterable[Sentence]]) -> Iterator[Sentence]:
        """Give the cut sentences that are not read yet.

        Raises ValueError if those before are not what was read.
        """
        at, place = 0, self.place
        for text in sentences:
            if at + len(text) <= place.characters:  # not cut: that takes the tokenizer's time
                at = self._skip(text, at)
                continue
            for part in cut(text):
                if at < place.characters:
                    at = self._skip(part.text, at)
                    continue
                self._check(at)
                yield part
        self._check(at)

    def turn(self, chunk: Iterable[Sentence], kept: list[Sentence]) -> None:
        """Note that a chunk was read and what is kept since."""
        chunk = list(chunk)
        text = "".join(sentence.text for sentence in chunk)
        self._digest.update(text.encode(errors="surrogatepass"))
        # In one go: Ctrl-C may come between any two statements.
        self.place = Place(
            self.place.characters + len(text),
            self.place.tokens + sum(len(sentence.tokens) for sentence in chunk),
            kept,
            self._digest.hexdigest(),
        )
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        self._saved = time.monotonic()
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "settings": self.settings,
            "characters": self.place.characters,
            "tokens": self.place.tokens,
            "digest": self.place.digest,
            "kept": [[sentence.text, sentence.tokens] for sentence in self.place.kept],
        }
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text(json.dumps(state), encoding="utf-8")
        os.replace(beside, self.path)

    def _load(self, path: Path) -> None:
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            settings = state["settings"]
            kept = [Sentence(text, tuple(tokens)) for text, tokens in state["kept"]]
            self.place = Place(state["characters"], state["tokens"], kept, state["digest"])
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no place in a text ({error}); delete it to begin anew") from error
        if settings != self.settings:
            raise ValueError(
                f"{path} is of another question or other settings; give another file, or delete it"
            )

    def _skip(self, text: str, at: int) -> int:
        self._digest.update(text.encode(errors="surrogatepass"))
        return at + len(text)

    def _check(self, at: int) -> None:
        """Compare what was skipped, once, with what was read."""
        if not self._skipped and (at, self._digest.hexdigest()) != (self.place.characters, self.place.digest):
            raise ValueError(f"{self.path} is of another text; give another file, or delete it")
        self._skipped = True


class Watch:
    """Shows on stderr how a text is being read, and saves the bookmark when reading ends, however it ends."""

    def __init__(self, bookmark: Bookmark, characters: int | None, enabled: bool) -> None:
        self._bookmark, self._characters, self._enabled = bookmark, characters, enabled
        self._live = sys.stderr.isatty()
        self._began = self._said = time.monotonic()
        self._first = bookmark.place

    def __enter__(self) -> Self:
        self._first = self._bookmark.place
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bookmark.save()
        if self._enabled and self._live:
            print(file=sys.stderr)

    def update(self) -> None:
        """Show the place now: on a terminal at once, elsewhere a line now and then."""
        now = time.monotonic()
        if not self._enabled or now - self._said < (0.1 if self._live else _LINE_SECONDS):
            return
        self._said = now
        print(self._line(now), end="" if self._live else "\n", file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        place, first = self._bookmark.place, self._first
        seconds = max(now - self._began, 1e-9)
        parts = [f"read {place.tokens:,} tokens"]
        if self._characters:
            left = (
                (self._characters - place.characters) * seconds / max(place.characters - first.characters, 1)
            )
            parts += [f"{place.characters / self._characters:.0%}", f"ETA {left:,.0f} s"]
        parts += [
            f"{(place.tokens - first.tokens) / seconds:,.0f} tokens/s",
            f"{len(place.kept)} sentences kept",
        ]
        return ("\r" if self._live else "") + "  ".join(parts)
