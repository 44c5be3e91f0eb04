"""A chat model of langchain over any transformers causal LM, with a context policy inside.

The model is on this machine and needs no server. A conversation may go on without end: the policy says what
the cache keeps of it, and a turn reads only what is new since the last one.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import torch
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import PrivateAttr, model_validator

from scrubjay.agents.chat.answer import Answer, AnswerConfig, crop
from scrubjay.agents.chat.calls import CallPart, CallSplitter
from scrubjay.agents.chat.conversations import Conversation, KeptConversations
from scrubjay.agents.chat.form import AnswerFormat
from scrubjay.agents.chat.loaded import LoadedModel, load
from scrubjay.agents.chat.prompt import write_prompt
from scrubjay.agents.chat.sampling import Sampling
from scrubjay.agents.chat.structured import parsed
from scrubjay.memory import context

# What hosted models take and a local one has no use for; others' code may pass it.
_HOSTED = {"api_key", "base_url", "timeout", "max_retries"}


class LocalChatModel(BaseChatModel):
    """Chat with a causal LM in this process: `LocalChatModel(model="smollm2").invoke("Hello")`.

    Conversations are kept: messages that go on with one, as its caller has it, cost only what is new.
    `config={"configurable": {"thread_id": "anna"}}` names a conversation; unnamed ones are found by their
    text. Tool calls and structured output are valid by construction, whatever the model
    (`agents.chat.constraint`).

    Raises ValueError on settings that cannot work; a model that is not there is told on first use.
    """

    model: Any = "smollm2"
    """A name ("smollm2"), a folder, a GGUF file, or a ready `(model, tokenizer)` of transformers."""
    policy: Any = "sinks"
    """What the cache keeps: a name of `memory.context.list_policies()` or a `ContextPolicy`."""
    budget: int = 1024
    """Tokens that a policy given by name keeps, where it has a budget."""
    temperature: float = 0.0
    """0 takes the likeliest token always; above, tokens are drawn."""
    top_p: float = 0.95
    """Tokens are drawn among the likeliest ones that have this much probability together."""
    seed: int | None = None
    """Makes answers repeatable."""
    max_tokens: int = 512
    """Tokens of an answer at most."""
    stop: list[str] | None = None
    """An answer ends before the first of these texts."""
    call_bias: float = 0.0
    """Makes a model that may call a tool do so more often; small ones want some 4, in units of logits."""
    max_conversations: int = 8
    """Conversations whose caches are kept; what was used longest ago goes first."""
    chat_template: str | None = None
    """A Jinja template in place of the tokenizer's."""
    dtype: str = "float32"
    """Of the weights, by its name in torch; a ready model has its own."""
    device: str = "cpu"
    """Where the model is; a ready model stays where it is."""
    trust: bool = False
    """Admit pickled weights and PEFT adapters in a folder. Python code in it is never run."""
    marked: bool = False
    """Whether caches tell what they keep of a conversation (`PolicyCache.kept`), at four numbers a value."""
    streaming: bool = False
    """Whether `invoke` goes through the stream, so that callbacks see tokens."""

    _kept: KeptConversations = PrivateAttr()
    _held: dict[str | tuple[int, ...], LoadedModel] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, given: Any) -> Any:
        known = set(cls.model_fields) | _HOSTED
        unknown = sorted(set(given) - known) if isinstance(given, dict) else []
        if unknown:
            raise ValueError(f"LocalChatModel has no setting {', '.join(unknown)}")
        return given

    @model_validator(mode="after")
    def _check(self) -> LocalChatModel:
        self._answer_config(None, {})
        context.check_dtype(self.dtype)
        self._kept = KeptConversations(self.max_conversations)
        _ = self.context_policy
        return self

    def _resolve_model_profile(self) -> ModelProfile:
        # No `max_input_tokens`: the policy bounds the cache, not the text.
        return ModelProfile(
            text_inputs=True,
            text_outputs=True,
            image_inputs=False,
            tool_calling=True,
            tool_choice=True,
            tool_call_streaming=True,
            structured_output=True,
            temperature=True,
        )

    @property
    def loaded(self) -> LoadedModel:
        """The model in memory; loaded on first use."""
        return self._load(self.model)

    @property
    def context_policy(self) -> context.ContextPolicy:
        """What the cache of a new conversation keeps; one that has begun stays with what it began with."""
        if not isinstance(self.policy, str):
            return self.policy
        policy = context.make(self.policy)
        if hasattr(policy, "budget"):
            policy = dataclasses.replace(cast("Any", policy), budget=self.budget)
        return policy

    @property
    def tokens_in_view(self) -> int | None:
        """Tokens of a prompt that the model still sees when the longest answer ends; None: any number.

        Raises ValueError if the policy's budget has no room for them.
        """
        lengths = [getattr(self.context_policy, "budget", None), self.loaded.trained_length]
        known = [length for length in lengths if length is not None]
        if not known:
            return None
        seen = min(known)
        if seen <= self.max_tokens:
            raise ValueError(
                f"the model sees {seen} tokens (budget={self.budget}), and max_tokens={self.max_tokens} of "
                "an answer leave none of a prompt; raise the budget or lower max_tokens"
            )
        return seen - self.max_tokens

    @property
    def _llm_type(self) -> str:
        return "scrubjay-local"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self._name(self.model), "policy": repr(self.context_policy)}

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        parallel_tool_calls: bool = False,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return the model with tools that it may call.

        `tool_choice`: "auto" (default) lets it answer or call, "any", "required" or True makes it call, the
        name of a tool makes it call that one, "none" or False keeps it from calling. Raises ValueError on the
        name of a tool that is not there.
        """
        functions = [convert_to_openai_tool(tool) for tool in tools]
        AnswerFormat.of({"tools": functions, "tool_choice": tool_choice})
        return cast(
            "Runnable[LanguageModelInput, AIMessage]",
            self.bind(
                tools=functions, tool_choice=tool_choice, parallel_tool_calls=parallel_tool_calls, **kwargs
            ),
        )

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: str = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Return the model with answers of this schema: a pydantic class, a TypedDict or a JSON schema.

        `method`: "json_schema" and "json_mode" make the whole answer this JSON, "function_calling" makes it
        the arguments of a call. Answers always match, so `strict` changes nothing.
        """
        del strict
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        if method not in ("json_schema", "json_mode"):
            raise ValueError(
                f"method={method!r}: choose from 'json_schema', 'function_calling' and 'json_mode'"
            )
        if kwargs:
            raise ValueError(f"with_structured_output has no setting {', '.join(sorted(kwargs))}")
        plain = convert_to_json_schema(schema)
        wanted = {"type": "json_schema", "json_schema": {"name": plain["title"], "schema": plain}}
        model = self.bind(
            response_format=wanted,
            ls_structured_output_format={"kwargs": {"method": method}, "schema": schema},
        )
        return parsed(model, schema, include_raw)

    def get_token_ids(self, text: str) -> list[int]:
        """Return the tokens that a text takes in a prompt, by the model's own tokenizer."""
        return self.loaded.tokenize(self.loaded.control_tokens.plain(text))

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence | None = None) -> int:
        """Return the tokens of the prompt that these messages make."""
        functions = [convert_to_openai_tool(tool) for tool in tools or ()]
        prompt = write_prompt(self.loaded.tokenizer, messages, functions, template=self.chat_template)
        return len(self.loaded.tokenize(prompt))

    def cache_bytes(self, thread_id: str | None = None) -> int:
        """Return the bytes of the keys and values kept of the conversation used last under this name."""
        kept = self._kept.newest(thread_id)
        return kept.cache.nbytes() if kept else 0

    def save_conversation(self, folder: str | Path, thread_id: str | None = None) -> None:
        """Write what is kept of a conversation to disk. Raises ValueError if there is none of this name."""
        kept = self._kept.newest(thread_id)
        if kept is None:
            raise ValueError(f"no conversation {thread_id!r} is kept; there is one after the first answer")
        kept.save(Path(folder))

    def load_conversation(self, folder: str | Path, thread_id: str | None = None) -> None:
        """Take up what `save_conversation` wrote, under this name: its next turn reads only what is new.

        Raises ValueError if the folder holds none, or one of another model or policy.
        """
        self._kept.put(Conversation.load(Path(folder), self.context_policy, self.loaded, thread_id))

    def forget_conversation(self, thread_id: str | None = None) -> None:
        """Drop what is kept under this name; None drops all that have no name."""
        self._kept.forget(thread_id)

    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """Return the answer."""
        return super().invoke(input, config, **_with_thread(config, kwargs))

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """Return the answer."""
        return await super().ainvoke(input, config, **_with_thread(config, kwargs))

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """Give the answer as it comes."""
        return super().stream(input, config, **_with_thread(config, kwargs))

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """Give the answer as it comes."""
        async for chunk in super().astream(input, config, **_with_thread(config, kwargs)):
            yield chunk

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        chunks = [chunk.message for chunk in self._stream(messages, stop, **kwargs)]
        whole = cast("AIMessageChunk", chunks[0])
        for chunk in chunks[1:]:
            whole = cast("AIMessageChunk", whole + chunk)
        message = AIMessage(
            content=whole.content,
            tool_calls=whole.tool_calls,
            invalid_tool_calls=whole.invalid_tool_calls,
            response_metadata=whole.response_metadata,
            usage_metadata=whole.usage_metadata,
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        loaded = self._load(kwargs.get("model", self.model))
        began = time.perf_counter()
        config, wanted = self._answer_config(stop, kwargs), AnswerFormat.of(kwargs)
        prompt = write_prompt(
            loaded.tokenizer, messages, wanted.tools, wanted.instruction, self.chat_template
        )
        constraint = wanted.constraint(loaded)
        conversation, new_tokens = self._open(loaded, prompt, _thread(kwargs))
        try:
            answer = Answer(loaded, conversation, prompt, new_tokens, config, constraint)
        except ValueError:
            if conversation.text:
                self._kept.put(conversation)
            raise
        splitter, called = CallSplitter(), False

        def chunks(parts: Iterator[str | CallPart]) -> Iterator[ChatGenerationChunk]:
            for part in parts:
                chunk = ChatGenerationChunk(message=_chunk(part))
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

        try:
            with closing(iter(answer)) as pieces:
                for piece in pieces:
                    if wanted.tools:
                        for chunk in chunks(splitter.push(piece)):
                            called = called or bool(cast("AIMessageChunk", chunk.message).tool_call_chunks)
                            yield chunk
                    elif piece:
                        yield from chunks(iter([piece]))
                yield from chunks(splitter.finish())
        except GeneratorExit:
            self._kept.put(conversation)
            raise
        self._kept.put(conversation)
        reason = "tool_calls" if called and answer.finish_reason == "stop" else answer.finish_reason
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                chunk_position="last",
                response_metadata={
                    "model_name": self._name(kwargs.get("model", self.model)),
                    "finish_reason": reason,
                    "cache_bytes": conversation.cache.nbytes(),
                    "seconds": time.perf_counter() - began,
                },
                usage_metadata={
                    "input_tokens": answer.prompt_tokens,
                    "output_tokens": answer.tokens,
                    "total_tokens": answer.prompt_tokens + answer.tokens,
                    "input_token_details": {"cache_read": answer.cached_tokens},
                },
            )
        )

    def _open(
        self, loaded: LoadedModel, prompt: str, thread: str | None
    ) -> tuple[Conversation, Sequence[int]]:
        """Return the conversation that the prompt goes on with, or a new one, and what it has not read."""
        kept = self._kept.take(prompt, loaded, thread)
        if kept is not None and prompt.startswith(kept.text):
            new = kept.pending + loaded.tokenize(prompt[len(kept.text) :])
            if new:
                return kept, new
        # Asked again: back to where the last answer began, and read the last token again for what comes next.
        if kept is not None and crop(kept, kept.asked_length - 1):
            kept.text, kept.pending = kept.asked, [kept.asked_last]
            return kept, kept.pending + loaded.tokenize(prompt[len(kept.asked) :])
        tokens = loaded.tokenize(prompt)
        branched = self._kept.branch(tokens, loaded, thread, self.context_policy)
        if branched is not None:
            return branched, tokens[branched.cache.get_seq_length() :]
        cache = context.PolicyCache(self.context_policy, loaded.model, self.marked)
        return Conversation(cache, loaded, thread, head=tokens), tokens

    def _load(self, source: Any) -> LoadedModel:
        # Ready models are told apart by themselves: two may have one name.
        key = tuple(map(id, source)) if isinstance(source, tuple) else str(source)
        if key not in self._held:
            self._held[key] = load(source, getattr(torch, self.dtype), self.device, self.trust)
        return self._held[key]

    def _name(self, source: Any) -> str:
        if isinstance(source, tuple):
            return Path(getattr(source[0], "name_or_path", "") or type(source[0]).__name__).name
        return str(source)

    def _answer_config(self, stop: list[str] | None, given: dict[str, Any]) -> AnswerConfig:
        """Return the settings of one call: what the call says, else what the model says."""
        field = {
            name: given.get(name, getattr(self, name))
            for name in ("temperature", "top_p", "seed", "max_tokens", "call_bias")
        }
        return AnswerConfig(
            max_tokens=field["max_tokens"],
            sampling=Sampling(field["temperature"], field["top_p"]),
            seed=field["seed"],
            call_bias=field["call_bias"],
            stop=tuple(stop if stop is not None else self.stop or ()),
        )

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        config = self._answer_config(stop, kwargs)
        params = LangSmithParams(
            ls_provider="scrubjay",
            ls_model_name=self._name(kwargs.get("model", self.model)),
            ls_model_type="chat",
            ls_temperature=config.sampling.temperature,
            ls_max_tokens=config.max_tokens,
        )
        if config.stop:
            params["ls_stop"] = list(config.stop)
        return params


def _chunk(part: str | CallPart) -> AIMessageChunk:
    if isinstance(part, str):
        return AIMessageChunk(content=part)
    new_id = f"call_{uuid.uuid4().hex[:24]}" if part.name is not None else None
    call = tool_call_chunk(name=part.name, args=part.arguments, id=new_id, index=part.index)
    return AIMessageChunk(content="", tool_call_chunks=[call])


def _with_thread(config: RunnableConfig | None, given: dict[str, Any]) -> dict[str, Any]:
    thread = ensure_config(config).get("configurable", {}).get("thread_id")
    return {"thread_id": thread, **given} if thread is not None else given


def _thread(given: dict[str, Any]) -> str | None:
    thread = given.get("thread_id", ensure_config().get("configurable", {}).get("thread_id"))
    return None if thread is None else str(thread)
