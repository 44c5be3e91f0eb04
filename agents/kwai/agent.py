"""KwaiAgent, a langchain Runnable around the agent loop."""

from __future__ import annotations

import inspect
import operator
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import reduce
from typing import Any, cast

from langchain_core.messages import BaseMessage, HumanMessage, ToolMessage, convert_to_messages
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from langchain_core.runnables.config import patch_config
from langchain_core.runnables.utils import AddableDict
from langchain_core.tools import BaseTool

from scrubjay.agents.kwai.context import (
    Profile,
    PromptBuilder,
    filter_dialogue,
    index_tools,
    prepare_for_binding,
    split_passages,
)
from scrubjay.agents.kwai.executor import Executor
from scrubjay.agents.kwai.limits import (
    Limits,
    Meter,
    make_limits,
    make_prompt_token_counter,
)
from scrubjay.agents.kwai.loop import AgentLoop
from scrubjay.agents.kwai.messages import repair_transcript
from scrubjay.agents.kwai.planner import Planner
from scrubjay.agents.kwai.runner import Loop, arun_loop, run_loop
from scrubjay.agents.kwai.turn import AgentMemory, Call, Passage, Turn
from scrubjay.agents.language.declarations import (
    UndeclaredToolWarning,
    describe_undeclared,
    is_third_party,
    is_trusted,
)
from scrubjay.agents.language.namespaces import check_literal, check_template, fill_template
from scrubjay.agents.language.prompts import load_prompts
from scrubjay.agents.language.provenance import (
    USER_NAMES,
    check_user_names,
    is_marked,
    is_untrusted,
    mark,
)
from scrubjay.agents.language.text import clean, make_token_counter

_PLANNING = ("auto", "native", "json")


