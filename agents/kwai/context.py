"""What the model is shown: who it is and the question always, then as much of the rest as its budget holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from scrubjay.agents.kwai.events import Step
from scrubjay.agents.kwai.plans import FINISH, NOTHING
from scrubjay.agents.kwai.profile import Profile
from scrubjay.agents.kwai.prompts import Prompts
from scrubjay.agents.kwai.remembering import Remembered
from scrubjay.agents.kwai.turn import Turn
from scrubjay.agents.kwai.untrusted import fence


class Context:
    """Writes the agent's prompts. Tools and memories never get into the system message."""

    def __init__(
        self,
        profile: Profile,
        prompts: Prompts,
        budget: int,
        count_tokens: Callable[[str], int],
        max_steps: int,
    ) -> None:
        self.prompts = prompts
        self._profile, self._budget, self._count_tokens, self._max_steps = (
            profile,
            budget,
            count_tokens,
            max_steps,
        )

    def to_plan(self, turn: Turn, tools: Sequence[BaseTool] | None) -> list[BaseMessage]:
        """Return the prompt for one plan: of `tools` as text, or for a model that was given them if None."""
        say = self.prompts.say
        system = self._system(turn, say("rules", steps=self._max_steps))
        if tools is None:
            ending = [say("goal", question=turn.question), say("native_task")]
            return self._fit(system, turn, ending, turn.transcript, self._reflection(turn))
        ending = [
            say("goal", question=turn.question),
            f"{say('tools')}\n{self._describe(tools)}",
            *([turn.reflection] if turn.reflection else []),
            say("json_task"),
        ]
        return self._fit(system, turn, ending, None, [])

    def to_conclude(self, turn: Turn, stopped: str | None) -> list[BaseMessage]:
        """Return the prompt for the answer."""
        say = self.prompts.say
        system = self._system(turn, say("conclude"))
        ending = [say("goal", question=turn.question)]
        if stopped:
            ending.append(say("stopped", reason=stopped))
        return self._fit(system, turn, ending, None, [])

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
        """Return a recalled record as data, with who worded it."""
        return fence(record.text, f"memory {record.kind} {record.id}", record.trust, self.prompts)

    def _system(self, turn: Turn, task: str) -> str:
        say, profile, now = self.prompts.say, self._profile, turn.clock()
        date = say(
            "date",
            date=now.date().isoformat(),
            weekday=self.prompts.weekdays[now.weekday()],
            time=now.strftime("%H:%M"),
            zone=now.tzname() or "local",
        )
        parts = [say("identity", name=profile.name)]
        if profile.bio:
            parts.append(say("bio", bio=profile.bio))
        if profile.instructions:
            parts.append(say("instructions", instructions=profile.instructions))
        return "\n\n".join([*parts, date, task])

    def _reflection(self, turn: Turn) -> list[BaseMessage]:
        return [HumanMessage(turn.reflection)] if turn.reflection else []

    def _describe(self, tools: Sequence[BaseTool]) -> str:
        functions = [convert_to_openai_tool(tool)["function"] for tool in tools]
        for name, meaning in ((FINISH, "finish_tool"), (NOTHING, "nothing_tool")):
            functions.append({"name": name, "description": self.prompts.say(meaning), "parameters": {}})
        return "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)

    def _fit(
        self,
        system: str,
        turn: Turn,
        ending: list[str],
        transcript: list[BaseMessage] | None,
        after: list[BaseMessage],
    ) -> list[BaseMessage]:
        """Return system, dialogue, and one message of knowledge, memories, tasks and `ending`, within the budget."""
        say, left = self.prompts.say, self._budget
        left -= sum(self._count_tokens(text) for text in [system, *ending, *turn.knowledge])
        left -= sum(self._count_tokens(message.text) for message in [*(transcript or []), *after])
        sections: list[str] = []
        if turn.knowledge:
            sections.append("\n".join([say("knowledge"), *turn.knowledge]))
        tasks = [] if transcript is not None else [self.render_step(step) for step in turn.steps]
        tasks, left = self._newest(tasks, left)
        memories, left = self._best([self.render_memory(record) for record in turn.recalled], left)
        spoken, left = self._newest([message.text for message in turn.dialogue], left)
        if memories:
            sections.append("\n".join([say("memories"), *memories]))
        if tasks:
            sections.append("\n".join([say("tasks"), *tasks]))
        dialogue = list(turn.dialogue[len(turn.dialogue) - len(spoken) :]) if spoken else []
        return [
            SystemMessage(system),
            *dialogue,
            HumanMessage(_with_attachments(turn.asked, "\n\n".join([*sections, *ending]))),
            *(transcript or []),
            *after,
        ]

    def _newest(self, items: list[str], left: int) -> tuple[list[str], int]:
        kept, left = self._best(items[::-1], left)
        return kept[::-1], left

    def _best(self, items: list[str], left: int) -> tuple[list[str], int]:
        kept: list[str] = []
        for item in items:
            cost = self._count_tokens(item)
            if cost > left:
                break
            kept.append(item)
            left -= cost
        return kept, left


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
