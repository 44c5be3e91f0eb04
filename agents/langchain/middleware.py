"""Memory for `langchain.agents.create_agent`: recalled before each model call, written after the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, NamedTuple, NotRequired, cast

from langchain.agents.middleware import AgentMiddleware, AgentState
from langchain.agents.middleware.types import ModelRequest, PrivateStateAttr
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.config import get_config
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.runtime import Runtime

from scrubjay.agents.language.address import Given, unheard
from scrubjay.agents.language.declarations import is_foreign, is_trusted
from scrubjay.agents.language.gate import Gate, objection, texts
from scrubjay.agents.language.namespaces import check_literal, check_template, fill
from scrubjay.agents.language.packer import pack
from scrubjay.agents.language.prompts import load_prompts
from scrubjay.agents.language.text import clean, estimate_tokens, storable
from scrubjay.agents.language.untrusted import TAINTED, fence, telling_tools
from scrubjay.memory.bank.bank import MemoryBank
from scrubjay.memory.bank.file.record import (
    KINDS,
    LONGEST_TEXT,
    TRUSTS,
    Hit,
    check_choices,
    check_count,
)

_TRUSTED = "scrubjay_trusted"

Namespace = Sequence[str] | Callable[[Runtime[Any]], Sequence[str]]


class BankState(AgentState[Any]):
    """The agent's state besides messages: what was recalled, and whether any of it came from a tool."""

    recalled: NotRequired[Annotated[list[dict[str, str]], PrivateStateAttr]]
    recalled_untrusted: NotRequired[Annotated[bool, PrivateStateAttr]]


