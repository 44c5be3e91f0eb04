"""Memory middleware for `langchain.agents.create_agent`: recall before model calls, store afterwards."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, NotRequired, cast

from langchain.agents.middleware import AgentMiddleware, AgentState
from langchain.agents.middleware.types import ModelRequest, PrivateStateAttr
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.tools import BaseTool
from langgraph.config import get_config
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.runtime import Runtime
from langgraph.types import Command

from scrubjay.agents.language.address import AllowedAddresses, find_new_addresses
from scrubjay.agents.language.declarations import (
    UndeclaredToolWarning,
    check_declarations,
    declare_tool,
    describe_undeclared,
    is_third_party,
    is_trusted,
)
from scrubjay.agents.language.gate import Gate, collect_texts, find_objection
from scrubjay.agents.language.memories import (
    find_mark_numbers,
    is_small_talk,
    label,
    remove_copies,
    select_records,
    to_state,
)
from scrubjay.agents.language.namespaces import check_literal, check_template, fill_template
from scrubjay.agents.language.packer import pack
from scrubjay.agents.language.prompts import load_prompts
from scrubjay.agents.language.provenance import (
    USER_NAMES,
    check_user_names,
    is_added_by_langchain,
    is_marked,
    is_untrusted,
    is_untrusted_record,
    mark,
    mark_in_place,
)
from scrubjay.agents.language.text import (
    clean,
    describe_content,
    estimate_tokens,
    fence,
    taint_scope,
    truncate_for_storage,
)
from scrubjay.memory.bank.bank import MemoryBank
from scrubjay.memory.bank.record import (
    KINDS,
    MAX_TEXT_LENGTH,
    TRUSTS,
    Hit,
    check_choices,
    check_count,
    check_fraction,
)

_TRUSTED = "scrubjay_trusted"
_MARK_NUMBERS = "scrubjay_marks"
_ROLES = ("user", "assistant")

Namespace = Sequence[str] | Callable[[Runtime[Any]], Sequence[str]]


class BankState(AgentState[Any]):
    """Agent state with recalled records, and with a flag that is True if a recalled record is untrusted."""

    recalled_records: NotRequired[Annotated[list[dict[str, str]], PrivateStateAttr]]
    recalled_untrusted: NotRequired[Annotated[bool, PrivateStateAttr]]


class BankMiddleware(AgentMiddleware[BankState, Any, Any]):
    """Middleware that recalls records for the user's last message, and stores this message and the answer.

    Recalled records are inserted before the user's text, as data between marks. They never enter the system
    prompt or the thread. Records are not truncated; a note counts the records that do not fit. Earlier
    questions and answers of the agent together fill at most a third of them.

    Greetings and thanks are not stored, nor is the answer to them if no tool was called. Of an answer, the
    parts that a small model copied from its prompt are not stored: marks, and whole recalled records.

    An answer is stored with `trust="tool"` if the agent has read untrusted text in a record, in a tool's
    result, or in another message (`agents/language/provenance.py`). Untrusted messages are summaries, human
    messages with a name that is not in `user_names`, and answers that an agent without this middleware wrote.
    An answer is also stored with `trust="tool"` if the model was offered third-party tools, such as tools of
    MCP servers. A tool is trusted if it is declared by `scrubjay.agents.tool(untrusted=False)`.

    After untrusted text was read, the middleware refuses risky tool calls. A call is risky if its tool has
    side effects, if its tool is undeclared, or if the call contains a web address that neither the user nor a
    source wrote. KwaiAgent has the same rules. The first model call with undeclared tools raises an
    UndeclaredToolWarning. With `gate=False`, nothing is refused; LangChain's HumanInTheLoopMiddleware can ask
    the user for approval instead.
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
        gate: bool = True,
        declare: Mapping[str, str] | None = None,
        roles: Sequence[str] = _ROLES,
        user_names: Sequence[str] = USER_NAMES,
        turns: int | None = None,
        min_relevance: float = 0.02,
    ) -> None:
        """Connect a bank to an agent.

        Args:
            bank: Memory bank to search and to write to.
            namespace: Owner of the memory. A template such as `("user", "{user_id}")` is filled from the
                call's config["configurable"] and the runtime's context. Another option is a function that
                takes LangGraph's runtime and returns a namespace, which is not treated as a template.
            k: Maximum number of recalled records.
            token_budget: Maximum tokens of all recalled records together.
            kinds: Kinds of record to recall; None for all.
            trusts: Authors of the records to recall (user, agent, tool); None for all.
            language: Language of the marks around recalled records: en or zh.
            count_tokens: Function that counts the tokens of a text.
            gate: Refuse risky tool calls after the agent has read untrusted text.
            declare: Declarations of tools by name, for tools that you do not own, such as
                `{"search": "reads"}`: "reads" has no side effects, "writes" has some, "computes" has none and
                trusted results. A tool may also be declared by `scrubjay.agents.tool(side_effect=False)`.
            roles: Authors whose messages are stored: user, assistant. `("user",)` suits a small model, whose
                answers contain little information.
            user_names: Values of `name` in messages of the user. A human message with another name is
                untrusted, because graphs pass texts of tools and other agents in this way.
            turns: Number of the last turns that the model sees; a turn begins with a message of the user.
                Earlier turns are recalled as all records are. Default: all turns. A small model copies its
                earlier answers, so 1 suits it.
            min_relevance: Nothing is recalled unless one record has this relevance, from 0 to 1.

        Raises ValueError or TypeError if an argument is invalid.
        """
        super().__init__()
        if not isinstance(bank, MemoryBank):
            raise TypeError(f'bank={bank!r}: pass a bank, such as MemoryBank("facts.db")')
        check_count("k", k, 1)
        if turns is not None:
            check_count("turns", turns, 1)
        check_fraction("min_relevance", min_relevance)
        self._turns, self._min_relevance = turns, min_relevance
        self._bank, self._k, self._budget, self._count_tokens = bank, k, token_budget, count_tokens
        self._namespace = namespace if callable(namespace) else check_template(namespace)
        self._kinds = check_choices("kinds", kinds, KINDS)
        self._trusts = check_choices("trusts", trusts, TRUSTS)
        self._prompts, self._gate = load_prompts(language), gate
        self._user_names = check_user_names(user_names)
        self._declarations, self._checked_names = check_declarations(declare), frozenset[str]()
        self._roles = check_choices("roles", roles, _ROLES) or _ROLES
        # Check the budget with a record that cannot fit, since heading and note must fit together.
        self._pack([{"id": "", "kind": "", "trust": "", "text": "word " * (token_budget + 1)}])

    def before_model(self, state: BankState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Recall records for the user's last message, except records whose text the model sees anyway."""
        index = _find_question(state["messages"])
        if index is None or not (query := clean(state["messages"][index].text).strip()):
            return {"recalled_records": []}
        messages = self._select_turns(state["messages"])
        new = self._recall(query, self._resolve_namespace(runtime), messages)
        return {
            "recalled_records": list(map(to_state, new)),
            "recalled_untrusted": state.get("recalled_untrusted", False)
            or any(map(is_untrusted_record, new)),
        }

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        """Insert the recalled records, and mark the reply if third-party tools were offered."""
        self._check_tools(request)
        request = self._insert_memories(request)
        return self._mark_reply(handler(request), request)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
    ) -> Any:
        """Asynchronous version of `wrap_model_call`."""
        self._check_tools(request)
        request = self._insert_memories(request)
        return self._mark_reply(await handler(request), request)

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Any]) -> Any:
        """Run the tool within `taint_scope`, and mark its result as trusted or untrusted.

        With `gate`, the middleware may refuse the call instead.
        """
        if (refusal := self._refusal(request)) is not None:
            return refusal
        with taint_scope(self._is_tainted(request.state)):
            return self._mark_result(handler(request), request)

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Any]]
    ) -> Any:
        """Asynchronous version of `wrap_tool_call`."""
        if (refusal := self._refusal(request)) is not None:
            return refusal
        with taint_scope(self._is_tainted(request.state)):
            return self._mark_result(await handler(request), request)

    def after_agent(self, state: BankState, runtime: Runtime[Any]) -> None:
        """Store the user's messages and the answer, without merging duplicates and without small talk."""
        thread = get_config().get("configurable", {}).get("thread_id")
        provenance: dict[str, Any] = {} if thread is None else {"thread": str(thread)}
        namespace = self._resolve_namespace(runtime)
        drafts = [
            self._bank.draft(
                truncate_for_storage(text, self._prompts.say),
                namespace=namespace,
                trust=trust,
                merge=False,
                role=role,
                **provenance,
            )
            for text, trust, role in self._collect_turn(state)
            if text.strip() and role in self._roles
        ]
        self._bank.write(self._bank.embed_drafts(drafts))

    def _refusal(self, request: ToolCallRequest) -> ToolMessage | None:
        """Return a refusal in place of a tool's result; None if the tool may run."""
        if not self._gate or not self._is_tainted(request.state):
            return None
        tool, tool_call, reason = (
            self._apply_declaration(request.tool),
            request.tool_call,
            "blocked_undeclared",
        )
        if tool is not None:
            reason = find_objection(
                tool, Gate(tool), tool_call["args"], lambda: self._collect_allowed_addresses(request.state)
            )
        if reason is None:
            return None
        return ToolMessage(
            self._prompts.say(reason, tool=tool_call["name"]),
            tool_call_id=tool_call["id"],
            name=tool_call["name"],
            status="error",
            additional_kwargs={_TRUSTED: True},
        )

    def _recall(self, query: str, namespace: tuple[str, ...], messages: Sequence[BaseMessage]) -> list[Hit]:
        """Return the best records whose texts are not in `messages`, as `select_records` selects them."""
        thread_texts = {clean(message.text).strip() for message in messages}
        depth = 5 * self._k
        while True:
            filters: Any = {"kinds": self._kinds, "namespace": namespace, "trusts": self._trusts}
            hits = self._bank.search(query[:MAX_TEXT_LENGTH], k=depth, min_relevance=0.0, **filters)
            new = [hit for hit in hits if hit.text.strip() not in thread_texts]
            if all((hit.relevance or 0.0) < self._min_relevance for hit in new):
                return []
            selection = select_records(new, self._k)
            # Skip at most about twenty records per requested one, however many questions the bank has.
            if len(selection) == self._k or len(hits) < depth or len(new) >= 16 * self._k:
                return selection
            depth *= 4

    def _apply_declaration(self, tool: BaseTool | None) -> BaseTool | None:
        """Return `tool`, declared by the argument `declare` if its name is there."""
        if tool is None or tool.name not in self._declarations:
            return tool
        return declare_tool(tool, self._declarations[tool.name])

    def _check_tools(self, request: ModelRequest[Any]) -> None:
        """Warn once about undeclared tools, and about names in `declare` without a tool."""
        tools = [tool for tool in map(self._apply_declaration, _own_tools(request)) if tool is not None]
        names = frozenset(tool.name for tool in tools)
        if names <= self._checked_names:
            return
        new_names, self._checked_names = names - self._checked_names, self._checked_names | names
        if unknown_names := self._declarations.keys() - self._checked_names:
            warnings.warn(
                f"declare: the agent has no tools {', '.join(map(repr, sorted(unknown_names)))}; it has "
                f"{', '.join(sorted(names))}",
                UndeclaredToolWarning,
                stacklevel=3,
            )
        new_tools = [tool for tool in tools if tool.name in new_names]
        if self._gate and (problem := describe_undeclared(new_tools, alternative="gate=False")):
            warnings.warn(problem, UndeclaredToolWarning, stacklevel=3)

    def _mark_reply(self, response: Any, request: ModelRequest[Any]) -> Any:
        """Add facts to the metadata of a model's reply.

        The reply is tainted if the agent has read untrusted text, or if the model was offered third-party
        tool descriptions. If the reply contains marks of recalled records, their numbers are stored.
        """
        tools = map(self._apply_declaration, _own_tools(request))
        is_tainted = (
            self._is_tainted(request.state)
            or any(map(self._is_untrusted, request.messages))
            or any(tool is not None and is_third_party(tool) for tool in tools)
        )
        inner = getattr(response, "model_response", response)
        for message in getattr(inner, "result", [inner]):
            if isinstance(message, AIMessage):
                mark_in_place(message, is_tainted)
                if "<<<" in message.text:
                    numbers = find_mark_numbers(one.text for one in request.messages)
                    message.response_metadata[_MARK_NUMBERS] = sorted(numbers)
        return response

    def _mark_result(self, result: Any, request: ToolCallRequest) -> Any:
        """Mark the messages of a tool's result, also those in commands and lists, as trusted or untrusted."""
        tool = self._apply_declaration(request.tool)
        trusted = tool is not None and is_trusted(tool)
        results = [_mark_messages(one, trusted) for one in (result if isinstance(result, list) else [result])]
        return results if isinstance(result, list) else results[0]

    def _is_untrusted(self, message: BaseMessage) -> bool:
        return is_untrusted(message, _is_trusted_result, self._user_names)

    def _is_tainted(self, state: Any) -> bool:
        """Return True if the agent has read untrusted text."""
        return bool(state.get("recalled_untrusted")) or any(map(self._is_untrusted, state["messages"]))

    def _collect_allowed_addresses(self, state: Any) -> AllowedAddresses:
        """Return the web addresses that the user or a source wrote.

        An address in a tool's result does not count if the model passed this address to the tool.
        """
        messages = state["messages"]
        user_texts = [
            clean(message.text)
            for message in messages
            if isinstance(message, HumanMessage) and not self._is_untrusted(message)
        ]
        user_texts += [
            record["text"] for record in state.get("recalled_records", []) if record["trust"] == "user"
        ]
        arguments_by_call = {
            call["id"]: "".join(collect_texts(call["args"]))
            for message in messages
            if isinstance(message, AIMessage)
            for call in message.tool_calls
        }
        untrusted_addresses = [
            find_new_addresses(message.text, arguments_by_call.get(message.tool_call_id, ""))
            for message in messages
            if isinstance(message, ToolMessage) and not _is_trusted_result(message)
        ]
        return AllowedAddresses(user_texts, untrusted_addresses)

    def _collect_turn(self, state: Any) -> list[tuple[str, str, str]]:
        """Return (text, trust, role) of each user message since the previous answer, and of the new answer.

        Small talk is left out, and so are the parts of the answer that are copies.
        """
        messages, index = state["messages"], _find_question(state["messages"])
        if index is None:
            return []
        first = index
        while first > 0 and _is_question(messages[first - 1]):
            first -= 1
        turn = [
            (text, "tool" if self._is_untrusted(message) else "user", "user")
            for message in messages[first : index + 1]
            if not is_small_talk(text := describe_content(message, self._prompts))
        ]
        answer = messages[-1]
        has_content = bool(turn) or any(isinstance(message, ToolMessage) for message in messages[index:])
        if has_content and isinstance(answer, AIMessage) and not answer.tool_calls:
            shown_texts = [record["text"] for record in state.get("recalled_records", [])]
            numbers = answer.response_metadata.get(_MARK_NUMBERS, ())
            text = remove_copies(clean(answer.text), numbers, shown_texts, self._prompts.say("memories"))
            if is_small_talk(text):
                return turn
            turn.append((text, "tool" if self._is_tainted(state) else "agent", "assistant"))
        return turn

    def _resolve_namespace(self, runtime: Runtime[Any]) -> tuple[str, ...]:
        namespace = self._namespace
        if callable(namespace):
            return check_literal(namespace(runtime))
        return fill_template(namespace, context=runtime.context)

    def _select_turns(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Return the messages that the model sees: those of the last turns, and earlier system messages."""
        if self._turns is None:
            return list(messages)
        starts = [
            place
            for place, message in enumerate(messages)
            if _is_question(message) and not (place and _is_question(messages[place - 1]))
        ]
        first = starts[-self._turns] if len(starts) > self._turns else 0
        system_messages = [message for message in messages[:first] if isinstance(message, SystemMessage)]
        return [*system_messages, *messages[first:]]

    def _insert_memories(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        request = request.override(messages=cast("Any", self._select_turns(request.messages)))
        records = cast("BankState", request.state).get("recalled_records", [])
        index = _find_question(request.messages)
        if not records or index is None:
            return request
        question = request.messages[index]
        messages = list(request.messages)
        content = _prepend(self._pack(records), question)
        messages[index] = question.model_copy(update={"content": content})
        return request.override(messages=messages)

    def _pack(self, records: list[dict[str, str]]) -> str:
        items = [fence(one["text"], label(one), one["trust"], self._prompts) for one in records]
        try:
            packed = pack([self._prompts.say("memories")], [], items, self._budget, self._count_tokens)
        except ValueError as error:
            raise ValueError(
                f"token_budget={self._budget}: too small for the heading of the recalled records and the "
                "note on records that are left out; raise token_budget"
            ) from error
        return "\n".join(packed.items)


def _is_question(message: BaseMessage) -> bool:
    """Return True for a human message that neither LangChain nor a tool added, such as a summary."""
    return isinstance(message, HumanMessage) and not (is_marked(message) or is_added_by_langchain(message))


def _find_question(messages: Sequence[BaseMessage]) -> int | None:
    """Return the index of the user's last message; None if there is none."""
    return next((i for i in reversed(range(len(messages))) if _is_question(messages[i])), None)


def _own_tools(request: ModelRequest[Any]) -> list[BaseTool]:
    """Return the tools that this process runs, without those that a model provider runs."""
    return [tool for tool in request.tools if isinstance(tool, BaseTool)]


def _prepend(memories: str, message: BaseMessage) -> str | list[Any]:
    """Return a message's content with memories in front."""
    if isinstance(message.content, str):
        return f"{memories}\n\n{message.content}"
    return [{"type": "text", "text": memories}, *message.content]


def _mark_messages(result: Any, trusted: bool) -> Any:
    """Return a tool's message or command with marks; a remote agent may have forged those of its messages."""
    if isinstance(result, Command):
        return replace(result, update=_mark_update(result.update, trusted))
    if isinstance(result, ToolMessage):
        flags = {**result.additional_kwargs, _TRUSTED: trusted}
        return result.model_copy(update={"additional_kwargs": flags})
    return mark(result, True) if isinstance(result, BaseMessage) and not trusted else result


def _mark_update(update: Any, trusted: bool) -> Any:
    """Return a command's update with marked messages; it is a dictionary, pairs, messages or an object."""
    if isinstance(update, dict):
        return dict(_mark_pair(pair, trusted) for pair in update.items())
    if isinstance(update, list | tuple):
        return [
            _mark_pair(one, trusted) if isinstance(one, tuple) else _mark_messages(one, trusted)
            for one in update
        ]
    if hasattr(update, "messages"):
        update = copy.copy(update)
        object.__setattr__(update, "messages", _mark_pair(("messages", update.messages), trusted)[1])
    return update


def _mark_pair(pair: tuple[Any, ...], trusted: bool) -> tuple[Any, ...]:
    """Return a channel's name and value; messages, or a single message, get marks."""
    if len(pair) != 2 or pair[0] != "messages":
        return pair
    messages = pair[1] if isinstance(pair[1], list | tuple) else [pair[1]]
    return "messages", [_mark_messages(one, trusted) for one in convert_to_messages(messages)]


def _is_trusted_result(message: ToolMessage) -> bool:
    return message.additional_kwargs.get(_TRUSTED) is True
