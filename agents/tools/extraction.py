"""Program of a child process that parses foreign data, one request after another, each with its own limits.

`processes` starts this file by its path. It therefore imports neither Scrubjay nor torch. The arguments of
the program are the entries of Python's path. A request is a line of JSON with `task`, `cpu_seconds`,
`memory`, `size` and the arguments of the task, followed by `size` bytes. An answer is a line of JSON with
`size`, or with `error`, `type` and `package`, followed by `size` bytes. The program ends when its input ends.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any


def extract_main_text(content: bytes, url: str, is_utf8: bool) -> bytes:
    """Return the main text of an HTML page."""
    import trafilatura

    return _encode(trafilatura.extract(_page(content, is_utf8), url=url) or "")


def extract_all_text(content: bytes, is_utf8: bool) -> bytes:
    """Return the text of an HTML page with menus and footers, in linear time."""
    import trafilatura

    return _encode(trafilatura.html2txt(_page(content, is_utf8)))


def search_web(_: bytes, options: dict[str, Any]) -> bytes:
    """Return the results of a web search as JSON."""
    from ddgs import DDGS

    search = DDGS(timeout=options["seconds"])
    hits = search.text(options["query"], region=options["region"], max_results=options["count"])
    return _encode(json.dumps(hits))


TASKS = {
    "extract_main_text": (extract_main_text, "trafilatura"),
    "extract_all_text": (extract_all_text, "trafilatura"),
    "search_web": (search_web, "ddgs"),
}
"""Function of each task, and the package that it imports."""


def set_limits(cpu_seconds: int, memory: int) -> None:
    """Limit this process to `cpu_seconds` more of CPU time and to `memory` bytes of data, and forbid files.

    The system ends a process that takes more CPU time, also inside a library. Does nothing where the system
    has no such limits, as Windows. macOS does not limit the memory.
    """
    try:
        import resource
    except ImportError:
        return
    import signal

    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    cpu_limit = math.ceil(time.process_time()) + cpu_seconds
    for kind, limit in (
        (resource.RLIMIT_CPU, cpu_limit),
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def answer(request: dict[str, Any], content: bytes) -> tuple[dict[str, Any], bytes]:
    """Run the task of a request. Return the head and the content of the answer."""
    task, package = TASKS[request.pop("task")]
    limits = request.pop("cpu_seconds"), request.pop("memory")
    try:
        __import__(package)  # does not count against the limits
        set_limits(*limits)
        result = task(content, **request)
    except Exception as error:  # noqa: BLE001  a library failed on foreign data
        head = {"error": str(error)[:1000], "type": type(error).__name__}
        if isinstance(error, ModuleNotFoundError):
            head["package"] = error.name or package
        return head, b""
    return {"size": len(result)}, result


def main() -> None:
    """Answer requests until the input ends."""
    sys.path[:] = sys.argv[1:]
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a library that prints must not write into an answer
    while line := requests.readline():
        request = json.loads(line)
        head, content = answer(request, requests.read(request.pop("size")))
        answers.write(_encode(json.dumps(head)) + b"\n" + content)
        answers.flush()


def _page(content: bytes, is_utf8: bool) -> bytes | str:
    return content.decode("utf-8") if is_utf8 else content


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "replace")


if __name__ == "__main__":
    main()
