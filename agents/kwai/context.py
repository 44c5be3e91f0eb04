"""Build the agent's prompts: profile, tools, question, and the history and memory within the token budget."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from scrubjay.agents.kwai.limits import Limits
from scrubjay.agents.kwai.turn import FINISH, NOTHING, MemoryRecord, Passage, Step, Turn
from scrubjay.agents.language.declarations import THIRD_PARTY, as_tool, declare_tools, is_third_party
from scrubjay.agents.language.memories import is_outdated, label, to_state
from scrubjay.agents.language.packer import pack
from scrubjay.agents.language.prompts import LANGUAGES, Prompts
from scrubjay.agents.language.provenance import is_marked, mark
from scrubjay.agents.language.text import clean, clean_value, escape_marks, fence

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")  # tool names of the MCP specification
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_TEXT_KEYS = ("title", "description", "$comment")


@dataclass(frozen=True)
class Profile:
    """Profile of the agent, at the beginning of every prompt.

    Only the agent's owner writes the profile. Memories and tools never change it.
    """

    name: str = "Scrubjay"
    """Name of the agent."""
    bio: str = ""
    """Short description of the agent."""
    instructions: str = ""
    """Instructions of the agent's owner."""
    language: str = "en"
    """Language of the prompts, en or zh; the answer is in the language of the question."""

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError(f"name={self.name!r}: must not be empty")
        if self.language not in LANGUAGES:
            raise ValueError(
                f"language={self.language!r}: unknown language; choose from {', '.join(LANGUAGES)}"
            )


