"""Bound on the text that a tokenizer makes of a text: each step may replace a character by others."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from typing import Any

MAX_GROWTH = 1000
"""Characters that a tokenizer may make of one. NFKC makes up to 18, and bytes are up to 4 per character."""
MAX_ADDED = 10_000
"""Characters or tokens that a tokenizer may add to every text. Honest tokenizers add a few."""
MAX_WORD = 1000
"""Characters of the longest word that WordPiece splits, in quadratic time. The usual limit is 100."""
_FACTORS = {
    "BertNormalizer": 9,
    "ByteLevel": 4,
    "ByteFallback": 4,
    "NFC": 3,
    "NFD": 4,
    "NFKC": 18,
    "NFKD": 18,
    "Metaspace": 3,
}
_PARTS = ("normalizers", "pretokenizers", "processors", "decoders")


class TokenizerLimitError(ValueError):
    """A tokenizer makes too much text of a text; the message names the limit."""


def check_growth(tokenizer: Any) -> None:
    """Raise TokenizerLimitError if a tokenizer of the package tokenizers can make a huge text of a short one.

    Args:
        tokenizer: Object of the class `tokenizers.Tokenizer`.
    """
    for names in (("normalizer", "pre_tokenizer"), ("decoder",)):
        growth, size = 1.0, 0.0
        for step in (step for name in names for step in _steps(getattr(tokenizer, name))):
            factor, extra = _measure(step)
            growth, size = growth * factor, size * factor + extra
            if growth > MAX_GROWTH:
                raise TokenizerLimitError(
                    f"its {' and '.join(names)} can make more than {MAX_GROWTH:,} characters of one character"
                )
            if size > MAX_ADDED:
                raise TokenizerLimitError(
                    f"its {' and '.join(names)} add more than {MAX_ADDED:,} characters to a text"
                )
    for step in _steps(tokenizer.post_processor):
        pieces = [*(step.get("single") or ()), *(step.get("pair") or ())]
        special = step.get("special_tokens") or {}
        ids = sum(len(mark.get("ids", ())) for mark in special.values()) if isinstance(special, dict) else 0
        if len(pieces) * max(ids, 1) > MAX_ADDED:
            raise TokenizerLimitError(f"its post-processor adds more than {MAX_ADDED:,} tokens to a text")
    longest = getattr(tokenizer.model, "max_input_chars_per_word", 0)
    if longest > MAX_WORD:
        raise TokenizerLimitError(f"max_input_chars_per_word={longest:,}: limit {MAX_WORD:,}")


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """Yield the settings of the steps of a normalizer, pre-tokenizer, post-processor or decoder."""
    if part is None:
        return
    waiting = [json.loads(part.__getstate__())]
    while waiting:
        settings = waiting.pop(0)
        inner = next((settings[name] for name in _PARTS if name in settings), None)
        if inner is None:
            yield settings
        else:
            waiting = [*inner, *waiting]


def _measure(step: dict[str, Any]) -> tuple[float, float]:
    """Return the factor by which a step can make a text longer, and the characters that it adds."""
    kind = step.get("type")
    if kind == "Prepend":
        return 1, len(step["prepend"])
    if kind == "Replace":
        pattern, content = step["pattern"], step["content"]
        if "String" in pattern:
            length = len(pattern["String"])
            return (max(1, len(content) / length), 0) if length else (len(content) + 1, len(content))
        return max(1, len(content) + 1), len(content)  # a regular expression may match an empty text
    if kind == "Precompiled":
        return max(1, _longest_text(step.get("precompiled_charsmap") or "")), 0
    return _FACTORS.get(str(kind), 1), 1


def _longest_text(charsmap: str | list[int]) -> int:
    """Return the length of the longest text in sentencepiece's table of replacements."""
    data = bytes(charsmap) if isinstance(charsmap, list) else base64.b64decode(charsmap)
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return max(map(len, texts.split(b"\0")), default=0) or math.ceil(len(data) / 4)
