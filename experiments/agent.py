"""`scrubjay agent`: one question, or a conversation, with an agent that has tools and a memory."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scrubjay.experiments.agent_options import AgentOptions, choose_tools, load_model
from scrubjay.experiments.bank_commands import open_for_recall, read_namespace
from scrubjay.experiments.terminal import printable
from scrubjay.experiments.tuning import append_records, why_not

if TYPE_CHECKING:
    from scrubjay.agents.kwai import Call, Event, KwaiAgent

_SHOWN = {"thinking": "…", "execute": "→", "observation": "←", "fail": "✗"}
_LONGEST_SHOWN = 300


def run_agent(options: AgentOptions) -> int:
    """Answer what is asked; return the exit code. Raises ValueError or ImportError on options that cannot work."""
    from scrubjay.agents.kwai import KwaiAgent, Limits, Profile

    options.check()
    profile = Profile(options.name, options.bio, options.instructions, options.language)
    tools = choose_tools(options)
    model = load_model(options)
    with contextlib.ExitStack() as closing:
        bank = None
        if options.memory is not None:
            bank = closing.enter_context(open_for_recall(options.memory, True, options.embeddings))
        agent = KwaiAgent(
            model,
            tools,
            profile,
            bank,
            options.max_steps,
            limits=Limits(seconds=options.max_seconds),
            planning=options.planning,
            approve=_approval(options),
            namespace=read_namespace(options.namespace) or (),
        )
        conversation = Conversation(agent, options)
        if options.question is not None:
            conversation.ask(options.question)
            return 0
        return conversation.run()


class Conversation:
    """Questions to one agent, each with those before it in view."""

    def __init__(self, agent: KwaiAgent, options: AgentOptions) -> None:
        self._agent, self._options = agent, options
        self._knowledge = [path.read_text("utf-8") for path in options.knowledge]
        self._messages: list[Any] = []

    def run(self) -> int:
        """Answer lines until the input ends. On a terminal, Ctrl-C stops an answer and not the conversation."""
        terminal = sys.stdin.isatty()
        if terminal:
            tools = ", ".join(self._agent.tools) or "none"
            _tell(
                f"{self._agent.profile.name}: tools {tools}; Ctrl-C stops an answer, Ctrl-D or /quit leaves"
            )
        while (question := _read(terminal)) is not None:
            if question.strip() == "/quit":
                break
            if not question.strip():
                continue
            try:
                self.ask(question)
            except KeyboardInterrupt:
                if not terminal:
                    raise
                _tell("\nstopped; what was found out so far is remembered")
        return 0

    def ask(self, question: str) -> None:
        """Answer one question: steps on stderr while they happen, the answer on stdout as it is written."""
        from langchain_core.messages import HumanMessage

        options, asked = self._options, [*self._messages, HumanMessage(question)]
        result: Any = None
        for part in self._agent.stream({"messages": asked, "knowledge": self._knowledge}):
            for event in part.get("events", ()):
                _show(event)
            if part.get("answer") and not options.json:
                print(printable(part["answer"]), end="", flush=True)
            result = part if result is None else result + part
        self._messages = result["messages"]
        if options.json:
            print(json.dumps(summarise(question, result), ensure_ascii=False, default=str), flush=True)
        else:
            print(flush=True)
            if result["stopped"] != "finished":
                _tell(f"the work stopped early: {result['stopped']}")
        if options.export is not None:
            self._export(result)

    def _export(self, result: dict[str, Any]) -> None:
        assert self._options.export is not None
        added = append_records(self._options.export, result, self._agent, self._options.export_templates)
        reason = f"nothing is added: {why_not(result)}"
        _tell(f"{self._options.export}: {f'{added} records added' if added else reason}")


def summarise(question: str, result: dict[str, Any]) -> dict[str, Any]:
    """Return a result as JSON values: question, answer, steps, why it stopped, what it cost."""
    steps = [
        {
            "index": step.index,
            "task_name": step.task_name,
            "tool": step.tool,
            "arguments": step.arguments,
            "result": step.result,
            "status": step.status,
            "trusted": step.trusted,
            "sources": list(step.sources),
        }
        for step in result["steps"]
    ]
    rest = {name: result[name] for name in ("answer", "stopped", "tainted", "usage")}
    rest["recalled"] = [{"id": record.id, "text": record.text} for record in result["recalled"]]
    return {"question": question, **rest, "steps": steps}


def _show(event: Event) -> None:
    if event.action in _SHOWN:
        # What it thinks about is the question, which the user has before him.
        text = "planning" if event.action == "thinking" else printable(event.text.strip())
        more = len(text) - _LONGEST_SHOWN
        _tell(f"{_SHOWN[event.action]} {text[:_LONGEST_SHOWN]}{f' … ({more:,} more)' if more > 0 else ''}")


def _approval(options: AgentOptions) -> Callable[[Call], bool] | None:
    """Return whom to ask before the agent acts upon text from outside; None for a plain no."""
    if options.allow_side_effects:
        return lambda call: True
    return _ask_user if sys.stdin.isatty() else None


def _ask_user(call: Call) -> bool:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    _tell(f"? {printable(f'{call.name}({arguments})')}\n  after reading text from outside. Run it? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes", "是")


def _read(terminal: bool) -> str | None:
    """Return the next line, None at the end; on a terminal Ctrl-C clears the line."""
    while True:
        try:
            if terminal:
                print("> ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        except KeyboardInterrupt:
            if not terminal:
                raise
            _tell("\n/quit or Ctrl-D leaves")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
