"""`scrubjay agent`: ask an agent with tools and a memory one question, or hold a conversation."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from scrubjay.agents.embeddings import make_embeddings
from scrubjay.experiments.cli.arguments import parse
from scrubjay.experiments.cli.failures import bad_input, check_at_least
from scrubjay.experiments.cli.untrusted_text import as_json, printable
from scrubjay.experiments.commands.options import ContextPolicy, Device, Embeddings, Foreign, MaxTokens
from scrubjay.experiments.files import read_text
from scrubjay.experiments.lm.models import open_bank, open_chat_model, open_for_recall, read_namespace
from scrubjay.experiments.lm.tuning import append_records, rejection_reason
from scrubjay.experiments.user_modules import make_importable

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

    from scrubjay.agents.kwai import Call, Event, KwaiAgent

_SYMBOLS = {"thinking": "…", "execute": "→", "observation": "←", "fail": "✗"}
_MAX_PRINTED = 300


@dataclass(frozen=True)
class AgentOptions:
    """Ask an agent that searches its memory, plans, calls tools and answers.

    Without a question the command starts a conversation, on the terminal or with one question per line of
    stdin. Steps are printed on stderr and answers on stdout. Ctrl-C stops the agent; records that are already
    in memory stay.
    """

    question: Positional[str | None] = None
    """Question to answer; default: start a conversation."""
    model: str = "smollm2"
    """Language model: "smollm2", a transformers folder, a GGUF file, or a LangChain provider:name such as
    openai:gpt-5."""
    tools: str = "auto"
    """Comma-separated tool names, "none", or "auto" for all tools that work on this machine. Name your own
    tool as module:name. It counts as a tool with side effects, unless you declare it with --declare or
    `scrubjay.agents.tool(side_effect=False)`."""
    declare: str = ""
    """Comma-separated declarations of your tools, such as search=reads,mail=writes. "reads" is a tool without
    side effects, "writes" one with side effects, "computes" one without side effects and with trusted
    results."""
    memory: Path | None = None
    """Memory bank file; created if missing."""
    embeddings: Embeddings = None
    foreign: Foreign = False
    namespace: str = ""
    """Namespace of the memory, outermost level first, such as user/ada or '["user", "a/b"]'."""
    knowledge: tuple[Path, ...] = ()
    """Text files that the agent receives as reference before any search."""
    policy: ContextPolicy = "sinks"
    budget: int | None = None
    """Number of tokens that the cache retains, for context policies with a budget. Prompts are limited to the
    budget minus --max-tokens, so that the cache evicts no part of a prompt. Default: the model's window, at
    most 8,192."""
    max_steps: int = 5
    """Maximum tool calls per question."""
    max_seconds: float = 300.0
    """Time limit in seconds. It applies to each question, checked between calls, and to each call to a
    provider."""
    planning: Literal["auto", "native", "json"] = "auto"
    """Plan format: native tool calls or JSON text; auto uses tool calls if the model supports them."""
    language: Literal["en", "zh"] = "en"
    """Language of prompts and tools; answers are in the language of the question."""
    name: str = "Scrubjay"
    """Name of the agent."""
    bio: str = ""
    """Short description of the agent, a few sentences."""
    instructions: str = ""
    """Instructions for the agent."""
    allow_side_effects: bool = False
    """Do not ask for approval. By default, after the agent has read untrusted text, it asks before it calls a
    tool with side effects or opens a web address that the model generated."""
    record: Path | None = None
    """File to which results of network tools are appended, for --replay."""
    replay: Path | None = None
    """Take results of network tools from this file, without network access."""
    export: Path | None = None
    """File to which the steps of each question are appended as instruction-tuning records."""
    export_templates: int = 4
    """Number of records in --export per question; each record uses a different prompt template."""
    look: Path | None = None
    """File for a page (.html) or trace (.json) of the last question: recalled records, plans, tool calls and
    results."""
    json: bool = False
    """Print one JSON object per question instead of the answer."""
    temperature: float | None = None
    """Sampling temperature; 0 is greedy decoding. Default: set by the local model or the provider."""
    max_tokens: MaxTokens = None
    call_bias: float = 0.0
    """Logit bias of a local model towards tool calls; about 4 suits small models, 0 disables it."""
    seed: int | None = None
    """Random seed of a local model; default: replies vary."""
    device: Device = "cpu"

    def check(self) -> None:
        """Raise ValueError on invalid or conflicting options, before a model is loaded."""
        if self.question is not None and not self.question.strip():
            raise ValueError("the question is empty; enter a question, or omit it to start a conversation")
        if self.record is not None and self.replay is not None:
            raise ValueError("--record and --replay cannot be combined; give one of them")
        if self.replay is not None and not self.replay.is_file():
            raise ValueError(
                f"replay file {self.replay} does not exist; create it with --record {self.replay}"
            )
        check_at_least(self, 1, "max_steps", "max_seconds", "export_templates")
        _read_declarations(self.declare)
        for path in self.knowledge:
            if not path.is_file():
                raise ValueError(f"file {path} does not exist")
        if self.look is not None:
            from scrubjay.experiments.viz.look import check_format

            check_format(self.look)
        for path in (self.memory, self.record, self.export, self.look):
            if path is not None and not path.absolute().parent.is_dir():
                raise ValueError(f"folder {path.parent} for {path.name} does not exist")
        if self.foreign and self.memory is None:
            raise ValueError("--foreign requires a memory; add --memory FILE")
        if self.embeddings is not None and self.memory is None:
            raise ValueError(f"--embeddings {self.embeddings} requires a memory; add --memory FILE")
        if self.embeddings is not None:
            make_embeddings(self.embeddings)
        if self.memory is not None and self.memory.exists():
            open_bank(self.memory, create=False, foreign=self.foreign).close()


def run(argv: Sequence[str]) -> int:
    """`scrubjay agent [QUESTION] [--model NAME] [--tools NAME,...] [--memory FILE]`."""
    options = parse(AgentOptions, argv, "scrubjay agent")
    with bad_input():
        return run_agent(options)


def run_agent(options: AgentOptions) -> int:
    """Answer the question or hold a conversation; return the exit code.

    Raises ValueError or ImportError on invalid options.
    """
    from scrubjay.agents.kwai import KwaiAgent, Profile
    from scrubjay.agents.kwai.limits import make_limits
    from scrubjay.agents.language.declarations import describe_undeclared
    from scrubjay.agents.language.namespaces import escape_namespace

    options.check()
    namespace = escape_namespace(read_namespace(options.namespace) or ())
    profile = Profile(options.name, options.bio, options.instructions, options.language)
    tools = choose_tools(options)
    approve = _approval_callback(options)
    if approve is None and (problem := describe_undeclared(tools, _declare_flag)):
        _print_status(f"warning: {problem}")
    model = load_model(options)
    with contextlib.ExitStack() as closing:
        bank = None
        if options.memory is not None:
            bank = closing.enter_context(
                open_for_recall(options.memory, True, options.embeddings, options.foreign)
            )
        agent = KwaiAgent(
            model,
            tools,
            profile,
            bank,
            options.max_steps,
            limits=make_limits(model, seconds=options.max_seconds),
            planning=options.planning,
            # Without approval the agent would warn again about undeclared tools.
            approve=approve or (lambda call: False),
            namespace=namespace,
        )
        conversation = Conversation(agent, options)
        if options.question is not None:
            return 0 if conversation.ask(options.question) else 1
        return conversation.run()


class Conversation:
    """Conversation with one agent. The agent reads each question together with the earlier messages."""

    def __init__(self, agent: KwaiAgent, options: AgentOptions) -> None:
        self._agent, self._options = agent, options
        self._knowledge = [read_text(path) for path in options.knowledge]
        self._messages: list[Any] = []

    def run(self) -> int:
        """Answer each line of the input until it ends; return the exit code.

        On a terminal, Ctrl-C or a model error ends only the current answer, not the conversation.
        """
        terminal = sys.stdin.isatty()
        if terminal:
            tools = ", ".join(self._agent.tools) or "none"
            _print_status(
                f"{self._agent.profile.name}: tools {tools}; Ctrl-C stops an answer, Ctrl-D or /quit exits"
            )
        while (question := _read_line(terminal)) is not None:
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
                _print_status("\nstopped; results so far are kept in the conversation")
        return 0

    def ask(self, question: str) -> bool:
        """Answer one question: stream steps to stderr and the answer to stdout.

        Return False if the model failed; the question is then not part of the conversation.
        """
        from langchain_core.messages import HumanMessage

        from scrubjay.agents.kwai.messages import is_cut_off

        options, messages = self._options, [*self._messages, HumanMessage(question)]
        failure = _failure_handler()
        result: Any = None
        try:
            for part in self._agent.stream(
                {"messages": messages, "knowledge": self._knowledge}, {"callbacks": [failure]}
            ):
                for event in part.get("events", ()):
                    _print_event(event)
                if part.get("answer") and not options.json:
                    print(printable(part["answer"]), end="", flush=True)
                result = part if result is None else result + part
        except Exception as error:
            if error is not failure.error:
                raise
            if result is not None and result.get("answer") and not options.json:
                print(flush=True)
            _print_status(f"scrubjay: model={options.model!r} failed: {_one_line(error)}")
            if result is not None and result["events"]:
                read = result["events"][-1].is_tainted
                self._show_page({"stopped": "the model failed", "usage": {}, "tainted": read} | result)
            return False
        self._messages = result["messages"]
        if options.json:
            print(as_json(summarise(question, result)), flush=True)
        else:
            print(flush=True)
            if result["stopped"] != "finished":
                _print_status(f"stopped early: {result['stopped']}")
        if result["dropped_tokens"]:
            _print_status(
                f"the model's cache dropped {result['dropped_tokens']} tokens of its prompts; raise "
                "--budget, or choose --policy chunks"
            )
        if is_cut_off(result["messages"][-1]):
            _print_status("the answer was cut at the token limit; raise it with --max-tokens")
        if options.export is not None:
            self._export(result)
        self._show_page(result)
        return True

    def _show_page(self, result: dict[str, Any]) -> None:
        """Write the --look page of the last question, even if the model failed."""
        if self._options.look is not None:
            from scrubjay.experiments.viz.look import look

            look(result).save(self._options.look)

    def _export(self, result: dict[str, Any]) -> None:
        assert self._options.export is not None
        count = append_records(self._options.export, result, self._agent, self._options.export_templates)
        reason = f"no records added: {rejection_reason(result)}"
        _print_status(f"{self._options.export}: {f'{count} records added' if count else reason}")


def summarise(question: str, result: dict[str, Any]) -> dict[str, Any]:
    """Return a result as JSON values: question, answer, steps, stop reason and token usage."""
    names = ("index", "task_name", "tool", "arguments", "result", "status", "trusted", "cut_characters")
    steps = [
        {name: getattr(step, name) for name in names}
        | {"dropped_blocks": list(step.dropped_blocks), "sources": list(step.sources)}
        for step in result["steps"]
    ]
    names = ("answer", "stopped", "refused", "tainted", "usage", "dropped_tokens")
    rest = {name: result[name] for name in names}
    rest["recalled"] = [{"id": record.id, "text": record.text} for record in result["recalled"]]
    return {"question": question, **rest, "steps": steps}


def _failure_handler() -> Any:
    """Return a LangChain callback that stores the last error of the model in its attribute `error`.

    The caller treats an exception as a model error if it is this object. The class of an exception does not
    suffice, since error classes differ by provider.
    """
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
    # Connection errors of providers name their reason only in the root cause.
    why = f" ({first})" if str(first) and str(first) not in str(error) else ""
    text = printable(" ".join(f"{type(error).__name__}: {error}{why}".split()))
    return text if len(text) <= _MAX_PRINTED else f"{text[:_MAX_PRINTED]} …"


def _print_event(event: Event) -> None:
    if event.action in _SYMBOLS:
        # The text of this event is the question, which the user has just typed.
        text = "planning" if event.action == "thinking" else printable(event.text.strip())
        more = len(text) - _MAX_PRINTED
        _print_status(
            f"{_SYMBOLS[event.action]} {text[:_MAX_PRINTED]}{f' … ({more:,} more)' if more > 0 else ''}"
        )


def _approval_callback(options: AgentOptions) -> Callable[[Call], bool] | None:
    """Return the callback that approves tool calls after untrusted text was read; None rejects such calls."""
    if options.allow_side_effects:
        return lambda call: True
    return _ask_user if sys.stdin.isatty() else None


def _ask_user(call: Call) -> bool:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    _print_status(
        f"? {printable(f'{call.name}({arguments})')}\n  after reading untrusted text. Run it? [y/N]"
    )
    return sys.stdin.readline().strip().lower() in ("y", "yes", "是")


def _read_line(terminal: bool) -> str | None:
    """Return the next line of stdin, or None at its end. On a terminal, Ctrl-C clears the line."""
    while True:
        try:
            if terminal:
                print("> ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        except KeyboardInterrupt:
            if not terminal:
                raise
            _print_status("\ntype /quit or Ctrl-D to exit")


def _print_status(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)


def load_model(options: AgentOptions) -> Any:
    """Load and return the chat model.

    Raises ValueError or ImportError with a hint on the fix.
    """
    return open_chat_model(
        options.model,
        options.max_seconds,
        options.temperature,
        options.max_tokens,
        policy=options.policy,
        budget=options.budget,
        call_bias=options.call_bias,
        seed=options.seed,
        device=options.device,
    )


def choose_tools(options: AgentOptions) -> list[BaseTool]:
    """Return the tools that `options.tools` names.

    Raises ValueError on an unknown tool, and ImportError if the module of a tool cannot be imported.
    """
    from scrubjay.agents.language.declarations import as_tool, declare_tools, is_trusted
    from scrubjay.agents.tools import make_tools

    names = [tool_name.strip() for tool_name in options.tools.split(",") if tool_name.strip()]
    if not names:
        raise ValueError("--tools is empty; give comma-separated tool names, auto or none")
    tools: list[BaseTool] = []
    settings = {
        "language": options.language,
        "offline": options.replay is not None,
        "replay": options.replay or options.record,
    }
    for tool_name in names:
        if tool_name == "auto":
            can_reach = options.replay is not None or _has_route()
            tools += [
                tool
                for tool in make_tools("auto", **settings)
                if all(importlib.util.find_spec(name) for name in (tool.metadata or {})["packages"])
                and (can_reach or is_trusted(tool))
            ]
        elif ":" in tool_name:
            tools.append(as_tool(_import_tool(tool_name)))
        else:
            tools += make_tools([tool_name], **settings)
    tools_by_name = {tool.name: tool for tool in tools}
    return list(declare_tools(tools_by_name, _read_declarations(options.declare)).values())


def _read_declarations(text: str) -> dict[str, str]:
    """Return the declarations in the option --declare by tool name. Raises ValueError on a wrong one."""
    from scrubjay.agents.language.declarations import check_declarations

    pairs = [item.partition("=") for item in text.split(",") if item.strip()]
    return check_declarations({name.strip(): word.strip() for name, _, word in pairs})


def _declare_flag(names: Sequence[str]) -> str:
    return f"--declare {','.join(f'{name}=reads' for name in names)}"


def _import_tool(path: str) -> Any:
    module, _, name = path.partition(":")
    make_importable(module)
    try:
        tool = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError) as error:
        raise type(error)(f"tool {path!r}: {error}") from error
    if not callable(tool) and not hasattr(tool, "invoke"):
        raise ValueError(f"tool {path!r}: {module} has no function or tool {name!r}")
    return tool


def _has_route() -> bool:
    """Return True if this machine has a network route; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address reserved for documentation, RFC 5737
        except OSError:
            return False
    return True
