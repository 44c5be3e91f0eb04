"""Tell text from tool calls in an answer that is still coming."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from scrubjay.agents.chat.constraint import CALL_BEGIN, CALL_END

_HEAD = re.compile(r'\n\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')
_TAIL = f"}}\n{CALL_END}"


class CallPart(NamedTuple):
    """A part of a call: the first has its name, all have more of its arguments' JSON."""

    index: int
    name: str | None
    arguments: str


class CallSplitter:
    """Takes an answer piece by piece; gives back text, and parts of calls as `tool_grammar` spells them."""

    def __init__(self) -> None:
        self._waiting = ""
        self._index = -1
        self._in_call = self._named = False

    def push(self, piece: str) -> Iterator[str | CallPart]:
        """Give what is clear now that `piece` has come."""
        self._waiting += piece
        while True:
            before = self._waiting
            yield from self._in_arguments() if self._in_call else self._in_text()
            if self._waiting == before:
                return

    def finish(self) -> Iterator[str | CallPart]:
        """Give what waited, now that nothing follows."""
        rest, self._waiting = self._waiting, ""
        if rest and self._named:
            yield CallPart(self._index, None, rest)
        elif rest and not self._in_call:
            yield rest

    def _in_text(self) -> Iterator[str]:
        text, mark, after = self._waiting.partition(CALL_BEGIN)
        between_calls = self._index >= 0
        if mark:
            self._waiting, self._in_call, self._named = after, True, False
            self._index += 1
        else:
            # The begin of a mark may be all that has come of it.
            sizes = (size for size in range(len(CALL_BEGIN) - 1, 0, -1) if text.endswith(CALL_BEGIN[:size]))
            cut = len(text) - next(sizes, 0)
            text, self._waiting = text[:cut], text[cut:]
        # Between calls there is nothing but a line's end.
        if text and not (between_calls and text.isspace()):
            yield text

    def _in_arguments(self) -> Iterator[CallPart]:
        if not self._named:
            head = _HEAD.match(self._waiting)
            if head is None:
                return
            self._named, self._waiting = True, self._waiting[head.end() :]
            yield CallPart(self._index, json.loads(head[1]), "")
        arguments, tail, after = self._waiting.partition(_TAIL)
        if tail:
            self._waiting, self._in_call = after, False
        else:
            cut = max(0, len(arguments) - len(_TAIL) + 1)
            arguments, self._waiting = arguments[:cut], arguments[cut:]
        if arguments:
            yield CallPart(self._index, None, arguments)
