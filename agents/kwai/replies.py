"""What a model's reply says, to the user and about itself, in the forms that providers have for it."""

from __future__ import annotations

import re
from typing import Any

from langchain_core.messages import AIMessage

from scrubjay.agents.language.text import clean, clean_value

_REASONS = ("finish_reason", "stop_reason", "stopReason", "done_reason")
_CUT = ("length", "max_tokens", "model_length", "max_output_tokens")
_OPEN, _CLOSE = "<think>", "</think>"
_THOUGHTS = re.compile(rf"\s*({_OPEN}.*?{_CLOSE}\s*)*", re.DOTALL)


def was_cut(reply: AIMessage) -> bool:
    """Return whether the reply ended at its limit of tokens, and so may be half of what was meant."""
    metadata = reply.response_metadata
    reasons = [metadata.get(name) for name in _REASONS]
    reasons.append((metadata.get("incomplete_details") or {}).get("reason"))
    return any(str(reason).lower() in _CUT for reason in reasons)


def said(reply: AIMessage) -> str:
    """Return the clean text of a whole reply, without the thoughts that some models write in front of it.

    Where the prompt opens their block, as the templates of DeepSeek-R1 and QwQ do, only `</think>` tells of
    them: all before it is thought, unless `<think>` stands there, too.
    """
    text = clean(reply.text)
    thought, closed, rest = text.partition(_CLOSE)
    return without_thoughts(rest.lstrip() if closed and _OPEN not in thought else text)


def without_thoughts(text: str) -> str:
    """Return `text` after the `<think>` blocks that it begins with; nothing, if it has not come so far.

    So the beginnings of a text give beginnings of what the whole of it gives. Of a block that the prompt
    opened, nothing is known before its end, so its text stays; `said` leaves it out.
    """
    thoughts = _THOUGHTS.match(text)
    assert thoughts is not None
    rest = text[thoughts.end() :]
    if rest.startswith(_OPEN) or _OPEN.startswith(rest):
        return ""
    return rest if thoughts[1] else text


def unfinished(text: str) -> str:
    """Return what to keep of `text`, of which nothing is said yet, so that what follows is read as after it.

    Of a thought that has not ended only its end matters, which may hold the begin of `</think>`.
    """
    thoughts = _THOUGHTS.match(text)
    assert thoughts is not None
    rest = text[thoughts.end() :]
    if rest.startswith(_OPEN):
        return _OPEN + rest[len(_OPEN) :][1 - len(_CLOSE) :]
    return f"{_OPEN}{_CLOSE}{rest}" if thoughts[1] else text


def thinking(reply: AIMessage) -> list[str | dict[Any, Any]]:
    """Return the blocks of thought that a provider (Anthropic) wants back with the calls they led to."""
    blocks = reply.content if isinstance(reply.content, list) else []
    kept: list[str | dict[Any, Any]] = []
    for block in blocks:
        if isinstance(block, dict) and block.get("type") in ("thinking", "redacted_thinking"):
            value = clean_value(block)
            assert isinstance(value, dict)
            kept.append(value)
    return kept