class PromptBuilder:
    """Builder of the agent's prompts. Tools and memories never become part of the system message."""

    def __init__(
        self,
        profile: Profile,
        prompts: Prompts,
        tools: Sequence[BaseTool],
        limits: Limits,
        count_tokens: Callable[[str], int],
        max_steps: int,
    ) -> None:
        """Create a builder for one agent.

        Args:
            profile: Name, description and language of the agent.
            prompts: Prompt templates in the agent's language.
            tools: Tools that the agent may call.
            limits: Limits, which include the maximum tokens of a prompt and of its dialogue.
            count_tokens: Function that returns the number of tokens of a text.
            max_steps: Maximum number of tasks, stated in the rules of the prompt.
        """
        self.prompts = prompts
        self._profile, self._max_steps = profile, max_steps
        self._budget, self._dialogue = limits.context_tokens, limits.dialogue_tokens
        self._count_tokens = count_tokens
        self._has_tools, self._tool_lines = bool(tools), format_tools(tools, prompts)

    def select_window(self, dialogue: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Return the last messages of `dialogue` that fit in the token limits.

        The first of these messages stays the same for several questions. The prompts of these questions then
        have the same beginning, and a model with a KV cache processes this beginning only once.
        """
        first, available = len(dialogue), min(self._dialogue, self._budget // 2)
        while first > 0 and (available := available - self._count_tokens(dialogue[first - 1].text)) >= 0:
            first -= 1
        if first:
            block = 1 << max(0, (len(dialogue) - first).bit_length() - 2)
            first = -(-first // block) * block
        return list(dialogue[first:])

    def build_planning_prompt(self, turn: Turn, native: bool) -> list[BaseMessage]:
        """Return the prompt for one plan; without `native`, the prompt describes the tools as text."""
        say = self.prompts.say
        system = self._system(say("rules", steps=self._max_steps))
        goal = [self._date(turn), say("goal", question=turn.question)]
        if native:
            return self._fit(turn, system, [*goal, say("native_task")], native=True)
        tools = f"{say('tools')}\n{self._tool_lines}"
        reflection = [turn.reflection] if turn.reflection else []
        return self._fit(turn, system, [*goal, tools, *reflection, say("json_task")])

    def build_answer_prompt(self, turn: Turn, stop_reason: str | None) -> list[BaseMessage]:
        """Return the prompt for the answer; a short prompt if there are neither tools nor knowledge.

        KwaiAgents has the same short prompt, because small models do not follow a long prompt.
        """
        say = self.prompts.say
        if not (self._has_tools or turn.knowledge):
            return self._fit(turn, self._system(say("converse")), [self._date(turn), turn.question])
        ending = [self._date(turn), say("goal", question=turn.question)]
        if stop_reason:
            ending.append(say("stopped", reason=say(f"because_{stop_reason}")))
        return self._fit(turn, self._system(say("conclude")), ending)

    def build_reflection(self, step: Step) -> str:
        """Return the instruction to plan differently after `step`, which had no useful result."""
        problem = "reflection_error" if step.status == "error" else "reflection_empty"
        return self.prompts.say("reflection", problem=self.prompts.say(problem))

    def render_step(self, step: Step) -> str:
        """Return a finished task as text, with its result between marks that label it as data."""
        line = self.prompts.say(
            "task",
            index=step.index,
            task_name=step.task_name,
            tool=step.tool,
            arguments=json.dumps(step.arguments, ensure_ascii=False),
        )
        return f"{line}\n{fence_result(step, self.prompts)}"

    def render_memory(self, record: MemoryRecord) -> str:
        """Return a recalled record as text.

        If neither the user nor the agent wrote the record, marks around its text label the text as data.
        """
        if record.trust not in ("user", "agent"):
            return fence(record.text, label(to_state(record)), record.trust, self.prompts)
        form = f"said_by_{record.trust}" if record.kind == "conversation" else "noted"
        text = self.prompts.say(form, text=clean(record.text))
        return self.prompts.say("outdated", text=text) if is_outdated(record) else text

    def render_knowledge(self, passage: Passage) -> str:
        """Return a passage of knowledge; marks around an untrusted passage label it as data."""
        return passage.text if passage.trusted else fence(passage.text, "knowledge", "supplied", self.prompts)

    def _date(self, turn: Turn) -> str:
        """Return the current date and time as text.

        The text belongs near the end of a prompt, because a KV cache reuses only an unchanged beginning.
        """
        now = turn.clock()
        return self.prompts.say(
            "date",
            date=now.date().isoformat(),
            weekday=self.prompts.weekdays[now.weekday()],
            time=now.strftime("%H:%M"),
            zone=now.tzname() or "local",
        )

    def _system(self, task: str) -> str:
        say, profile = self.prompts.say, self._profile
        parts = [say("identity", name=profile.name)]
        if profile.bio:
            parts.append(say("bio", bio=profile.bio))
        if profile.instructions:
            parts.append(say("instructions", instructions=profile.instructions))
        return "\n\n".join([*parts, task])

    def _fit(self, turn: Turn, system: str, ending: list[str], native: bool = False) -> list[BaseMessage]:
        """Return a prompt within the token budget: a system message, the dialogue and one user message.

        The user message contains knowledge, memories and `ending`. If `native` is False, the user message
        also contains the finished tasks as text. If `native` is True, the calls and results of the finished
        tasks follow the user message as separate messages. No item is truncated. A note counts the omitted
        items.

        Raises ValueError if the question does not fit.
        """
        say = self.prompts.say
        steps = (
            [result.text for _, result, *_ in turn.transcript]
            if native
            else [self.render_step(step) for step in turn.steps]
        )
        section_of = dict.fromkeys(map(self.render_knowledge, turn.knowledge), "knowledge")
        for record in turn.recalled_records:
            section_of.setdefault(self.render_memory(record), "memories")
        reflection = [turn.reflection] if native and turn.reflection else []
        pinned_items = [system, *ending, *reflection, *([self._tool_lines] if native else [])]
        first = 0
        while True:
            calls = turn.transcript[first:] if native else []
            try:
                packed = pack(
                    pinned_items,
                    [*turn.window, *steps[first:]],
                    list(section_of),
                    self._budget - sum(map(self._call_tokens, calls)),
                    self._count_tokens,
                    omitted_turns=len(turn.dialogue) - len(turn.window) + first,
                    note=self._missing,
                )
                break
            except ValueError as error:
                if not calls:
                    minimum = sum(map(self._count_tokens, pinned_items))
                    raise ValueError(
                        f"context_tokens={self._budget}: the profile, the tools and the question need "
                        f"{minimum:,} tokens, plus a note about omitted items; pass fewer tools or raise "
                        "Limits.context_tokens; a local model may also need a larger LocalChatModel.budget"
                    ) from error
                first += 1  # drop the earliest step rather than the question
        shown_steps = min(len(packed.recent_items), len(steps) - first)
        spoken_count = len(packed.recent_items) - shown_steps
        sections = [
            "\n".join([say(name), *items])
            for name in ("knowledge", "memories")
            if (items := [text for text in packed.recalled_items if section_of[text] == name])
        ]
        if packed.note:
            sections.append(packed.note)
        if shown_steps and not native:
            sections.append("\n".join([say("tasks"), *steps[-shown_steps:]]))
        return [
            SystemMessage(system),
            *turn.window[len(turn.window) - spoken_count :],
            HumanMessage(_with_attachments(turn.user_message, "\n\n".join([*sections, *ending]))),
            *self._calls(calls, shown_steps),
            *(HumanMessage(text) for text in reflection),
        ]

    def _missing(self, turns: int, memories: int) -> str:
        say, counts = self.prompts.say, {"missing_turns": turns, "missing_memories": memories}
        what = [say(name, count=count) for name, count in counts.items() if count]
        if len(what) > 1:
            what = [say("missing_both", one=what[0], other=what[1])]
        return say("missing", what=what[0]) if what else ""

    def _calls(self, calls: Sequence[list[BaseMessage]], shown_steps: int) -> list[BaseMessage]:
        """Return the messages of `calls`, with the results of the last `shown_steps` calls.

        In the messages of earlier calls, a note replaces the result.
        """
        note = self.prompts.say("left_out")
        messages: list[BaseMessage] = []
        for index, (call, result, *postponed_results) in enumerate(calls):
            if index < len(calls) - shown_steps:
                result = result.model_copy(update={"content": note})
            messages += [call, result, *postponed_results]
        return messages

    def _call_tokens(self, step: list[BaseMessage]) -> int:
        """Count the tokens of a step's messages, with a note in place of the step's result."""
        call, _, *postponed_results = step
        assert isinstance(call, AIMessage)
        call_objects = [{"name": one["name"], "arguments": one["args"]} for one in call.tool_calls]
        calls_json = json.dumps(call_objects, ensure_ascii=False)
        texts = [
            call.text,
            calls_json,
            self.prompts.say("left_out"),
            *(message.text for message in postponed_results),
        ]
        return sum(map(self._count_tokens, texts))


def fence_result(step: Step, prompts: Prompts) -> str:
    """Return the result of a step between marks that label it as data."""
    source = " ".join([step.tool, *step.sources])
    return fence(step.result, source, "trusted tool" if step.trusted else "tool", prompts)


def split_passages(text: str, tokens: int, count_tokens: Callable[[str], int]) -> list[str]:
    """Split `text` into passages of whole paragraphs, with at most `tokens` tokens per passage.

    A paragraph with more tokens is not split; it becomes one passage. Lines keep their indentation.
    """
    pieces: list[str] = []
    for paragraph in filter(None, map(str.rstrip, _BLANK_LINES.split(text.replace("\r\n", "\n")))):
        if pieces and count_tokens(pieces[-1]) + count_tokens(paragraph) <= tokens:
            pieces[-1] = f"{pieces[-1]}\n\n{paragraph}"
        else:
            pieces.append(paragraph)
    return pieces


def filter_dialogue(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Return the user's messages and the agent's answers, without system messages, calls and results."""
    dialogue: list[BaseMessage] = []
    for message in messages:
        if isinstance(message, HumanMessage):
            user_message = HumanMessage(message.content)
            dialogue.append(mark(user_message, True) if is_marked(message) else user_message)
        elif isinstance(message, AIMessage) and not message.tool_calls and message.text.strip():
            dialogue.append(AIMessage(message.text))
    return dialogue


def _with_attachments(user_message: HumanMessage, text: str) -> str | list[str | dict[str, Any]]:
    """Return `text` with the images and files of the user's message."""
    if isinstance(user_message.content, str):
        return text
    others = [
        block for block in user_message.content if isinstance(block, dict) and block.get("type") != "text"
    ]
    return [{"type": "text", "text": text}, *others]


def index_tools(
    tools: Sequence[BaseTool | Callable[..., Any]],
    third_party_tools: Sequence[BaseTool | Callable[..., Any]],
    declarations: Mapping[str, str] | None = None,
) -> dict[str, BaseTool]:
    """Return a dictionary of all tools by name, with a flag in the metadata of each third-party tool.

    `declarations` declares tools by name, with a word of `DECLARATIONS`.

    Raises TypeError if an item is not a tool or function. Raises ValueError if a function has no docstring,
    or if a name is reserved or used twice. The name of a third-party tool may contain only letters, digits
    and `_.-`; another name raises ValueError. Raises the errors of `declare_tools`.
    """
    for name, items in (("tools", tools), ("third_party_tools", third_party_tools)):
        if isinstance(items, str) or not isinstance(items, Collection):
            raise TypeError(f"{name}={items!r}: pass a list of tools and functions")
        for one in items:
            if not callable(one) and not isinstance(one, BaseTool):
                raise TypeError(f"{name} contains {one!r}; pass functions or langchain tools")
    tools_by_name: dict[str, BaseTool] = {}
    for index, item in enumerate([*tools, *third_party_tools]):
        one = as_tool(item)
        if index >= len(tools):
            one = one.model_copy(update={"metadata": {**(one.metadata or {}), THIRD_PARTY: True}})
        if one.name in tools_by_name or one.name in (FINISH, NOTHING):
            raise ValueError(f"tool {one.name!r}: this name is already used or reserved; rename the tool")
        if is_third_party(one) and not _NAME.fullmatch(one.name):
            raise ValueError(
                f"tool {one.name!r}: the name of a third-party tool may contain only letters, digits and "
                "_.-; rename the tool"
            )
        tools_by_name[one.name] = one
    return declare_tools(tools_by_name, declarations)


def prepare_for_binding(tool: BaseTool, prompts: Prompts) -> BaseTool | dict[str, Any]:
    """Return a tool for `bind_tools`.

    A third-party tool becomes a dict. Marks around its description label the description as data.
    """
    if not is_third_party(tool):
        return tool
    function: Any = clean_value(convert_to_openai_tool(tool)["function"])
    pending = [function.get("parameters")]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            for key in _TEXT_KEYS:
                if isinstance(part.get(key), str):
                    part[key] = escape_marks(part[key])
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    description = fence(function.get("description", ""), f"foreign tool {tool.name}", "tool", prompts)
    return {"type": "function", "function": {**function, "description": description}}


def format_tools(tools: Sequence[BaseTool], prompts: Prompts) -> str:
    """Return tools as text, one JSON object per line.

    Third-party tools come last, between marks that label their descriptions as data.
    """
    own_tools, third_party_tools = [], []
    for tool in tools:
        (third_party_tools if is_third_party(tool) else own_tools).append(
            convert_to_openai_tool(tool)["function"]
        )
    for name, meaning in ((FINISH, "finish_tool"), (NOTHING, "nothing_tool")):
        own_tools.append({"name": name, "description": prompts.say(meaning), "parameters": {}})
    lines = _lines(own_tools)
    if not third_party_tools:
        return lines
    names = ", ".join(function["name"] for function in third_party_tools)
    return f"{lines}\n{fence(_lines(third_party_tools), f'foreign tools {names}', 'tool', prompts)}"


def _lines(functions: Sequence[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
