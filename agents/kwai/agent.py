"""The agent: a langchain Runnable around the loop."""

from __future__ import annotations

import inspect
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

from scrubjay.agents.kwai.context import Context, passages, spoken
from scrubjay.agents.kwai.drive import Loop, adrive, drive
from scrubjay.agents.kwai.executor import Executor
from scrubjay.agents.kwai.limits import Limits, Meter, counter_for, limits_for, prompt_counter_for
from scrubjay.agents.kwai.loop import Parts, take_turn
from scrubjay.agents.kwai.offer import by_name, to_bind
from scrubjay.agents.kwai.planner import Planner
from scrubjay.agents.kwai.plans import Call
from scrubjay.agents.kwai.profile import Profile
from scrubjay.agents.kwai.recall import Recall
from scrubjay.agents.kwai.remembering import Remembers
from scrubjay.agents.kwai.transcript import mend
from scrubjay.agents.kwai.turn import Supplied, Turn
from scrubjay.agents.language.declarations import is_foreign, is_trusted
from scrubjay.agents.language.namespaces import check_literal, check_template, fill
from scrubjay.agents.language.prompts import load_prompts
from scrubjay.agents.language.text import clean
from scrubjay.agents.language.untrusted import TAINTED

_PLANNING = ("auto", "native", "json")


