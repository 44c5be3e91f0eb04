"""Langchain chat model over any causal LM of transformers, with a context policy for its KV cache.

The model runs in this process and needs no server. A conversation may have any length: the policy selects the
tokens that the cache retains. Each turn processes only the tokens that were added since the last turn.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import PrivateAttr, model_validator

from scrubjay.agents.chat.answer import Answer, AnswerConfig
from scrubjay.agents.chat.answer_format import AnswerFormat, CallPart, CallSplitter, parse_answers
from scrubjay.agents.chat.conversations import Conversation, ConversationStore
from scrubjay.agents.chat.language_model import LoadedModel, get_name, load
from scrubjay.agents.chat.prompt import write_prompt
from scrubjay.memory import context
from scrubjay.memory.context.policies.budget import resolve_budget

# Options of hosted models that a local one ignores; third-party code may pass them.
_HOSTED = {"api_key", "base_url", "timeout", "max_retries"}
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _with_thread(method: _Method) -> _Method:
    """Return a method of a chat model that passes the config's `thread_id` to the model, as an option."""

    @wraps(method)
    def call(
        self: BaseChatModel, input: LanguageModelInput, config: RunnableConfig | None = None, **options: Any
    ) -> Any:
        thread = ensure_config(config).get("configurable", {}).get("thread_id")
        return method(self, input, config, **({} if thread is None else {"thread_id": thread}) | options)

    return cast("_Method", call)


