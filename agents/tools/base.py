"""Results and errors of tool calls, and recorded results for offline use and for tests."""

from __future__ import annotations

import json
import os
import threading
import warnings
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from langchain_core.tools import ToolException

from scrubjay.agents.language.prompts import LocalizedError, Prompts, load_prompts
from scrubjay.agents.language.text import clean

Language = Literal["en", "zh"]
_MAX_REPLAY_BYTES = 2**28
"""Maximum size of a file of recorded answers."""


class ToolUnavailable(ToolException):
    """A tool cannot answer calls at present; the planner should choose another tool.

    Args:
        tool: Name of the tool.
        cause: Reason.
        hint: Alternative for the planner.
        offline: True if there was no network.
        language: Language of the message.
    """

    def __init__(
        self, tool: str, cause: str, hint: str = "", offline: bool = True, language: Language = "en"
    ) -> None:
        self.tool, self.cause, self.hint, self.offline = tool, cause, hint, offline
        name = "tool_offline" if offline else "tool_unavailable"
        super().__init__(load_prompts(language).say(name, tool=tool, cause=cause, hint=hint).strip())


class ToolArgumentError(LocalizedError, ValueError):
    """The tool cannot work with the value of an argument."""


class UnreachableError(LocalizedError, OSError):
    """A server did not answer in time; `offline` is True if a missing network is the likely cause."""

    def __init__(self, name: str, /, offline: bool = True, **values: object) -> None:
        super().__init__(name, **values)
        self.offline = offline


@dataclass(frozen=True)
class ToolResult:
    """Result of a tool call: text for the planner, its sources, and the data as JSON."""

    text: str
    """Text for the planner."""
    urls: tuple[str, ...] = ()
    """Addresses of the sources."""
    data: Any = None
    """Result as JSON values, for programs."""
    recorded_on: str | None = None
    """Date on which a replayed answer was recorded, as YYYY-MM-DD; None for a live answer."""


class Replay:
    """Recorded answers in a JSONL file; the file is created if it does not exist.

    A line has `tool`, `language`, `arguments`, `recorded` (YYYY-MM-DD), `text`, `urls` and `data`. If several
    lines have the same call, the last line counts. Each line is appended in one write, so several processes
    may record into one file. An unreadable line is skipped with a warning. A killed process may leave such a
    line.

    Raises:
        ValueError: If the path is not a regular file, or if the file is too large.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._answers: dict[str, ToolResult] = {}
        self._lock = threading.Lock()
        for number, line in enumerate(_read_file(self.path).splitlines(), 1):
            if line.strip():
                self._read(number, line)

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, tool: str, language: Language, arguments: dict[str, Any]) -> ToolResult | None:
        """Return the recorded answer of a call; None if no answer was recorded.

        `recorded_on` of the returned answer is the date of the recording.

        Args:
            tool: Name of the tool.
            language: Language of the call.
            arguments: Arguments of the call.
        """
        return self._answers.get(_key(tool, language, arguments))

    def add(
        self, tool: str, language: Language, arguments: dict[str, Any], answer: ToolResult, day: date
    ) -> None:
        """Append the answer of a call to the file.

        Args:
            tool: Name of the tool.
            language: Language of the call.
            arguments: Arguments of the call.
            answer: Answer to record.
            day: Date of the answer.
        """
        record = {
            "tool": tool,
            "language": language,
            "arguments": arguments,
            "recorded": day.isoformat(),
            "text": answer.text,
            "urls": list(answer.urls),
            "data": answer.data,
        }
        line = json.dumps(record, ensure_ascii=False).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            self._answers[_key(tool, language, arguments)] = _answer(record)
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(file).st_size
                is_incomplete = size and os.pread(file, 1, size - 1) != b"\n"
                os.write(
                    file, (b"\n" if is_incomplete else b"") + line + b"\n"
                )  # one write: lines of processes never mix
            finally:
                os.close(file)

    def _read(self, number: int, line: bytes) -> None:
        try:
            record = json.loads(line.decode("utf-8"))
            self._answers[_key(record["tool"], record["language"], record["arguments"])] = _answer(record)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = (
                "it is not UTF-8" if isinstance(error, UnicodeDecodeError)
                else "it is nested too deeply" if isinstance(error, RecursionError)
                else f"it lacks {error}" if isinstance(error, KeyError)
                else str(error) if isinstance(error, ValueError)
                else "a field has another type"
            )  # fmt: skip
            warnings.warn(
                f"{self.path}, line {number}: skipped, not a recorded answer ({reason})",
                stacklevel=3,
            )


def _read_file(path: Path) -> bytes:
    """Return the content of a file of recorded answers; empty if it does not exist."""
    if not path.exists():
        return b""
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file; give a file of recorded answers")
    if (size := path.stat().st_size) > _MAX_REPLAY_BYTES:
        raise ValueError(f"{path} has {size:,} bytes: the limit is {_MAX_REPLAY_BYTES:,}; give another file")
    return path.read_bytes()


def _key(tool: str, language: str, arguments: dict[str, Any]) -> str:
    return json.dumps([tool, language, arguments], sort_keys=True, ensure_ascii=False)


def _answer(record: dict[str, Any]) -> ToolResult:
    day = date.fromisoformat(record["recorded"]).isoformat()
    return ToolResult(str(record["text"]), tuple(record["urls"]), record["data"], day)


def describe_faults(error: Any, prompts: Prompts) -> str:
    """Describe the faults that pydantic's `error` contains, in the language of `prompts`.

    A rare fault has no template in `prompts`. Its description is pydantic's message in English.
    """
    faults = []
    for fault in error.errors():
        name, message = f"fault_{fault['type']}", fault["msg"]
        if name in prompts.names:
            context = fault.get("ctx", {})
            message = prompts.say(
                name, **{placeholder: context[placeholder] for placeholder in prompts.placeholders(name)}
            )
        faults.append(f"{'.'.join(map(str, fault['loc'])) or 'arguments'}: {message}")
    return clean("; ".join(faults))
