"""What the model is shown: who it is, the question, and as much of the rest as its budget holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.tools import BaseTool

from scrubjay.agents.kwai.events import Step
from scrubjay.agents.kwai.limits import Limits
from scrubjay.agents.kwai.offer import as_lines
from scrubjay.agents.kwai.profile import Profile
from scrubjay.agents.kwai.remembering import Remembered
from scrubjay.agents.kwai.turn import Supplied, Turn
from scrubjay.agents.language.packer import pack
from scrubjay.agents.language.prompts import Prompts
from scrubjay.agents.language.text import clean
from scrubjay.agents.language.untrusted import fence


class Context:
    """Writes the agent's prompts. Tools and memories never get into the system message."""

    def __init__(
        self,
        profile: Profile,
        prompts: Prompts,
        tools: Sequence[BaseTool],
        limits: Limits,
        count_tokens: Callable[[str], int],
        max_steps: int,
    ) -> None:
        """Write for one agent.

        Args:
            profile: Who it is.
            prompts: The words of its language.
            tools: What it can call.
            limits: Tokens of a prompt, and of the dialogue in it.
            count_tokens: Counts those of a text.
            max_steps: Tasks at most, which its rules tell.
        """
        self.prompts = prompts
        self._profile, self._max_steps = profile, max_steps
        self._budget, self._dialogue = limits.context_tokens, limits.dialogue_tokens
        self._count_tokens = count_tokens
        self._has_tools, self._tool_lines = bool(tools), as_lines(tools, prompts)

    def window(self, dialogue: Sequence[BaseMessage]) -> list[BaseMessage]:
        """Return the last turns, as many as may be shown, from a place that stays for several questions.

        So a prompt begins as the one before it did, and a model that keeps what it has read goes on from
        there.
        """
        first, room = len(dialogue), min(self._dialogue, self._budget // 2)
        while first > 0 and (room := room - self._count_tokens(dialogue[first - 1].text)) >= 0:
            first -= 1
        if first:
            block = 1 << max(0, (len(dialogue) - first).bit_length() - 2)
            first = -(-first // block) * block
        return list(dialogue[first:])

    def to_plan(self, turn: Turn, native: bool) -> list[BaseMessage]:
        """Return the prompt for one plan: for a model that was given the tools, or with the tools as text."""
        say = self.prompts.say
        system = self._system(say("rules", steps=self._max_steps))
        goal = [self._date(turn), say("goal", question=turn.question)]
        if native:
            return self._fit(turn, system, [*goal, say("native_task")], native=True)
        tools = f"{say('tools')}\n{self._tool_lines}"
        reflection = [turn.reflection] if turn.reflection else []
        return self._fit(turn, system, [*goal, tools, *reflection, say("json_task")])

    def to_conclude(self, turn: Turn, stopped: str | None) -> list[BaseMessage]:
        """Return the prompt for the answer; a bare one where there is nothing to draw a conclusion from.

        KwaiAgents asks for that, too, if no task was planned, and small models follow nothing longer.
        """
        say = self.prompts.say
        if not (self._has_tools or turn.knowledge):
            return self._fit(turn, self._system(say("converse")), [self._date(turn), turn.question])
        ending = [self._date(turn), say("goal", question=turn.question)]
        if stopped:
            ending.append(say("stopped", reason=say(f"because_{stopped}")))
        return self._fit(turn, self._system(say("conclude")), ending)

    def reflection(self, step: Step) -> str:
        """Return why the plan after `step`, which found nothing, should be another one."""
        problem = "reflection_error" if step.status == "error" else "reflection_empty"
        return self.prompts.say("reflection", problem=self.prompts.say(problem))

    def render_step(self, step: Step) -> str:
        """Return a finished task as text, its result as data."""
        arguments = json.dumps(step.arguments, ensure_ascii=False)
        line = self.prompts.say(
            "task", index=step.index, task_name=step.task_name, tool=step.tool, arguments=arguments
        )
        source = " ".join([step.tool, *step.sources])
        return (
            f"{line}\n{fence(step.result, source, 'trusted tool' if step.trusted else 'tool', self.prompts)}"
        )

    def render_memory(self, record: Remembered) -> str:
        """Return a recalled record, with who worded it: as data, unless user or agent did."""
        if record.trust not in ("user", "agent"):
            return fence(record.text, f"memory {record.kind} {record.id}", record.trust, self.prompts)
        form = f"said_by_{record.trust}" if record.kind == "conversation" else "noted"
        return self.prompts.say(form, text=clean(record.text))

    def render_knowledge(self, passage: Supplied) -> str:
        """Return a supplied passage, as data unless the user vouches for it."""
        return passage.text if passage.trusted else fence(passage.text, "knowledge", "supplied", self.prompts)

    def _date(self, turn: Turn) -> str:
        """Return the present moment, for a place after all that must not change by the minute."""
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
        """Return system, dialogue, a message of knowledge, memories, tasks and `ending`; if `native`, calls.

        Whole items within the budget, and a note of what is missing. Raises ValueError if the question does
        not fit.
        """
        say = self.prompts.say
        steps = (
            [result.text for _, result, *_ in turn.transcript]
            if native
            else [self.render_step(step) for step in turn.steps]
        )
        knowledge = [_Item(self.render_knowledge(passage), "knowledge") for passage in turn.knowledge]
        memories = [_Item(self.render_memory(record), "memories") for record in turn.recalled]
        reflection = [turn.reflection] if native and turn.reflection else []
        pinned = [system, *ending, *reflection, *([self._tool_lines] if native else [])]
        first = 0
        while True:
            calls = turn.transcript[first:] if native else []
            try:
                packed = pack(
                    pinned,
                    [*turn.window, *steps[first:]],
                    [*knowledge, *memories],
                    self._budget - sum(map(self._call_tokens, calls)),
                    self._count_tokens,
                    omitted=len(turn.dialogue) - len(turn.window) + first,
                    note=self._missing,
                )
                break
            except ValueError as error:
                if not calls:
                    needed = sum(map(self._count_tokens, pinned))
                    raise ValueError(
                        f"context_tokens={self._budget}: the profile, the tools and the question need "
                        f"{needed:,} and a note; give fewer tools, or raise Limits.context_tokens, for a "
                        "local model by raising its budget"
                    ) from error
                first += 1  # what was done first goes before the question does
        shown_steps = min(len(packed.recent), len(steps) - first)
        spoken_count = len(packed.recent) - shown_steps
        sections = [
            "\n".join([say(name), *items])
            for name in ("knowledge", "memories")
            if (items := [item.text for item in packed.recalled if item.name == name])
        ]
        if packed.note:
            sections.append(packed.note)
        if shown_steps and not native:
            sections.append("\n".join([say("tasks"), *steps[-shown_steps:]]))
        return [
            SystemMessage(system),
            *turn.window[len(turn.window) - spoken_count :],
            HumanMessage(_with_attachments(turn.asked, "\n\n".join([*sections, *ending]))),
            *self._calls(calls, shown_steps),
            *(HumanMessage(text) for text in reflection),
        ]

    def _missing(self, turns: int, memories: int) -> str:
        say, counts = self.prompts.say, {"missing_turns": turns, "missing_memories": memories}
        what = [say(name, count=count) for name, count in counts.items() if count]
        if len(what) > 1:
            what = [say("missing_both", one=what[0], other=what[1])]
        return say("missing", what=what[0]) if what else ""

    def _calls(self, calls: Sequence[list[BaseMessage]], shown: int) -> list[BaseMessage]:
        """Return calls and results; results before the last `shown` are left out, their calls not."""
        note = self.prompts.say("left_out")
        messages: list[BaseMessage] = []
        for index, (call, result, *postponed) in enumerate(calls):
            if index < len(calls) - shown:
                result = result.model_copy(update={"content": note})
            messages += [call, result, *postponed]
        return messages

    def _call_tokens(self, step: list[BaseMessage]) -> int:
        """Return the tokens of a step's messages without its result."""
        call, _, *postponed = step
        assert isinstance(call, AIMessage)
        made = [{"name": one["name"], "arguments": one["args"]} for one in call.tool_calls]
        written = json.dumps(made, ensure_ascii=False)
        texts = [call.text, written, self.prompts.say("left_out"), *(message.text for message in postponed)]
        return sum(map(self._count_tokens, texts))


class _Item(NamedTuple):
    text: str
    name: str


def passages(text: str, tokens: int, count_tokens: Callable[[str], int]) -> list[str]:
    """Return `text` in pieces of whole paragraphs of about `tokens`; a longer one is a piece by itself."""
    pieces: list[str] = []
    for paragraph in filter(None, (part.strip() for part in text.split("\n\n"))):
        if pieces and count_tokens(pieces[-1]) + count_tokens(paragraph) <= tokens:
            pieces[-1] = f"{pieces[-1]}\n\n{paragraph}"
        else:
            pieces.append(paragraph)
    return pieces


def spoken(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Return what user and agent said to each other: no system messages, no calls, no results."""
    said: list[BaseMessage] = []
    for message in messages:
        if isinstance(message, HumanMessage):
            said.append(HumanMessage(message.content))
        elif isinstance(message, AIMessage) and not message.tool_calls and message.text.strip():
            said.append(AIMessage(message.text))
    return said


def _with_attachments(asked: HumanMessage, text: str) -> str | list[str | dict[str, Any]]:
    """Return `text` with the pictures and files that came with the question."""
    if isinstance(asked.content, str):
        return text
    others = [block for block in asked.content if isinstance(block, dict) and block.get("type") != "text"]
    return [{"type": "text", "text": text}, *others]
