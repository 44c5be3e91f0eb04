"""Local server of OpenAI's chat completions with scripted replies; rejects requests that OpenAI rejects."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

KEY = "sk-test"
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_FIELDS = {
    "model", "messages", "tools", "tool_choice", "parallel_tool_calls", "response_format", "stream",
    "stream_options", "temperature", "top_p", "n", "stop", "seed", "user", "max_tokens",
    "max_completion_tokens", "reasoning_effort", "presence_penalty", "frequency_penalty",
    "logprobs", "top_logprobs", "logit_bias", "metadata", "store",
}  # fmt: skip
_MESSAGE_FIELDS = {
    "system": {"role", "content", "name"},
    "developer": {"role", "content", "name"},
    "user": {"role", "content", "name"},
    "assistant": {"role", "content", "name", "refusal", "tool_calls", "audio"},
    "tool": {"role", "content", "tool_call_id"},
}
_PARTS = {"user": {"text", "image_url", "input_audio", "file"}, "assistant": {"text", "refusal"}}


@dataclass(frozen=True)
class Says:
    """Reply with a message."""

    text: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    """Name and arguments of each call; the arguments are text as the model wrote it."""
    finish_reason: str | None = None
    """Finish reason; None for that of a complete reply."""


@dataclass(frozen=True)
class Fails:
    """Reply with a server error."""

    status: int
    message: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BreaksOff:
    """Close the connection after some pieces of a streamed reply."""

    pieces: int = 0


@dataclass(frozen=True)
class Hangs:
    """Send nothing for some seconds."""

    seconds: float


Reply = str | Says | Fails | BreaksOff | Hangs


def calls(name: str, /, **arguments: Any) -> Says:
    """Return a reply that calls one tool."""
    return Says(calls=((name, json.dumps(arguments)),))


class ChatServer:
    """Requests of a server and its scripted replies; the last reply is repeated."""

    def __init__(self, replies: list[Reply]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.rejections: list[str] = []
        """Error messages for invalid requests."""
        self.used_tokens = 0
        """Total tokens of all replies."""
        self.url = ""
        self._replies, self._lock = list(replies), threading.Lock()

    @property
    def prompts(self) -> list[list[dict[str, Any]]]:
        """Messages of each request."""
        return [request["messages"] for request in self.requests]

    def answer(self, request: Any) -> Reply:
        """Return the next reply, or an error if the request is invalid."""
        try:
            check(request)
        except ValueError as error:
            with self._lock:
                self.rejections.append(str(error))
            return Fails(400, str(error))
        with self._lock:
            self.requests.append(request)
            return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]


@contextmanager
def serve(*replies: Reply) -> Iterator[ChatServer]:
    """Run a server with these replies."""
    server = ChatServer(list(replies))
    stop_event = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/v1/chat/completions":
                return self._send(Fails(404, f"there is no {self.path}"))
            if self.headers.get("Authorization") != f"Bearer {KEY}":
                return self._send(Fails(401, "Incorrect API key provided: sk-wr***ng."))
            try:
                request = json.loads(body.decode("utf-8"))
            except ValueError:
                return self._send(Fails(400, "the body is not JSON in UTF-8"))
            reply = server.answer(request)
            if isinstance(reply, Hangs):
                stop_event.wait(reply.seconds)
                self.close_connection = True
                return None
            if isinstance(reply, Fails):
                return self._send(reply)
            if isinstance(reply, BreaksOff) and not (request.get("stream") and reply.pieces):
                self.close_connection = True
                return None
            if request.get("stream"):
                return self._stream(reply, request)
            whole = _whole(reply, request)
            server.used_tokens += whole["usage"]["total_tokens"]
            return self._write(200, whole)

        def _send(self, failure: Fails) -> None:
            kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
                failure.status, "server_error" if failure.status >= 500 else "invalid_request_error"
            )
            error = {"message": failure.message, "type": kind, "param": None, "code": None}
            self._write(failure.status, {"error": error}, failure.headers)

        def _write(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _stream(self, reply: Any, request: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            server.used_tokens += _whole(reply, request)["usage"]["total_tokens"]
            for index, chunk in enumerate([*map(json.dumps, _chunks(reply, request)), "[DONE]"]):
                if isinstance(reply, BreaksOff) and index == reply.pieces:
                    self.close_connection = True
                    return
                piece = f"data: {chunk}\n\n".encode()
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(sys.exc_info()[1], OSError):  # clients may disconnect
                super().handle_error(request, client_address)

    http = Quiet(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        stop_event.set()
        http.shutdown()
        http.server_close()


def check(request: Any) -> None:
    """Raise ValueError on a request that OpenAI or a stricter compatible server rejects."""
    _check_fields(request, _FIELDS, "the request")
    if not (isinstance(request.get("model"), str) and request["model"]):
        raise ValueError("you must provide a model")
    if not (isinstance(request.get("messages"), list) and request["messages"]):
        raise ValueError("messages must be a list that is not empty")
    if "stream_options" in request and not request.get("stream"):
        raise ValueError("stream_options is only allowed with stream")
    if "max_tokens" in request and "max_completion_tokens" in request:
        raise ValueError("max_tokens and max_completion_tokens exclude each other")
    if not 0 <= request.get("temperature", 1) <= 2:
        raise ValueError("temperature must be from 0 to 2")
    tools = request.get("tools")
    if tools is not None:
        _check_tools(tools)
    elif {"tool_choice", "parallel_tool_calls"} & request.keys():
        raise ValueError("tool_choice and parallel_tool_calls are only allowed with tools")
    _check_messages(request["messages"])


def _check_tools(tools: Any) -> None:
    if not (isinstance(tools, list) and tools):
        raise ValueError("tools must be a list that is not empty")
    for tool in tools:
        _check_fields(tool, {"type", "function"}, "a tool")
        _check_fields(tool.get("function"), {"name", "description", "parameters", "strict"}, "a function")
        function = tool["function"]
        if tool.get("type") != "function" or not _NAME.fullmatch(str(function.get("name"))):
            raise ValueError(f"tools: the name {function.get('name')!r} does not match {_NAME.pattern}")
        schema = function.get("parameters", {"type": "object"})
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"tools: invalid schema of {function['name']}: {error.message}") from None
        if schema.get("type") != "object":
            raise ValueError(f"tools: the schema of {function['name']} must be of type object")


def _check_messages(messages: list[Any]) -> None:
    waiting: set[str] = set()
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _MESSAGE_FIELDS:
            raise ValueError(f"{where}: unknown role {role!r}")
        _check_fields(message, _MESSAGE_FIELDS[role], where)
        if "name" in message and not _NAME.fullmatch(message["name"]):
            raise ValueError(f"{where}: name does not match {_NAME.pattern}")
        if role == "tool":
            if message.get("tool_call_id") not in waiting:
                raise ValueError(f"{where}: role tool must answer a preceding call of tool_calls")
            waiting.remove(message["tool_call_id"])
        elif waiting:
            raise ValueError(f"tool_calls must be followed by tool messages; none answers {sorted(waiting)}")
        if role == "assistant" and "tool_calls" in message:
            waiting = _check_calls(message["tool_calls"], where)
        _check_content(message, role, where)
    if waiting:
        raise ValueError(f"tool_calls must be followed by tool messages; none answers {sorted(waiting)}")


def _check_calls(calls: Any, where: str) -> set[str]:
    if not (isinstance(calls, list) and calls):
        raise ValueError(f"{where}: tool_calls must be a list that is not empty")
    for call in calls:
        _check_fields(call, {"id", "type", "function"}, f"{where}: a call")
        _check_fields(call.get("function"), {"name", "arguments"}, f"{where}: a function")
        if call.get("type") != "function" or not (isinstance(call.get("id"), str) and call["id"]):
            raise ValueError(f"{where}: a call needs the type function and an id")
        if not _NAME.fullmatch(str(call["function"].get("name"))):
            raise ValueError(f"{where}: the name of a call does not match {_NAME.pattern}")
        # OpenAI accepts any text here; servers that insert it into a template do not.
        if not isinstance(json.loads(call["function"]["arguments"]), dict):
            raise ValueError(f"{where}: arguments must be the text of a JSON object")  # noqa: TRY004
    ids = [call["id"] for call in calls]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{where}: ids of calls must differ, got {ids}")
    return set(ids)


def _check_content(message: dict[str, Any], role: str, where: str) -> None:
    content = message.get("content")
    if content is None and role == "assistant" and message.get("tool_calls"):
        return
    if isinstance(content, str):
        return
    if not (isinstance(content, list) and content):
        raise ValueError(f"{where}: content must be a text or a list of parts, not {content!r}")
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _PARTS.get(role, {"text"}):
            raise ValueError(f"{where}: a part of content has the type {kind!r}, which {role} cannot have")
        _check_fields(part, {"type", kind}, f"{where}: a part")
        if kind == "image_url":
            _check_fields(part.get("image_url"), {"url", "detail"}, f"{where}: image_url")
        elif kind == "text" and not isinstance(part.get("text"), str):
            raise ValueError(f"{where}: text must be a text")


def _check_fields(value: Any, names: set[str], where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object")  # noqa: TRY004
    unknown = sorted(set(value) - names)
    if unknown:
        raise ValueError(f"unrecognised argument of {where}: {', '.join(unknown)}")


def _message(reply: Any, number: int) -> tuple[dict[str, Any], str]:
    if isinstance(reply, BreaksOff):
        reply = "some words that do not come to an end " * 9
    says = Says(reply) if isinstance(reply, str) else reply
    message: dict[str, Any] = {"role": "assistant", "content": says.text or None, "refusal": None}
    if says.calls:
        message["tool_calls"] = [
            {
                "id": f"call_{number}_{index}",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
            for index, (name, arguments) in enumerate(says.calls)
        ]
    return message, says.finish_reason or ("tool_calls" if says.calls else "stop")


def _envelope(request: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": int(time.time()), "model": request["model"]}


def _usage(request: dict[str, Any], message: dict[str, Any]) -> dict[str, int]:
    """Return the usage, with one token per four characters of request and reply."""
    prompt_tokens, completion_tokens = (
        len(json.dumps(value)) // 4 for value in (request["messages"], message)
    )
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _whole(reply: Any, request: dict[str, Any]) -> dict[str, Any]:
    message, reason = _message(reply, len(request["messages"]))
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
    return {
        **_envelope(request, "chat.completion"),
        "choices": [choice],
        "usage": _usage(request, message),
    }


def _chunks(reply: Any, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a reply in pieces: words of its text, halves of the arguments of calls, finish reason, usage."""
    message, reason = _message(reply, len(request["messages"]))
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in re.findall(r"\S+\s*", message["content"] or "")]
    for index, call in enumerate(message.get("tool_calls", [])):
        arguments = call["function"]["arguments"]
        half = len(arguments) // 2
        first_half = {**call, "index": index, "function": {**call["function"], "arguments": arguments[:half]}}
        deltas.append({"tool_calls": [first_half]})
        deltas.append({"tool_calls": [{"index": index, "function": {"arguments": arguments[half:]}}]})
    envelope = _envelope(request, "chat.completion.chunk")
    for delta in deltas:
        yield {**envelope, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield {**envelope, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    if request.get("stream_options", {}).get("include_usage"):
        yield {**envelope, "choices": [], "usage": _usage(request, message)}