class KwaiAgent(Runnable[Any, dict[str, Any]]):
    """Agent that answers questions with tools and a memory (KwaiAgents, Pan et al. 2023, arXiv 2312.04889).

    Input: a question, messages that end with a question, or a dictionary with `messages`, and optionally
    with the lists `knowledge` and `trusted_knowledge` of texts or documents.

    Output: a dictionary with `answer`, `steps`, `events`, `usage` and the following keys. `knowledge` is the
    list of knowledge texts. `messages` contains the input messages, every call with its result, and the
    answer. `stopped` is the reason why the run ended: finished, steps, tool_calls, tokens, seconds, refused,
    no_progress or unreadable_plan. `refused` contains the reasons for calls that were refused because
    untrusted text had been read. `tainted` is True if untrusted text was read. `recalled` contains the memory
    records of the last search. `dropped_tokens` is the largest number of tokens that the cache of a local
    model had dropped in a model call. Tokens that the agent leaves out of a prompt do not count.

    `stream` yields parts that add up to this dictionary, with the answer token by token. Some chat
    templates open a reasoning block at the end of the prompt. The agent can then separate the reasoning from
    the answer only after the block ends. A stream therefore includes the reasoning, but `messages` and the
    memory do not.

    `config={"configurable": {"namespace": (...), "thread_id": ...}}` selects the memory namespace and the
    conversation. The namespace in the config must be literal. The constructor also accepts a template.
    The model does not read system messages of the input, because the profile instructs the agent.

    `knowledge` is untrusted and taints the run, like tool results, whatever a document's metadata says.
    `trusted_knowledge` contains texts that the user wrote or checked. In `messages` only the user's messages
    and the agent's own answers are trusted, as `messages` of a result contains them. Answers without the mark
    in their `response_metadata`, summaries, and messages with a name that is not in `user_names` are
    untrusted (`agents/language/provenance.py`).

    Errors of the model and the memory propagate. Errors of a tool are reported to the planner.
    """

    def __init__(
        self,
        model: Runnable[Any, Any],
        tools: Sequence[BaseTool | Callable[..., Any]] = (),
        profile: Profile | None = None,
        memory: AgentMemory | None = None,
        max_steps: int = 5,
        *,
        limits: Limits | None = None,
        third_party_tools: Sequence[BaseTool | Callable[..., Any]] = (),
        declare: Mapping[str, str] | None = None,
        planning: str = "auto",
        approve: Callable[[Call], bool] | None = None,
        namespace: tuple[str, ...] = (),
        recall_limit: int = 6,
        user_names: Sequence[str] = USER_NAMES,
        count_tokens: Callable[[str], int] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        """Create an agent.

        Args:
            model: Chat model for plans and answers.
            tools: Tools that the agent may call; an agent without tools answers without a plan.
            profile: Name, description and prompt language of the agent.
            memory: Memory for questions, results and answers beyond the conversation; None for no memory.
            max_steps: Maximum number of tasks per question.
            limits: Limits on tokens, calls and seconds; None for the limits of `make_limits(model)`.
            third_party_tools: Additional tools whose descriptions third parties wrote, such as tools of MCP
                servers. MCP tools in `tools` are detected, too. Descriptions by third parties are untrusted
                data and taint the run from the start. The metadata of these tools is ignored, except for
                declarations by `scrubjay.agents.tool`.
            declare: Declarations of tools that you do not own, by name, such as `{"search": "reads"}`.
                "reads" is a tool without side effects. "writes" is a tool that changes the outside world and
                needs approval after untrusted text was read. "computes" is a tool without side effects whose
                results and description are trusted.
            planning: "native" plans by tool calls, "json" by JSON text. "auto" uses tool calls if the model
                supports tool calls, and JSON text if not.
            approve: Function that approves a risky call after untrusted text was read; only the result True
                approves. A call is risky if its tool is not declared free of side effects (by `declare`,
                `scrubjay.agents.tool(side_effect=False)` or metadata), or if the call contains an address
                that only the model wrote. Without this function, risky calls are not run, and undeclared
                tools raise an UndeclaredToolWarning here.
            namespace: Default namespace in the memory, for calls whose `config` has no namespace. A template
                such as `("user", "{user_id}")` is filled from the call's config["configurable"] and
                LangGraph's context.
            recall_limit: Maximum number of memory records in the prompt of each step.
            user_names: Values of `name` in messages of the user. A human message with another name is
                untrusted, because frameworks pass texts of tools and other agents in this way.
            count_tokens: Function that returns the number of tokens of a text; None for the functions of
                `make_token_counter` and `make_prompt_token_counter`.
            clock: Function that returns the current time with a time zone.

        Raises ValueError or TypeError on invalid arguments.
        """
        memory_like = 'an object with add and search, such as MemoryBank("facts.db")'
        checks: Any = (
            ("model", model, Runnable, "a chat model of langchain"),
            ("memory", memory, AgentMemory | None, memory_like),
            ("profile", profile, Profile | None, "a Profile"),
            ("limits", limits, Limits | None, "an instance of Limits"),
            ("approve", approve, (Callable, type(None)), "a function that takes a Call"),
            ("clock", clock, Callable, "a function that returns the current time"),
            ("max_steps", max_steps, int, "an integer"),
            ("recall_limit", recall_limit, int, "an integer"),
        )
        for name, value, kind, expected in checks:
            if not isinstance(value, kind):
                raise TypeError(f"{name}={value!r}: pass {expected}")
        if max_steps < 1:
            raise ValueError(
                f"max_steps={max_steps}: must be at least 1; pass no tools for an agent that plans no tasks"
            )
        if planning not in _PLANNING:
            raise ValueError(f"planning={planning!r}: choose from {', '.join(_PLANNING)}")
        if inspect.iscoroutinefunction(approve):
            raise TypeError(
                "approve is a coroutine function; pass an ordinary function, which the agent runs in a thread"
            )
        if recall_limit < 0:
            raise ValueError(f"recall_limit={recall_limit}: must not be negative")
        self.name = "KwaiAgent"
        self.profile = profile or Profile()
        self.limits = limits or make_limits(model)
        count_in_prompt = count_tokens or make_prompt_token_counter(model)
        count_tokens = count_tokens or make_token_counter(model)
        self.tools = index_tools(tools, third_party_tools, declare)
        if approve is None and (
            problem := describe_undeclared(self.tools.values(), alternative="approve=FUNCTION")
        ):
            warnings.warn(problem, UndeclaredToolWarning, stacklevel=2)
        self._namespace, self._user_names = check_template(namespace), check_user_names(user_names)
        self._count_tokens, self._count_in_prompt = count_tokens, count_in_prompt
        self._clock, self.max_steps = clock, max_steps
        self._prompts = load_prompts(self.profile.language)
        builder = PromptBuilder(
            self.profile, self._prompts, list(self.tools.values()), self.limits, count_in_prompt, max_steps
        )
        self._loop = AgentLoop(
            model,
            self._make_planner(model, planning, builder) if self.tools else None,
            Executor(self.tools, self._prompts, self.limits, count_tokens, approve),
            builder,
            memory if recall_limit else None,
            recall_limit,
            max_steps,
        )

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> dict[str, Any]:
        """Answer the question and return the complete result."""
        return self._call_with_config(self._invoke, input, config, **kwargs)

    async def ainvoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Answer the question on the event loop and return the complete result."""
        return await self._acall_with_config(self._ainvoke, input, config, **kwargs)

    def stream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[dict[str, Any]]:
        """Answer the question in parts that add up to the complete result."""
        yield from self._transform_stream_with_config(iter([input]), self._stream, config, **kwargs)

    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """Answer the question on the event loop in parts that add up to the complete result."""
        parts = self._atransform_stream_with_config(_yield_once(input), self._astream, config, **kwargs)
        async for part in parts:
            yield part

    def _invoke(self, input: Any, run_manager: Any, config: RunnableConfig) -> dict[str, Any]:
        parts = self._stream(iter([input]), run_manager, config, streaming=False)
        return dict(reduce(operator.add, parts, AddableDict()))

    async def _ainvoke(self, input: Any, run_manager: Any, config: RunnableConfig) -> dict[str, Any]:
        parts = self._astream(_yield_once(input), run_manager, config, streaming=False)
        return dict(reduce(operator.add, [part async for part in parts], AddableDict()))

    def _stream(
        self, inputs: Iterator[Any], run_manager: Any, config: RunnableConfig, streaming: bool = True
    ) -> Iterator[AddableDict]:
        config = patch_config(config, callbacks=run_manager.get_child())
        for part in run_loop(self._begin(reduce(operator.add, inputs), config, streaming), config):
            yield AddableDict(part)

    async def _astream(
        self, inputs: AsyncIterator[Any], run_manager: Any, config: RunnableConfig, streaming: bool = True
    ) -> AsyncIterator[AddableDict]:
        config = patch_config(config, callbacks=run_manager.get_child())
        whole = reduce(operator.add, [part async for part in inputs])
        async for part in arun_loop(self._begin(whole, config, streaming), config):
            yield AddableDict(part)

    def _begin(self, input: Any, config: RunnableConfig, streaming: bool) -> Loop:
        messages, knowledge = _read_input(input)
        messages = repair_transcript(messages, self._prompts)
        configurable = ensure_config(config).get("configurable", {})
        if "namespace" in configurable:
            namespace = check_literal(configurable["namespace"])
        else:
            namespace = fill_template(self._namespace, config)
        *earlier_messages, question = marked_messages = [
            mark(one, True) if is_untrusted(one, self._is_trusted_result, self._user_names) else one
            for one in messages
        ]
        dialogue, builder, planner = filter_dialogue(earlier_messages), self._loop.builder, self._loop.planner
        turn = Turn(
            user_message=cast("HumanMessage", question),
            dialogue=dialogue,
            window=builder.select_window(dialogue),
            knowledge=tuple(
                Passage(passage, document.trusted)
                for document in knowledge
                for passage in split_passages(document.text, self.limits.result_tokens, self._count_tokens)
            ),
            meter=Meter(self.limits, self._count_in_prompt),
            clock=self._clock,
            namespace=namespace,
            provenance={"thread": configurable["thread_id"]} if "thread_id" in configurable else {},
            streaming=streaming,
            is_tainted=any(map(is_third_party, self.tools.values()))
            or any(map(is_marked, marked_messages))
            or not all(document.trusted for document in knowledge),
        )
        # Build the prompt once before anything is stored: it raises an error if the question does not fit.
        planner.prompt(turn) if planner else builder.build_answer_prompt(turn, None)
        return self._loop.run(turn, messages)

    def _is_trusted_result(self, message: ToolMessage) -> bool:
        tool = self.tools.get(message.name or "")
        return tool is not None and is_trusted(tool)

    def _make_planner(self, model: Any, planning: str, builder: PromptBuilder) -> Planner:
        native = planning != "json"
        if native:
            bound_tools = [prepare_for_binding(tool, self._prompts) for tool in self.tools.values()]
            try:
                model = model.bind_tools(bound_tools)
            except (NotImplementedError, AttributeError):
                if planning == "native":
                    raise TypeError(
                        f"planning='native': {type(model).__name__} cannot bind tools; use planning='json'"
                    ) from None
                native = False
        return Planner(model, self.tools, native, builder)


def _read_input(input: Any) -> tuple[list[BaseMessage], tuple[Passage, ...]]:
    knowledge: list[Passage] = []
    if isinstance(input, Mapping):
        for name in ("knowledge", "trusted_knowledge"):
            knowledge += _read_passages(name, input.get(name, ()))
        if "messages" not in input:
            raise ValueError(f"the input has the keys {', '.join(map(str, input))}; 'messages' is missing")
        input = input["messages"]
    if isinstance(input, str):
        messages: list[BaseMessage] = [HumanMessage(input)]
    elif isinstance(input, BaseMessage):
        messages = [input]
    elif isinstance(input, Iterable | PromptValue):
        messages = convert_to_messages(cast("Any", input))
    else:
        raise TypeError(f"input={input!r}: pass a question, messages, or a dictionary with 'messages'")
    if not messages or not isinstance(messages[-1], HumanMessage):
        raise ValueError("the last message must be the user's question")
    if isinstance(messages[-1].content, str) and not messages[-1].content.strip():
        raise ValueError("the question is empty")
    return messages, tuple(knowledge)


def _read_passages(name: str, documents: Any) -> Iterator[Passage]:
    """Yield the texts of documents. The key `name` decides their trust: loaders copy metadata from files."""
    if isinstance(documents, str):
        documents = (documents,)
    if not isinstance(documents, Iterable):
        raise TypeError(f"{name}={documents!r}: pass a list of texts or Documents")
    for document in documents:
        text = getattr(document, "page_content", document)
        if not isinstance(text, str):
            raise TypeError(f"{name} contains {document!r}; pass texts or Documents")
        yield Passage(clean(text), trusted=name == "trusted_knowledge")


async def _yield_once(input: Any) -> AsyncIterator[Any]:
    yield input
