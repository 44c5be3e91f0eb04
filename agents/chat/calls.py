"""Split a streamed answer into text and tool calls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from scrubjay.agents.chat.constraint import CALL_BEGIN, CALL_END

_HEAD = re.compile(r'\n\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')
_TAIL = f"}}\n{CALL_END}"


class CallPart(NamedTuple):
    """Part of a streamed tool call: first the tool's name, then pieces of the arguments in JSON."""

    index: int
    name: str | None
    arguments: str


class CallSplitter:
    """Incremental parser of answers in the syntax of `tool_grammar`; yields text and parts of calls."""

    def __init__(self) -> None:
        self._buffer = ""
        self._index = -1
        self._in_call = self._has_name = False

    def push(self, piece: str) -> Iterator[str | CallPart]:
        """Add a piece of the answer; yield the text and call parts that are complete."""
        self._buffer += piece
        while True:
            before = self._buffer
            yield from self._in_arguments() if self._in_call else self._in_text()
            if self._buffer == before:
                return

    def finish(self) -> Iterator[str | CallPart]:
        """Yield the text or call part that is in the buffer at the end of the answer."""
        rest, self._buffer = self._buffer, ""
        if rest and self._has_name:
            yield CallPart(self._index, None, rest)
        elif rest and not self._in_call:
            yield rest

    def _in_text(self) -> Iterator[str]:
        text, mark, after = self._buffer.partition(CALL_BEGIN)
        between_calls = self._index >= 0
        if mark:
            self._buffer, self._in_call, self._has_name = after, True, False
            self._index += 1
        else:
            # Buffer an incomplete mark at the end of the text.
            sizes = (size for size in range(len(CALL_BEGIN) - 1, 0, -1) if text.endswith(CALL_BEGIN[:size]))
            cut = len(text) - next(sizes, 0)
            text, self._buffer = text[:cut], text[cut:]
        # Drop the line break between calls.
        if text and not (between_calls and text.isspace()):
            yield text

    def _in_arguments(self) -> Iterator[CallPart]:
        if not self._has_name:
            head = _HEAD.match(self._buffer)
            if head is None:
                return
            self._has_name, self._buffer = True, self._buffer[head.end() :]
            yield CallPart(self._index, json.loads(head[1]), "")
        arguments, tail, after = self._buffer.partition(_TAIL)
        if tail:
            self._buffer, self._in_call = after, False
        else:
            cut = max(0, len(arguments) - len(_TAIL) + 1)
            arguments, self._buffer = arguments[:cut], arguments[cut:]
        if arguments:
            yield CallPart(self._index, None, arguments)