class KwaiAgent(Runnable[Any, dict[str, Any]]):
    """Answers questions with tools and a memory, as KwaiAgents does (Pan et al. 2023, arXiv 2312.04889).

    Input: a question, messages that end with one, or `{"messages": ..., "knowledge": [documents]}`. Output: a
    dictionary of `messages` (the input's, every call with its result, the answer), `answer`, `steps`,
    `events`, `stopped` (finished, steps, tool_calls, tokens, seconds, no_progress or unreadable_plan),
    `usage`, `tainted`, `knowledge`, and `recalled`, the records that memory brought up last. `stream` yields
    the same in parts that add up to it, the answer as it is written; thoughts whose block the model's
    template opens cannot be told from it until they end, so a stream shows them, and `messages` and the
    memory have the answer without them.

    `config={"configurable": {"namespace": (...), "thread_id": ...}}` says whose memory and which
    conversation. That namespace is taken as it is; one of the constructor may be a template. System
    messages of the input are not shown to the model: what the agent is to do is told by its profile.
    Knowledge is data as what tools return is, and taints as it does, but for a Document that its owner
    vouches for with `metadata={"untrusted": False}`. What the model or the memory raises is raised;
    what a tool raises is told to the planner.
    """

    def __init__(
        self,
        model: Runnable[Any, Any],
        tools: Sequence[BaseTool | Callable[..., Any]] = (),
        profile: Profile | None = None,
        memory: Remembers | None = None,
        max_steps: int = 5,
        *,
        limits: Limits | None = None,
        foreign_tools: Sequence[BaseTool | Callable[..., Any]] = (),
        planning: str = "auto",
        approve: Callable[[Call], bool] | None = None,
        namespace: tuple[str, ...] = (),
        recalled: int = 6,
        count_tokens: Callable[[str], int] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        """Put an agent together.

        Args:
            model: Plans and answers.
            tools: What it may call; without any, nothing is planned.
            profile: Who it is, and in which language it is told.
            memory: Keeps what was asked and found beyond the conversation; None for none.
            max_steps: Tasks at most, for one question.
            limits: Of tokens, calls and seconds; None for those of `limits_for`.
            foreign_tools: More of them, described by others, as those of MCP servers are, which are known for
                such among `tools`, too. What they say of themselves is data and taints from the start; of
                their metadata only what `scrubjay.agents.tool` declared counts.
            planning: `native` tool calls, plans as `json` text, or `auto`, what the model offers.
            approve: Asked, after text from outside was read, before a tool runs that is not declared to be
                without side effect (`scrubjay.agents.tool(side_effect=False)`, or that in its metadata), and
                before one is given an address that nobody but the model wrote; without it, or unless it
                returns True, neither is run.
            namespace: Whose memory it is, where the call's `config` does not say. `("user", "{user_id}")` is
                filled from the call's config["configurable"] and LangGraph's context.
            recalled: Records of `memory` shown before each step.
            count_tokens: Counts those of a text; None for `counter_for` and `prompt_counter_for`.
            clock: Returns the present, with its time zone.

        Raises ValueError or TypeError on what cannot work.
        """
        memory_like = 'what adds and searches, such as MemoryBank("facts.db")'
        for name, given, fits, wanted in (
            ("model", model, isinstance(model, Runnable), "a chat model of langchain"),
            ("memory", memory, memory is None or isinstance(memory, Remembers), memory_like),
            ("profile", profile, profile is None or isinstance(profile, Profile), "a Profile"),
            ("limits", limits, limits is None or isinstance(limits, Limits), "Limits(tool_calls=5)"),
            ("approve", approve, approve is None or callable(approve), "a function of a Call"),
            ("clock", clock, callable(clock), "a function that returns the present"),
            ("max_steps", max_steps, isinstance(max_steps, int), "a whole number"),
            ("recalled", recalled, isinstance(recalled, int), "a whole number"),
        ):
            if not fits:
                raise TypeError(f"{name}={given!r}: pass {wanted}")
        if max_steps < 1:
            raise ValueError(
                f"max_steps={max_steps}: must be at least 1; an agent without tools plans nothing"
            )
        if planning not in _PLANNING:
            raise ValueError(f"planning={planning!r}: choose from {', '.join(_PLANNING)}")
        if inspect.iscoroutinefunction(approve):
            raise TypeError(
                "approve is a coroutine function; it runs in a thread: give a plain one that waits"
            )
        if recalled < 0:
            raise ValueError(f"recalled={recalled}: must not be negative")
        self.name = "KwaiAgent"
        self.profile = profile or Profile()
        self.limits = limits or limits_for(model)
        count_in_prompt = count_tokens or prompt_counter_for(model)
        count_tokens = count_tokens or counter_for(model)
        self.tools = by_name(tools, foreign_tools)
        self._model, self._memory, self._recalled = model, memory, recalled
        self._namespace = check_template(_as_names(namespace))
        self._count_tokens, self._count_in_prompt = count_tokens, count_in_prompt
        self._clock, self.max_steps = clock, max_steps
        self._prompts = load_prompts(self.profile.language)
        self._context = Context(
            self.profile, self._prompts, list(self.tools.values()), self.limits, count_in_prompt, max_steps
        )
        self._executor = Executor(self.tools, self._prompts, self.limits, count_tokens, approve)
        self._planner = self._make_planner(planning) if self.tools else None

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> dict[str, Any]:
        """Answer, and return the whole result."""
        return self._call_with_config(self._invoke, input, config, **kwargs)

    async def ainvoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Answer on the event loop, and return the whole result."""
        return await self._acall_with_config(self._ainvoke, input, config, **kwargs)

    def stream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[dict[str, Any]]:
        """Answer in parts that add up to the whole result."""
        yield from self._transform_stream_with_config(iter([input]), self._stream, config, **kwargs)

    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """Answer on the event loop in parts that add up to the whole result."""

        async def once() -> AsyncIterator[Any]:
            yield input

        async for part in self._atransform_stream_with_config(once(), self._astream, config, **kwargs):
            yield part

    def _invoke(self, input: Any, run_manager: Any, config: RunnableConfig) -> dict[str, Any]:
        config = patch_config(config, callbacks=run_manager.get_child())
        return dict(_add(drive(self._begin(input, config), config, streaming=False)))

    async def _ainvoke(self, input: Any, run_manager: Any, config: RunnableConfig) -> dict[str, Any]:
        config = patch_config(config, callbacks=run_manager.get_child())
        return dict(
            _add([part async for part in adrive(self._begin(input, config), config, streaming=False)])
        )

    def _stream(
        self, inputs: Iterator[Any], run_manager: Any, config: RunnableConfig
    ) -> Iterator[dict[str, Any]]:
        config = patch_config(config, callbacks=run_manager.get_child())
        for part in drive(self._begin(_only(list(inputs)), config), config, streaming=True):
            yield AddableDict(part)

    async def _astream(
        self, inputs: AsyncIterator[Any], run_manager: Any, config: RunnableConfig
    ) -> AsyncIterator[dict[str, Any]]:
        config = patch_config(config, callbacks=run_manager.get_child())
        whole = _only([part async for part in inputs])
        async for part in adrive(self._begin(whole, config), config, streaming=True):
            yield AddableDict(part)

    def _begin(self, input: Any, config: RunnableConfig) -> Loop:
        messages, knowledge = _read_input(input)
        messages = mend(messages, self._prompts)
        configurable = ensure_config(config).get("configurable", {})
        thread = {"thread": configurable["thread_id"]} if "thread_id" in configurable else {}
        if "namespace" in configurable:
            namespace = check_literal(_as_names(configurable["namespace"]))
        else:
            namespace = fill(self._namespace, config)
        dialogue = spoken(messages[:-1])
        turn = Turn(
            asked=cast("HumanMessage", messages[-1]),
            dialogue=dialogue,
            window=self._context.window(dialogue),
            knowledge=tuple(
                Supplied(passage, document.trusted)
                for document in knowledge
                for passage in passages(document.text, self.limits.result_tokens, self._count_tokens)
            ),
            meter=Meter(self.limits, self._count_in_prompt),
            clock=self._clock,
            tainted=any(map(is_foreign, self.tools.values()))
            or any(map(self._taints, messages))
            or not all(document.trusted for document in knowledge),
        )
        # Before anything is remembered, what cannot be asked is refused.
        self._planner.prompt(turn) if self._planner else self._context.to_conclude(turn, None)
        parts = Parts(
            self._model,
            self._planner,
            self._executor,
            Recall(
                self._memory if self._recalled else None, namespace, self._recalled, self._prompts, **thread
            ),
            self._context,
            self._prompts,
            self.max_steps,
        )

        def loop() -> Loop:
            yield {"messages": messages, "answer": "", "steps": [], "events": []}
            yield from take_turn(parts, turn)

        return loop()

    def _taints(self, message: BaseMessage) -> bool:
        if not isinstance(message, ToolMessage):
            return bool(message.response_metadata.get(TAINTED))
        tool = self.tools.get(message.name or "")
        return tool is None or not is_trusted(tool)

    def _make_planner(self, planning: str) -> Planner:
        if planning == "json":
            return Planner(self._model, self.tools, False, self._context)
        try:
            bound = cast("Any", self._model).bind_tools(
                [to_bind(tool, self._prompts) for tool in self.tools.values()]
            )
        except (NotImplementedError, AttributeError):
            if planning == "native":
                raise TypeError(
                    f"planning='native': {type(self._model).__name__} cannot bind tools; use planning='json'"
                ) from None
            return Planner(self._model, self.tools, False, self._context)
        return Planner(bound, self.tools, True, self._context)


def _as_names(given: Any) -> Any:
    if isinstance(given, str):  # whose letters would be a namespace each
        raise TypeError(f"namespace={given!r}: must be a tuple of names, such as {(given,)!r}")
    return given


def _read_input(input: Any) -> tuple[list[BaseMessage], tuple[Supplied, ...]]:
    knowledge: Any = ()
    if isinstance(input, Mapping):
        knowledge = input.get("knowledge", ())
        if "messages" not in input:
            raise ValueError(f"the input has keys {', '.join(map(str, input))}; it needs 'messages'")
        input = input["messages"]
    if isinstance(input, str):
        messages: list[BaseMessage] = [HumanMessage(input)]
    elif isinstance(input, BaseMessage):
        messages = [input]
    elif isinstance(input, Iterable | PromptValue):
        messages = convert_to_messages(cast("Any", input))
    else:
        raise TypeError(f"the input is {input!r}; give a question, messages, or a dictionary with 'messages'")
    if not messages or not isinstance(messages[-1], HumanMessage):
        raise ValueError("the last message must be the user's question")
    if isinstance(messages[-1].content, str) and not messages[-1].content.strip():
        raise ValueError("the question is empty")
    if isinstance(knowledge, str):
        knowledge = (knowledge,)
    if not isinstance(knowledge, Iterable):
        raise TypeError(f"knowledge={knowledge!r}; give texts or Documents")
    return messages, tuple(_supplied(document) for document in knowledge)


def _supplied(document: Any) -> Supplied:
    text = getattr(document, "page_content", document)
    if not isinstance(text, str):
        raise TypeError(f"knowledge holds {document!r}; give texts or Documents")
    return Supplied(clean(text), getattr(document, "metadata", {}).get("untrusted", True) is False)


def _only(inputs: list[Any]) -> Any:
    return inputs[0] if len(inputs) == 1 else reduce(lambda left, right: left + right, inputs)


def _add(parts: Any) -> AddableDict:
    return reduce(lambda left, right: left + right, parts, AddableDict())
