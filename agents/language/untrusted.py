"""Text from outside is data: its beginning, end and source are marked, and it cannot forge the marks.

Delimiters and provenance do not make a model safe by themselves (adaptive attacks, arXiv 2606.26479); the
flag that keeps tools with side effects shut after such text was read does not rely on the model at all.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from scrubjay.agents.language.prompts import Prompts
from scrubjay.agents.language.text import clean

_tainted: ContextVar[bool] = ContextVar("tainted", default=True)
_LETTERS, _MOST_LETTERS = 4, 16  # of a token, about and in nearly every text at most
_MARKS = re.compile(r"<{2,}|>{2,}|[«»《》]{2,}|[＜＞]{2,}")

TAINTED = "scrubjay_tainted"
"""In the metadata of an answer that was written after text from outside was read."""

# As the models of these years spell them: <|im_end|>, <｜end▁of▁sentence｜>, </s>, <end_of_turn>, [/INST].
_CONTROL_MARKS = re.compile(
    r"<[|｜][^<>\s]{1,64}?[|｜]>"
    r"|</?(?:s|bos|eos|pad|unk|cls|sep|mask|(?:start|end)_of_(?:turn|text|image)|unused\d+"
    r"|tools|tool_calls?|tool_responses?|think|thought|function_calls?|(?:repo|file)_[a-z]+|jupyter_[a-z]+)>"
    r"|\[/?(?:INST|(?:AVAILABLE_)?TOOLS|TOOL_(?:CALLS|RESULTS|CONTENT)|SYSTEM_PROMPT|THINK|ARGS"
    r"|IMG(?:_END|_BREAK)?|PREFIX|MIDDLE|SUFFIX)\]|<</?SYS>>",
    re.IGNORECASE,
)

# Letters that no reader sees and a model reads all the same.
_HIDDEN = re.compile("[\U000e0000-\U000e007f]")


def fence(text: str, source: str, trust: str, prompts: Prompts) -> str:
    """Return `text` between two marks that it cannot contain, naming its `source` and `trust`."""
    number = secrets.token_hex(4)
    note = prompts.say("data_note", source=_one_line(source), trust=_one_line(trust))
    return f"<<<{note} {number}>>>\n{without_marks(text)}\n<<<END {number}>>>"


def without_marks(text: str) -> str:
    """Return `text` clean, its marks broken, and without letters that only a model reads."""
    return _MARKS.sub(_defuse, _HIDDEN.sub("", clean(text)))


def without_control_marks(text: str) -> str:
    """Return `text` with a space of no width in what is a control token to some model, by its spelling.

    For texts of which nobody knows by which tokenizer they will be read; where it is known, ask
    `scrubjay.memory.context.quotes`.
    """
    return _CONTROL_MARKS.sub(lambda mark: f"{mark.group()[0]}\u200b{mark.group()[1:]}", text)


def cut(text: str, tokens: int, count_tokens: Callable[[str], int], prompts: Prompts) -> str:
    """Return the head of `text` of at most about `tokens`, with a note of how much is missing."""
    if len(text) <= _MOST_LETTERS * tokens and count_tokens(text) <= tokens:
        return text
    # Piece by piece, so that of a long text no more is counted than is kept, and twice a first piece.
    kept, size = 0, _LETTERS * tokens
    while size and kept < len(text):
        taken = count_tokens(text[kept : kept + size])
        if taken <= tokens:
            kept, tokens = kept + size, tokens - taken
        else:
            size //= 2
    if kept >= len(text):
        return text
    return f"{text[:kept]}\n{prompts.say('cut', count=len(text) - kept)}"


@contextlib.contextmanager
def telling_tools(tainted: bool) -> Iterator[None]:
    """Let the tools that run inside know whether text from outside was read before they were called."""
    token = _tainted.set(tainted)
    try:
        yield
    finally:
        _tainted.reset(token)


def is_tainted() -> bool:
    """Return, in a tool, whether who called it had read text from outside; where nobody tells, True."""
    return _tainted.get()


def sources_of(arguments: dict[str, Any], artifact: Any) -> tuple[str, ...]:
    """Return the addresses that a result came from, as its artifact or else the call names them."""
    named = artifact.get("urls") if isinstance(artifact, dict) else None
    if isinstance(named, list | tuple):
        return tuple(clean(str(url)) for url in named)
    return (clean(arguments["url"]),) if isinstance(arguments.get("url"), str) else ()


def _defuse(marks: re.Match[str]) -> str:
    return " ".join(marks.group())


def _one_line(text: str) -> str:
    return _MARKS.sub(_defuse, " ".join(clean(text).split()))[:200]
