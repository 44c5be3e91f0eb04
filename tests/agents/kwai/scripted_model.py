"""Chat model with scripted replies, tool calls, usage and streaming, without network."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, PrivateAttr

Reply = str | AIMessage | Exception


class ScriptedModel(BaseChatModel):
    """Chat model that replies from a list or by a function of the messages, and records its prompts.

    Usage counts one token per word, so that a test can compute it.
    """

    replies: list[Any] = Field(default_factory=list, repr=False)
    rule: Callable[[list[BaseMessage]], Reply] | None = None
    binds: bool = True
    model: str = "scripted"
    _prompts: list[list[BaseMessage]] = PrivateAttr(default_factory=list)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @property
    def prompts(self) -> list[list[BaseMessage]]:
        """Prompts so far."""
        return self._prompts

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        if not self.binds:
            raise NotImplementedError
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _generate(
        self, messages: list[BaseMessage], stop=None, run_manager=None, **kwargs: Any
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._next(messages))])

    def _stream(
        self, messages: list[BaseMessage], stop=None, run_manager=None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        message = self._next(messages)
        words = message.text.split(" ")
        pieces = [word if index == len(words) - 1 else f"{word} " for index, word in enumerate(words)]
        for piece in pieces:
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece, id=message.id))
            if run_manager:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                id=message.id,
                tool_call_chunks=[
                    tool_call_chunk(
                        name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=index
                    )
                    for index, call in enumerate(message.tool_calls)
                ],
                usage_metadata=message.usage_metadata,
                response_metadata=message.response_metadata,
                chunk_position="last",
            )
        )

    def _next(self, messages: list[BaseMessage]) -> AIMessage:
        with self._lock:
            self._prompts.append(list(messages))
            if self.rule is not None:
                reply = self.rule(messages)
            elif self.replies:
                reply = self.replies.pop(0)
            else:
                raise AssertionError("there are no more scripted replies")
        if isinstance(reply, BaseException):
            raise reply
        message = AIMessage(reply) if isinstance(reply, str) else reply
        input_tokens = sum(len(part.text.split()) for part in messages)
        output_tokens = len(message.text.split()) + len(message.tool_calls)
        return message.model_copy(
            update={
                "usage_metadata": {
                    "input_tokens": input_tokens,
                    "output_tokens": output_tokens,
                    "total_tokens": input_tokens + output_tokens,
                },
                "response_metadata": {"model_name": "scripted"},
            }
        )


def call(name: str, /, id: str = "call_1", reply_text: str = "", **arguments: Any) -> AIMessage:
    """Return a reply that calls one tool."""
    return AIMessage(
        reply_text, tool_calls=[{"name": name, "args": arguments, "id": id, "type": "tool_call"}]
    )


def plan(task_name: str, tool: str, /, **arguments: Any) -> str:
    """Return a reply with a JSON plan."""
    return json.dumps({"task_name": task_name, "command": {"name": tool, "args": arguments}})