class BankMiddleware(AgentMiddleware[BankState, Any, Any]):
    """Shows the model what a bank recalls for the user's last words, and keeps those and the answer.

    Records go before the user's words as data between marks, never into the system prompt and never into the
    thread: whole records, with a note of what is missing. An answer after a record or a tool's result that
    somebody outside may have worded is kept with `trust="tool"`, as is one of a model that was offered
    foreign tools, as those of MCP servers. A tool is trusted if `scrubjay.agents.tool(untrusted=False)` says
    so. With `gate` a tool that may change things outside, or goes to an address that nobody gave, is refused
    once such text was read or recalled, as KwaiAgent does; without, LangChain's HumanInTheLoopMiddleware can
    ask the user.
    """

    state_schema = BankState

    def __init__(
        self,
        bank: MemoryBank,
        namespace: Namespace = (),
        *,
        k: int = 6,
        token_budget: int = 1000,
        kinds: Sequence[str] | None = None,
        trusts: Sequence[str] | None = None,
        language: str = "en",
        count_tokens: Callable[[str], int] = estimate_tokens,
        gate: bool = False,
    ) -> None:
        """Join a bank to an agent.

        Args:
            bank: Recalls and keeps.
            namespace: Whose memory it is. `("user", "{user_id}")` is filled from the call's
                config["configurable"] and the runtime's context. A function of LangGraph's runtime may
                return it instead; what that returns is taken as it is.
            k: Records at most.
            token_budget: Tokens of them at most.
            kinds: Recall records of these kinds only; None for all.
            trusts: Recall what these have worded only; None for all.
            language: Of the marks, en or zh.
            count_tokens: Counts those of a text.
            gate: Refuse, once text was read that somebody outside may have worded, what could do harm: tools
                that are not declared by `scrubjay.agents.tool(side_effect=False)`, and addresses that neither
                the user nor a source gave.

        Raises ValueError or TypeError on what cannot be.
        """
        super().__init__()
        if not isinstance(bank, MemoryBank):
            raise TypeError(f'bank={bank!r}: pass a bank, such as MemoryBank("facts.db")')
        check_count("k", k, 1)
        self._bank, self._k, self._budget, self._count_tokens = bank, k, token_budget, count_tokens
        self._namespace = namespace if callable(namespace) else check_template(namespace)
        self._kinds = check_choices("kinds", kinds, KINDS)
        self._trusts = check_choices("trusts", trusts, TRUSTS)
        self._prompts, self._gate = load_prompts(language), gate
        # Tried on a record that cannot fit, as the note of what is missing must fit beside the heading.
        self._pack([{"id": "", "kind": "", "trust": "", "text": "word " * (token_budget + 1)}])

    def before_model(self, state: BankState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Recall what may help with the user's last words; what the thread says already is left out."""
        place = _question(state["messages"])
        if place is None or not (query := clean(state["messages"][place].text).strip()):
            return {"recalled": []}
        new = self._recall(query, self._whose(runtime), state["messages"])
        return {
            "recalled": [
                {"id": hit.id, "kind": hit.kind, "trust": hit.trust, "text": hit.text} for hit in new
            ],
            "recalled_untrusted": state.get("recalled_untrusted", False)
            or any(hit.trust == "tool" for hit in new),
        }

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        """Show what was recalled, and note on the reply whether foreign tools were on offer."""
        return _noted(handler(self._with_memories(request)), request)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
    ) -> Any:
        """Do as `wrap_model_call`."""
        return _noted(await handler(self._with_memories(request)), request)

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Any]) -> Any:
        """Tell the tool whether text from outside was read, and note on its result whether it is such.

        With `gate` it may be refused instead.
        """
        if (refusal := self._refusal(request)) is not None:
            return refusal
        with telling_tools(_is_tainted(request.state)):
            return _marked(handler(request), request)

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Any]]
    ) -> Any:
        """Do as `wrap_tool_call`."""
        if (refusal := self._refusal(request)) is not None:
            return refusal
        with telling_tools(_is_tainted(request.state)):
            return _marked(await handler(request), request)

    def after_agent(self, state: BankState, runtime: Runtime[Any]) -> None:
        """Keep the user's words and the answer, as a log: equal ones stay apart."""
        thread = get_config().get("configurable", {}).get("thread_id")
        provenance: dict[str, Any] = {} if thread is None else {"thread": str(thread)}
        namespace = self._whose(runtime)
        drafts = [
            self._bank.draft(
                storable(text, self._prompts.say),
                namespace=namespace,
                trust=trust,
                merge=False,
                role=role,
                **provenance,
            )
            for text, trust, role in _said(state)
            if text.strip()
        ]
        self._bank.write(self._bank.embedded(drafts))

    def _refusal(self, request: ToolCallRequest) -> ToolMessage | None:
        """Return what the model is told in place of a result, None if the tool may run."""
        if not self._gate or not _is_tainted(request.state):
            return None
        tool, called = request.tool, request.tool_call
        if tool is None:
            why = "blocked_undeclared"
        else:
            why = objection(tool, Gate(tool), called["args"], lambda: _given(request.state))
        if why is None:
            return None
        said = self._prompts.say(why, tool=called["name"])
        told = {_TRUSTED: True}
        return ToolMessage(
            said, tool_call_id=called["id"], name=called["name"], status="error", additional_kwargs=told
        )

    def _recall(self, query: str, namespace: tuple[str, ...], messages: Sequence[BaseMessage]) -> list[Hit]:
        """Return the best records that are not said in the thread itself."""
        known = {clean(message.text).strip() for message in messages}
        wanted = 2 * self._k
        while True:
            hits = self._bank.search(
                query[:LONGEST_TEXT], k=wanted, kinds=self._kinds, namespace=namespace, trusts=self._trusts
            )
            new = [hit for hit in hits if hit.text.strip() not in known]
            if len(new) >= self._k or len(hits) < wanted:
                return new[: self._k]
            wanted *= 4

    def _whose(self, runtime: Runtime[Any]) -> tuple[str, ...]:
        namespace = self._namespace
        if callable(namespace):
            return check_literal(namespace(runtime))
        return fill(namespace, context=runtime.context)

    def _with_memories(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        recalled = cast("BankState", request.state).get("recalled", [])
        place = _question(request.messages)
        if not recalled or place is None:
            return request
        asked = request.messages[place]
        shown = asked.model_copy(update={"content": _before(self._pack(recalled), asked)})
        messages = [*request.messages[:place], cast("AnyMessage", shown), *request.messages[place + 1 :]]
        return request.override(messages=messages)

    def _pack(self, recalled: list[dict[str, str]]) -> str:
        items = [_Item(record, self._fence(record)) for record in recalled]
        try:
            packed = pack([self._prompts.say("memories")], [], items, self._budget, self._count_tokens)
        except ValueError as error:
            raise ValueError(f"token_budget={self._budget}: not even the heading fits; raise it") from error
        return "\n".join(getattr(item, "text", item) for item in packed.items)

    def _fence(self, record: dict[str, str]) -> str:
        source = f"memory {record['kind']} {record['id']}"
        return fence(record["text"], source, record["trust"], self._prompts)


class _Item(NamedTuple):
    record: dict[str, str]
    text: str


def _is_asked(message: BaseMessage) -> bool:
    """Return whether the user wrote this, not a middleware in the user's place, as a summary."""
    return isinstance(message, HumanMessage) and "lc_source" not in message.additional_kwargs


def _question(messages: Sequence[BaseMessage]) -> int | None:
    """Return where the user's last words are."""
    return next((i for i in reversed(range(len(messages))) if _is_asked(messages[i])), None)


def _said(state: Any) -> list[tuple[str, str, str]]:
    """Return text, trust and role of what the user said since the last answer, and of the answer."""
    messages, place = state["messages"], _question(state["messages"])
    if place is None:
        return []
    first = place
    while first > 0 and _is_asked(messages[first - 1]):
        first -= 1
    said = [(clean(message.text), "user", "user") for message in messages[first : place + 1]]
    answer = messages[-1]
    if isinstance(answer, AIMessage) and not answer.tool_calls:
        said.append((clean(answer.text), "tool" if _is_tainted(state) else "agent", "assistant"))
    return said


def _before(memories: str, asked: BaseMessage) -> str | list[Any]:
    """Return a message's content with memories before it."""
    if isinstance(asked.content, str):
        return f"{memories}\n\n{asked.content}"
    return [{"type": "text", "text": memories}, *asked.content]


def _is_tainted(state: Any) -> bool:
    """Return whether the agent has seen text that somebody outside may have worded."""
    return bool(state.get("recalled_untrusted")) or any(map(_is_outside, state["messages"]))


def _given(state: Any) -> Given:
    """Return the addresses that another than the model wrote: the user, or a source that did not hear it."""
    messages = state["messages"]
    said = [clean(message.text) for message in messages if _is_asked(message)]
    said += [record["text"] for record in state.get("recalled", []) if record["trust"] == "user"]
    told = {
        call["id"]: "".join(texts(call["args"]))
        for message in messages
        if isinstance(message, AIMessage)
        for call in message.tool_calls
    }
    heard = [message for message in messages if isinstance(message, ToolMessage) and _is_outside(message)]
    return Given(said, [unheard(message.text, told.get(message.tool_call_id, "")) for message in heard])


def _is_outside(message: BaseMessage) -> bool:
    if isinstance(message, ToolMessage):
        return message.additional_kwargs.get(_TRUSTED) is not True
    if isinstance(message, AIMessage):
        return bool(message.response_metadata.get(TAINTED))
    # A summary may tell what a tool said.
    return isinstance(message, HumanMessage) and not _is_asked(message)


def _noted(response: Any, request: ModelRequest[Any]) -> Any:
    """Note on what a model said that it had read descriptions which strangers wrote."""
    if any(isinstance(tool, BaseTool) and is_foreign(tool) for tool in request.tools):
        inner = getattr(response, "model_response", response)
        for message in getattr(inner, "result", [inner]):
            if isinstance(message, AIMessage):
                message.response_metadata[TAINTED] = True
    return response


def _marked(result: Any, request: ToolCallRequest) -> Any:
    if not isinstance(result, ToolMessage):
        return result
    trusted = request.tool is not None and is_trusted(request.tool)
    return result.model_copy(update={"additional_kwargs": {**result.additional_kwargs, _TRUSTED: trusted}})
