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
    from scrubjay.agents.kwai import KwaiAgent, Profile
    from scrubjay.agents.kwai.limits import limits_for

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
            limits=limits_for(model, seconds=options.max_seconds),
            planning=options.planning,
            approve=_approval(options),
            namespace=read_namespace(options.namespace) or (),
        )
        conversation = Conversation(agent, options)
        if options.question is not None:
            return 0 if conversation.ask(options.question) else 1
        return conversation.run()


class Conversation:
    """Questions to one agent, each with those before it in view."""

    def __init__(self, agent: KwaiAgent, options: AgentOptions) -> None:
        self._agent, self._options = agent, options
        self._knowledge = [path.read_text("utf-8") for path in options.knowledge]
        self._messages: list[Any] = []

    def run(self) -> int:
        """Answer lines until the input ends; return the exit code.

        On a terminal, Ctrl-C or a model that fails ends an answer and not the conversation.
        """
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
                if not self.ask(question) and not terminal:
                    return 1
            except KeyboardInterrupt:
                if not terminal:
                    raise
                _tell("\nstopped; what was found out so far is remembered")
        return 0

    def ask(self, question: str) -> bool:
        """Answer one question: steps on stderr while they happen, the answer on stdout as it is written.

        Return whether there is an answer; where the model failed there is none, and the question is not gone on from.
        """
        from langchain_core.messages import HumanMessage

        from scrubjay.agents.kwai.replies import was_cut

        options, asked = self._options, [*self._messages, HumanMessage(question)]
        failure = _failure_handler()
        result: Any = None
        try:
            for part in self._agent.stream(
                {"messages": asked, "knowledge": self._knowledge}, {"callbacks": [failure]}
            ):
                for event in part.get("events", ()):
                    _show(event)
                if part.get("answer") and not options.json:
                    print(printable(part["answer"]), end="", flush=True)
                result = part if result is None else result + part
        except Exception as error:
            if error is not failure.error:
                raise
            if result is not None and result.get("answer") and not options.json:
                print(flush=True)
            _tell(f"scrubjay: model={options.model!r} failed: {_one_line(error)}")
            return False
        self._messages = result["messages"]
        if options.json:
            print(json.dumps(summarise(question, result), ensure_ascii=False, default=str), flush=True)
        else:
            print(flush=True)
            if result["stopped"] != "finished":
                _tell(f"the work stopped early: {result['stopped']}")
        if was_cut(result["messages"][-1]):
            _tell("the answer ends at the model's limit of tokens; --max-tokens gives it more")
        if options.export is not None:
            self._export(result)
        return True

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


def _failure_handler() -> Any:
    """Return a callback that keeps the last error which a model raised, whatever its provider calls it."""
    from langchain_core.callbacks import BaseCallbackHandler

    class Failure(BaseCallbackHandler):
        error: BaseException | None = None

        def on_llm_error(self, error: BaseException, **_: Any) -> None:
            self.error = error

    return Failure()


def _one_line(error: Exception) -> str:
    first: BaseException = error
    while first.__cause__ is not None:
        first = first.__cause__
    # What providers call a connection error says why only at its root.
    why = f" ({first})" if str(first) and str(first) not in str(error) else ""
    text = printable(" ".join(f"{type(error).__name__}: {error}{why}".split()))
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]} …"


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