class LocalChatModel(BaseChatModel):
    """Chat with a causal LM in this process: `LocalChatModel(model="smollm2").invoke("Hello")`.

    The model stores the KV caches of conversations. If the messages continue a stored conversation, only new
    tokens are processed. `config={"configurable": {"thread_id": "anna"}}` names a conversation. An unnamed
    conversation is found by its text. With every model, constrained decoding makes tool calls and structured
    output valid (`agents.chat.constraint`).

    A model that does not exist raises an error on first use.

    Raises:
        ValueError: On invalid settings.
    """

    model: Any = "smollm2"
    """Name ("smollm2"), folder, GGUF file, or `(model, tokenizer)` pair of transformers."""
    policy: Any = "sinks"
    """Context policy of the cache: a name of `memory.context.list_policies()` or a `ContextPolicy`."""
    budget: int | None = None
    """Token budget of a policy that is passed by name; ignored if the policy has no budget. A policy that is
    passed as an object has its own budget. Default: the model's window, at most 8,192 tokens."""
    temperature: float = AnswerConfig.temperature
    """Sampling temperature; 0 selects the most likely token (greedy decoding)."""
    top_p: float = AnswerConfig.top_p
    """Nucleus sampling: sample from the most likely tokens with this total probability."""
    seed: int | None = None
    """Seed of the sampling; None selects a random seed."""
    max_tokens: int = AnswerConfig.max_tokens
    """Maximum number of tokens of an answer."""
    stop: list[str] | None = None
    """Stop sequences; an answer ends before the first stop sequence in its text."""
    call_bias: float = 0.0
    """Logit bias towards a tool call at the answer's first token; a bias of about 4 helps small models."""
    max_conversations: int = 8
    """Maximum number of stored conversations; the least recently used conversation is dropped first."""
    chat_template: str | dict[str, str] | None = None
    """Jinja template that replaces the tokenizer's chat template, or the name of one of its templates.

    A dictionary has templates by name: `tool_use` for prompts with tools, and `default` for all others."""
    dtype: str = "float32"
    """Torch dtype of the weights; ignored for a model passed as an object."""
    device: str = "cpu"
    """Device of the model; ignored for a model passed as an object."""
    trust: bool = False
    """Allow pickled weights and PEFT adapters in a folder. Python code in the folder is never run."""
    track_tokens: bool = False
    """Let caches record which tokens they retain (`PolicyCache.get_retained_tokens`).

    Each value vector then has four more coordinates.
    """
    streaming: bool = False
    """Let `invoke` generate the answer as a stream, so that callbacks receive each token."""

    _conversations: ConversationStore = PrivateAttr()
    _loaded_models: dict[str | tuple[int, ...], LoadedModel] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, options: Any) -> Any:
        known_names = set(cls.model_fields) | _HOSTED
        unknown = sorted(set(options) - known_names) if isinstance(options, dict) else []
        if unknown:
            raise ValueError(
                f"LocalChatModel: unknown setting {', '.join(unknown)}; pass fields of this class"
            )
        return options

    @model_validator(mode="after")
    def _check(self) -> LocalChatModel:
        self._answer_config(None, {})
        context.check_dtype(self.dtype)
        self._conversations = ConversationStore(self.max_conversations)
        self._make_policy()
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
    def loaded_model(self) -> LoadedModel:
        """Model in memory; loaded on first use."""
        return self._load(self.model)

    @property
    def context_policy(self) -> context.ContextPolicy:
        """Context policy of new conversations; the policies of stored conversations do not change.

        The default budget depends on the model, so the model is loaded.
        """
        return self._policy_for(self.loaded_model)

    def _policy_for(self, loaded_model: LoadedModel) -> context.ContextPolicy:
        policy = self._make_policy().for_tokenizer(loaded_model.tokenize)
        return resolve_budget(policy, loaded_model.trained_length)

    def _make_policy(self) -> context.ContextPolicy:
        if not isinstance(self.policy, str):
            if self.budget is not None:
                raise ValueError(
                    f"budget={self.budget}: the policy is the object {self.policy!r}, whose own budget "
                    "counts; omit budget, or pass the policy by name"
                )
            return self.policy
        policy = context.make(self.policy)
        if hasattr(policy, "budget") and self.budget is not None:
            policy = context.make(self.policy, budget=self.budget)
        return policy

    @property
    def tokens_in_view(self) -> int | None:
        """Maximum prompt length, in tokens, at which the complete prompt remains in view during the answer.

        The prompt and an answer of `max_tokens` tokens must together fit in the budget of the context policy
        and in the training length of the model. None if the policy has no budget and the training length is
        unknown. Raises ValueError if `max_tokens` leaves no tokens for a prompt.
        """
        lengths = [getattr(self.context_policy.inner, "budget", None), self.loaded_model.trained_length]
        bounds = [length for length in lengths if length is not None]
        if not bounds:
            return None
        view_length = min(bounds)
        if view_length <= self.max_tokens:
            limit, remedy = "the model's training length", "lower max_tokens"
            if view_length == lengths[0]:
                limit, remedy = "the policy's budget", "lower max_tokens or raise budget"
            raise ValueError(
                f"max_tokens={self.max_tokens} leaves no tokens for the prompt, because {limit} is "
                f"{view_length} tokens; {remedy}"
            )
        return view_length - self.max_tokens

    @property
    def _llm_type(self) -> str:
        return "scrubjay-local"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": get_name(self.model), "policy": repr(self._make_policy())}

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        parallel_tool_calls: bool = False,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return the model with tools that it may call.

        With `tool_choice` "auto" (default), the answer is text or a call. "any", "required" or True requires
        a call. The name of a tool requires a call of this tool. "none" or False forbids calls.

        Raises:
            ValueError: If `tool_choice` is the name of an unknown tool.
        """
        functions = [convert_to_openai_tool(tool) for tool in tools]
        AnswerFormat.from_options({"tools": functions, "tool_choice": tool_choice})
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
        """Return a model whose answers match `schema`: a pydantic class, a TypedDict or a JSON schema.

        With the methods "json_schema" and "json_mode", the whole answer is JSON. With "function_calling", the
        model calls a function, and the arguments of the call match the schema. Answers always match, so
        `strict` has no effect.
        """
        del strict
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        if method not in ("json_schema", "json_mode"):
            raise ValueError(
                f"method={method!r}: choose from 'json_schema', 'function_calling' and 'json_mode'"
            )
        if kwargs:
            raise ValueError(
                f"with_structured_output: unknown option {', '.join(sorted(kwargs))}; choose from "
                "include_raw, method, strict"
            )
        plain = convert_to_json_schema(schema)
        response_format = {"type": "json_schema", "json_schema": {"name": plain["title"], "schema": plain}}
        model = self.bind(
            response_format=response_format,
            ls_structured_output_format={"kwargs": {"method": method}, "schema": schema},
        )
        return parse_answers(model, schema, include_raw)

    def get_token_ids(self, text: str) -> list[int]:
        """Tokenize a text as part of a prompt, with the control tokens in the text escaped."""
        return self.loaded_model.tokenize(self.loaded_model.control_tokens.escape(text))

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence | None = None) -> int:
        """Return the number of tokens of the prompt for these messages."""
        functions = [convert_to_openai_tool(tool) for tool in tools or ()]
        prompt = write_prompt(self.loaded_model.tokenizer, messages, functions, template=self.chat_template)
        return len(self.loaded_model.tokenize(prompt))

    def cache_bytes(self, thread_id: str | None = None) -> int:
        """Return the cache size, in bytes, of the latest conversation of this name; 0 if there is none."""
        conversation = self._conversations.latest(thread_id)
        return conversation.cache.nbytes() if conversation else 0

    def dropped_tokens(self, thread_id: str | None = None) -> int:
        """Return how many tokens of this conversation the policy has dropped from the cache; 0 if none."""
        conversation = self._conversations.latest(thread_id)
        return conversation.cache.dropped_tokens if conversation else 0

    def save_conversation(self, folder: str | Path, thread_id: str | None = None) -> None:
        """Save a conversation with its cache to a folder.

        Raises:
            ValueError: If `thread_id` is unknown.
        """
        conversation = self._conversations.latest(thread_id)
        if conversation is None:
            raise ValueError(
                f"thread_id={thread_id!r}: no stored conversation; call the model with this thread_id first"
            )
        conversation.save(Path(folder))

    def load_conversation(self, folder: str | Path, thread_id: str | None = None) -> None:
        """Load a conversation written by `save_conversation` and name it `thread_id`.

        The next call with this name can continue the conversation.

        Raises:
            ValueError: If the folder holds no conversation, or a conversation of another model or policy.
        """
        self._conversations.put(
            Conversation.load(Path(folder), self.context_policy, self.loaded_model, thread_id)
        )

    def forget_conversation(self, thread_id: str | None = None) -> None:
        """Delete the stored conversation `thread_id`; None deletes all unnamed conversations."""
        self._conversations.forget(thread_id)

    invoke = _with_thread(BaseChatModel.invoke)
    ainvoke = _with_thread(BaseChatModel.ainvoke)
    stream = _with_thread(BaseChatModel.stream)
    astream = _with_thread(BaseChatModel.astream)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        loaded_model = self._load(kwargs.get("model", self.model))
        start_time = time.perf_counter()
        config, answer_format = self._answer_config(stop, kwargs), AnswerFormat.from_options(kwargs)
        prompt = write_prompt(
            loaded_model.tokenizer,
            messages,
            answer_format.tools,
            answer_format.instruction,
            self.chat_template,
        )
        constraint = answer_format.build_constraint(loaded_model)
        conversation, new_tokens = self._open(loaded_model, prompt, _thread(kwargs))
        try:
            answer = Answer(loaded_model, conversation, prompt, new_tokens, config, constraint)
        except ValueError:
            if conversation.text:
                self._conversations.put(conversation)
            raise
        splitter, has_calls = CallSplitter(), False
        try:
            with closing(iter(answer)) as pieces:
                parts = chain.from_iterable(map(splitter.push, pieces)) if answer_format.tools else pieces
                for part in chain(filter(None, parts), splitter.finish()):
                    has_calls = has_calls or isinstance(part, CallPart)
                    chunk = ChatGenerationChunk(message=_chunk(part))
                    if run_manager is not None:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
        except GeneratorExit:
            self._conversations.put(conversation)
            raise
        self._conversations.put(conversation)
        conversation.cache.warn_of_dropped_tokens()
        reason = "tool_calls" if has_calls and answer.finish_reason == "stop" else answer.finish_reason
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                chunk_position="last",
                response_metadata={
                    "model_name": get_name(kwargs.get("model", self.model)),
                    "finish_reason": reason,
                    "cache_bytes": conversation.cache.nbytes(),
                    "dropped_tokens": conversation.cache.dropped_tokens,
                    "seconds": time.perf_counter() - start_time,
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
        self, loaded_model: LoadedModel, prompt: str, thread: str | None
    ) -> tuple[Conversation, Sequence[int]]:
        """Return a pair: the conversation for the prompt, continued or new, and the prompt's new tokens."""
        conversation = self._conversations.take(prompt, loaded_model, thread)
        if conversation is not None and prompt.startswith(conversation.text):
            new = conversation.pending + loaded_model.tokenize(prompt[len(conversation.text) :])
            if new:
                return conversation, new
        # The prompt is repeated: crop to the beginning of the last answer, and process the last token again.
        if conversation is not None and conversation.crop(conversation.last_prompt_length - 1):
            conversation.text, conversation.pending = (
                conversation.last_prompt,
                [conversation.last_prompt_token],
            )
            return conversation, conversation.pending + loaded_model.tokenize(
                prompt[len(conversation.last_prompt) :]
            )
        tokens = loaded_model.tokenize(prompt)
        policy = self._policy_for(loaded_model)
        branch = self._conversations.branch(tokens, loaded_model, thread, policy)
        if branch is not None:
            return branch, tokens[branch.cache.get_seq_length() :]
        cache = context.PolicyCache(policy, loaded_model.model, self.track_tokens)
        return Conversation(cache, loaded_model, thread, head=tokens), tokens

    def _load(self, source: Any) -> LoadedModel:
        # Model objects are distinguished by identity: two may have the same name.
        key = tuple(map(id, source)) if isinstance(source, tuple) else str(source)
        if key not in self._loaded_models:
            self._loaded_models[key] = load(source, getattr(torch, self.dtype), self.device, self.trust)
        return self._loaded_models[key]

    def _answer_config(self, stop: list[str] | None, options: dict[str, Any]) -> AnswerConfig:
        """Return the settings of one call: the options of the call override those of the model."""
        values = {
            name: options.get(name, getattr(self, name))
            for name in ("temperature", "top_p", "seed", "max_tokens", "call_bias")
        }
        return AnswerConfig(**values, stop=tuple(stop if stop is not None else self.stop or ()))

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        config = self._answer_config(stop, kwargs)
        params = LangSmithParams(
            ls_provider="scrubjay",
            ls_model_name=get_name(kwargs.get("model", self.model)),
            ls_model_type="chat",
            ls_temperature=config.temperature,
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


def _thread(options: dict[str, Any]) -> str | None:
    thread = options.get("thread_id", ensure_config().get("configurable", {}).get("thread_id"))
    return None if thread is None else str(thread)
