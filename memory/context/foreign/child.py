"""Trial of a model's tokenizer and chat templates, in a process of its own with limits and without torch.

`scrubjay.memory.context.foreign.trial` starts this process. It reads a request and writes a verdict, both as
JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from typing import Any

MAX_SECONDS = 2.0
"""CPU seconds to tokenize one text of about 3,000 characters. Honest tokenizers take milliseconds."""
MAX_TOKENS_PER_CHARACTER = 32
_REPEATS = 3000
_LETTERS = "".join(map(chr, range(32, 127)))
_OTHER = "\n\t\réßжあ中한אا🙂\u200b\u0301\ufdfa\u2581\u0120\u3000\xa0"
_MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello. <b>1 + 1?</b>\n"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Why?"},
]
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        },
    }
]
_EVENTS = ("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "pty.")


def main() -> None:
    """Read a request from stdin, try the model within the limits, and write the verdict to stdout."""
    sys.dont_write_bytecode = True
    request = json.load(sys.stdin)
    _limit(request)
    verdict: dict[str, str | None] = {"limit": None, "error": None}
    try:
        from transformers import AutoTokenizer

        sys.addaudithook(_refuse_effects)
        options = {} if request["gguf_file"] is None else {"gguf_file": request["gguf_file"]}
        _try_all(
            AutoTokenizer.from_pretrained(
                request["folder"], local_files_only=True, trust_remote_code=False, **options
            )
        )
    except MemoryError:
        verdict["limit"] = f"it needs more than {request['data_bytes'] >> 20:,} MiB of memory"
    except Exception as error:  # noqa: BLE001  readers of damaged files raise all kinds of errors
        kind = "limit" if type(error).__name__.endswith("LimitError") else "error"
        text = " ".join(str(error).split())[:1000]
        verdict[kind] = text if kind == "limit" else f"{type(error).__name__}: {text}"
    except BaseException as error:  # noqa: BLE001  Rust code panics
        verdict["limit"] = f"its tokenizer fails: {' '.join(str(error).split())[:300]}"
    sys.stdout.write(f"\n{json.dumps(verdict)}\n")
    sys.stdout.flush()
    os._exit(0)


def _limit(request: dict[str, Any]) -> None:
    """Limit CPU time, memory, files and processes of this process; Windows has no such limits."""
    try:
        import resource
    except ImportError:
        return
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CPU: request["cpu_seconds"],
        resource.RLIMIT_DATA: request["data_bytes"],
        resource.RLIMIT_AS: request["data_bytes"] + request["mapped_bytes"],
    }
    for kind, value in limits.items():
        _, hard = resource.getrlimit(kind)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with suppress(ValueError, OSError):  # macOS refuses some limits of memory
            resource.setrlimit(kind, (most, most))


def _refuse_effects(event: str, args: tuple[Any, ...]) -> None:
    """Audit hook that refuses connections, processes, and files opened for writing."""
    is_write = event == "open" and isinstance(args[1], str) and any(mark in args[1] for mark in "wax+")
    if is_write or event.startswith(_EVENTS):
        raise PermissionError(f"the trial of a model may not use {event}")


def _try_all(tokenizer: Any) -> None:
    from scrubjay.memory.context.foreign.growth import check_growth

    _limit_processes()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        check_growth(backend)
    for text in ["", "a", _LETTERS, *(letter * _REPEATS + _LETTERS for letter in _LETTERS + _OTHER)]:
        _try_text(tokenizer, text)
    _try_text(tokenizer, "".join(chr(code) for code in range(32, 0x3000)))
    tokens = list(range(min(len(tokenizer), 1000)))
    _bound(len(tokenizer.decode(tokens)), sum(map(len, tokenizer.convert_ids_to_tokens(tokens))) + 10_000)
    _try_templates(tokenizer)


def _try_text(tokenizer: Any, text: str) -> None:
    start = time.process_time()
    tokens = tokenizer(text, verbose=False)["input_ids"]
    if (seconds := time.process_time() - start) > MAX_SECONDS:
        raise TrialLimitError(
            f"its tokenizer takes {seconds:.1f} s for {len(text):,} characters, limit {MAX_SECONDS:g} s"
        )
    _bound(len(tokens), MAX_TOKENS_PER_CHARACTER * len(text) + 1000)


def _bound(size: int, most: int) -> None:
    if size > most:
        raise TrialLimitError(f"its tokenizer makes {size:,} tokens or characters of a text, limit {most:,}")


class TrialLimitError(ValueError):
    """A model exceeds a limit of its trial."""


def _try_templates(tokenizer: Any) -> None:
    """Render fixed conversations. A template may refuse them, but not exceed its steps."""
    from scrubjay.memory.context.foreign.meter import TemplateLimitError
    from scrubjay.memory.context.foreign.rendering import render_chat

    templates = getattr(tokenizer, "chat_template", None) or {}
    templates = templates if isinstance(templates, dict) else {"default": templates}
    for template in templates.values():
        for messages in (_MESSAGES[1:2], _MESSAGES[1:], _MESSAGES):
            for tools in (None, _TOOLS):
                try:
                    render_chat(tokenizer, template, messages, tools, add_generation_prompt=True)
                except TemplateLimitError:
                    raise
                except ValueError as error:  # a template may fail
                    if isinstance(error.__cause__, MemoryError):
                        raise error.__cause__ from None


def _limit_processes() -> None:
    """Allow no further processes and threads; the superuser has no such limit, and neither has Windows."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    except (ImportError, AttributeError, ValueError, OSError):
        return
