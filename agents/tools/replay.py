"""Recorded answers of network tools as JSON lines, for offline use and for tests."""

from __future__ import annotations

import json
import os
import threading
import warnings
from datetime import date
from pathlib import Path
from typing import Any

from scrubjay.agents.tools.base import Language, ToolResult


class Replay:
    """Recorded answers in a JSONL file; the file is created if it does not exist.

    A line has `tool`, `language`, `arguments`, `recorded` (YYYY-MM-DD), `text`, `urls` and `data`. If several
    lines have the same call, the last line counts. Each line is appended in one write, so several processes
    may record into one file. An unreadable line is skipped with a warning. A killed process may leave such a
    line.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._answers: dict[str, ToolResult] = {}
        self._lock = threading.Lock()
        content = self.path.read_bytes() if self.path.exists() else b""
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                self._read(number, line)

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, tool: str, language: Language, arguments: dict[str, Any]) -> ToolResult | None:
        """Return the recorded answer of a call; None if no answer was recorded.

        `recorded_on` of the returned answer is the date of the recording.
        """
        return self._answers.get(_key(tool, language, arguments))

    def add(
        self, tool: str, language: Language, arguments: dict[str, Any], answer: ToolResult, day: date
    ) -> None:
        """Append the answer of a call to the file."""
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
            record = json.loads(line)
            self._answers[_key(record["tool"], record["language"], record["arguments"])] = _answer(record)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            warnings.warn(
                f"{self.path}, line {number}: skipped, not a recorded answer ({type(error).__name__}: "
                f"{error})",
                stacklevel=3,
            )


def _key(tool: str, language: str, arguments: dict[str, Any]) -> str:
    return json.dumps([tool, language, arguments], sort_keys=True, ensure_ascii=False)


def _answer(record: dict[str, Any]) -> ToolResult:
    day = date.fromisoformat(record["recorded"]).isoformat()
    return ToolResult(str(record["text"]), tuple(record["urls"]), record["data"], day)
