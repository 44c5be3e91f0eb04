"""Clean, truncate and count text written by models and tools."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from scrubjay.memory.bank.record import MAX_TEXT_LENGTH

_NOTE = 100  # characters reserved for the note about the cut
_WIDE = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")


def clean(text: str) -> str:
    """Return `text` without lone surrogates and null characters, which UTF-8 and some stores cannot hold."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def truncate_for_storage(text: str, say: Callable[..., str]) -> str:
    """Cut `text` to the maximum length of a memory record; a text that is cut ends with a note.

    Args:
        text: Text of any length.
        say: Method `Prompts.say` for the language in which the note is written.
    """
    if len(text) <= MAX_TEXT_LENGTH:
        return text
    head = text[: MAX_TEXT_LENGTH - _NOTE]
    return f"{head}\n{say('cut', count=len(text) - len(head))}"


def clean_value(value: object) -> object:
    """Return a JSON value with all strings cleaned by `clean`."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key)): clean_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_value(item) for item in value]
    return value


def iterate_objects(text: str, tries: int) -> Iterator[dict[str, Any] | None]:
    """Yield the JSON objects in a text, in order; None for a brace at which no valid object begins.

    At most `tries` braces are tried.
    """
    decoder, place = json.JSONDecoder(), text.find("{")
    for _ in range(tries):
        if place < 0:
            return
        value, end = None, place + 1
        with contextlib.suppress(ValueError, RecursionError):
            value, end = decoder.raw_decode(text, place)
        yield value
        place = text.find("{", end)


def is_question(text: str) -> bool:
    """Return True if `text` ends in a question mark of any script."""
    return text.rstrip().endswith(("?", "？", "؟"))


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of `text`: 1 per Chinese, Japanese or Korean character, 1/4 per other character."""
    wide = len(_WIDE.findall(text))
    return wide + (len(text) - wide + 3) // 4
