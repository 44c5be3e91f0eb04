"""Text that users, models and third parties wrote: clean it, count it, cut it, and mark it as data.

The marks show that untrusted text is data, and name its source. Untrusted text cannot forge the marks. Marks
and provenance do not make a model safe by themselves (adaptive attacks, arXiv 2606.26479). The taint flag,
which blocks tools with side effects after untrusted text was read, does not rely on the model.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from scrubjay.agents.language.prompts import Prompts
from scrubjay.memory.bank.record import MAX_TEXT_LENGTH

if TYPE_CHECKING:  # the help of a command must not wait for the import of langchain
    from langchain_core.messages import BaseMessage

_taint_flag: ContextVar[bool] = ContextVar("tainted", default=True)
_MAX_SOURCE = 200  # characters of a source in a mark
_NOTE = 100  # characters reserved for the note about the cut
_CHARACTERS_PER_TOKEN = 4  # typical number
_MAX_CHARACTERS_PER_TOKEN = 16  # maximum in nearly every text
_WIDE = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")
_MARKS = re.compile(r"<{2,}|>{2,}|[«»《》]{2,}|[＜＞]{2,}")
# Control tokens of current models: <|im_end|>, <｜end▁of▁sentence｜>, </s>, <end_of_turn>, [/INST].
_CONTROL_MARKS = re.compile(
    r"<[|｜][^<>\s]{1,64}?[|｜]>"
    r"|</?(?:s|bos|eos|pad|unk|cls|sep|mask|(?:start|end)_of_(?:turn|text|image)|unused\d+"
    r"|tools|tool_calls?|tool_responses?|think|thought|function_calls?|(?:repo|file)_[a-z]+|jupyter_[a-z]+)>"
    r"|\[/?(?:INST|(?:AVAILABLE_)?TOOLS|TOOL_(?:CALLS|RESULTS|CONTENT)|SYSTEM_PROMPT|THINK|ARGS"
    r"|IMG(?:_END|_BREAK)?|PREFIX|MIDDLE|SUFFIX)\]|<</?SYS>>",
    re.IGNORECASE,
)

_BLOCK_TYPE = re.compile(r"[a-z][a-z0-9_-]{0,30}")
# Unicode tag characters: invisible to a human reader, readable by a model.
_HIDDEN = re.compile("[\U000e0000-\U000e007f]")


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


def make_token_counter(model: Any) -> Callable[[str], int]:
    """Return a function that counts the tokens of a text with the tokenizer of `model`.

    If `model.tokens_in_view` does not exist or is None, the function estimates the number.
    """
    return estimate_tokens if getattr(model, "tokens_in_view", None) is None else model.get_num_tokens


def fence(text: str, source: str, trust: str, prompts: Prompts) -> str:
    """Return `text` between two marks that the text cannot forge; the first names `source` and `trust`."""
    number = secrets.token_hex(4)
    note = prompts.say("data_note", source=_one_line(source), trust=_one_line(trust))
    return f"<<<{note} {number}>>>\n{escape_marks(text)}\n<<<END {number}>>>"


def escape_marks(text: str) -> str:
    """Clean `text`, split strings that look like data marks, and remove invisible tag characters."""
    return _MARKS.sub(_defuse, _HIDDEN.sub("", clean(text)))


def escape_control_tokens(text: str) -> str:
    """Return `text` with a zero-width space in every string that is a control token of some model.

    Use this function if the tokenizer is unknown. For a known tokenizer use `scrubjay.memory.context.quotes`.
    """
    return _CONTROL_MARKS.sub(lambda mark: f"{mark.group()[0]}\u200b{mark.group()[1:]}", text)


def find_dropped_blocks(content: Any) -> tuple[str, ...]:
    """Return the types of the blocks in a message's content that are not text, such as `image`."""
    if isinstance(content, str):
        return ()
    types = [str(block.get("type")) for block in content if isinstance(block, dict)]
    return tuple(one if _BLOCK_TYPE.fullmatch(one) else "unknown" for one in types if one != "text")


def describe_content(message: BaseMessage, prompts: Prompts) -> str:
    """Return the text of a message, with a note at its end on the parts that are not text, such as images.

    A message of a model has no such note, because its other parts are calls and reasoning.
    """
    text, blocks = clean(message.text), find_dropped_blocks(message.content)
    if not blocks or message.type in ("ai", "AIMessageChunk"):
        return text
    note = prompts.say("dropped", blocks=", ".join(blocks))
    return f"{text}\n{note}" if text.strip() else note


def truncate_text(
    text: str, tokens: int, count_tokens: Callable[[str], int], prompts: Prompts
) -> tuple[str, int]:
    """Return the beginning of `text`, about `tokens` tokens at most, and the number of characters cut.

    A text that is cut ends with a note.
    """
    if len(text) <= _MAX_CHARACTERS_PER_TOKEN * tokens and count_tokens(text) <= tokens:
        return text, 0
    # Count piece by piece: a long text is tokenized only as far as it is returned, plus about one piece.
    length, size = 0, _CHARACTERS_PER_TOKEN * tokens
    while size and length < len(text):
        count = count_tokens(text[length : length + size])
        if count <= tokens:
            length, tokens = length + size, tokens - count
        else:
            size //= 2
    if length >= len(text):
        return text, 0
    return f"{text[:length]}\n{prompts.say('cut', count=len(text) - length)}", len(text) - length


@contextlib.contextmanager
def taint_scope(value: bool) -> Iterator[None]:
    """Set the taint flag for tools in this scope; True means that untrusted text was read before the call."""
    token = _taint_flag.set(value)
    try:
        yield
    finally:
        _taint_flag.reset(token)


def is_tainted() -> bool:
    """Return the taint flag of the running tool; outside any `taint_scope` the flag is True.

    False means that no untrusted text was read before the call of the tool.
    """
    return _taint_flag.get()


def find_sources(arguments: dict[str, Any], artifact: Any) -> tuple[str, ...]:
    """Return the source addresses of a result: `urls` of its artifact, or else the call's argument `url`."""
    urls = artifact.get("urls") if isinstance(artifact, dict) else None
    if isinstance(urls, list | tuple):
        return tuple(clean(str(url)) for url in urls)
    return (clean(arguments["url"]),) if isinstance(arguments.get("url"), str) else ()


def _defuse(marks: re.Match[str]) -> str:
    return " ".join(marks.group())


def _one_line(text: str) -> str:
    line = _MARKS.sub(_defuse, " ".join(clean(text).split()))
    return line if len(line) <= _MAX_SOURCE else f"{line[: _MAX_SOURCE - 1]}…"
