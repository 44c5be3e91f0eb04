"""Text that can be stored, sent and counted, whatever a model or a tool wrote."""

from __future__ import annotations

import re
from collections.abc import Callable

from scrubjay.memory.bank.file.record import LONGEST_TEXT

_NOTE = 100  # characters for how much is cut
_WIDE = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")


def clean(text: str) -> str:
    """Return `text` without lone surrogates and nulls, which neither UTF-8 nor every store can hold."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def storable(text: str, say: Callable[..., str]) -> str:
    """Return `text` as a memory bank takes it: of one that is too long the head, and how much is cut.

    Args:
        text: Any.
        say: Of the `Prompts` in whose language it is told.
    """
    if len(text) <= LONGEST_TEXT:
        return text
    head = text[: LONGEST_TEXT - _NOTE]
    return f"{head}\n{say('cut', count=len(text) - len(head))}"


def clean_value(value: object) -> object:
    """Return a JSON value whose strings are clean."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key)): clean_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_value(item) for item in value]
    return value


def is_question(text: str) -> bool:
    """Return whether `text` ends in a question mark of any script, as what only asks does."""
    return text.rstrip().endswith(("?", "？", "؟"))


def estimate_tokens(text: str) -> int:
    """Return about the tokens of `text`: one for a Chinese, Japanese or Korean letter, or for four others."""
    wide = len(_WIDE.findall(text))
    return wide + (len(text) - wide + 3) // 4
