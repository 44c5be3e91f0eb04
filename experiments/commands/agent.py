"""`scrubjay agent`: one question, or a conversation, with an agent that has tools and a memory."""

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

from scrubjay.agents.embeddings import EmbeddingsName, make_embeddings
from scrubjay.experiments.language.banks import open_bank, open_for_recall, read_namespace
from scrubjay.experiments.language.models import open_chat_model
from scrubjay.experiments.language.tuning import append_records, why_not
from scrubjay.experiments.runs.own import make_importable
from scrubjay.experiments.runs.reading import read_text
from scrubjay.experiments.words.arguments import parse
from scrubjay.experiments.words.foreign import as_json, printable
from scrubjay.experiments.words.terminal import bad_input

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

    from scrubjay.agents.kwai import Call, Event, KwaiAgent

_SHOWN = {"thinking": "…", "execute": "→", "observation": "←", "fail": "✗"}
_LONGEST_SHOWN = 300


@dataclass(frozen=True)
class AgentOptions:
    """Ask an agent that recalls, plans, calls tools and answers when it knows.

    Without a question it holds a conversation: on a terminal, or over the lines of the standard input. Steps
    are shown on stderr, the answer on stdout. Ctrl-C stops it; what it remembered stays.
    """

    question: Positional[str | None] = None
    """What to ask."""
    model: str = "smollm2"
    """"smollm2", a folder of transformers, a GGUF file, or provider:name of langchain, as openai:gpt-5."""
    tools: str = "auto"
    """Names with commas between, auto for all that can work here, none, and your own as module:name, which
    count as changing things unless `scrubjay.agents.tool(side_effect=False)` declares that they do not."""
    memory: Path | None = None
    """File of a memory bank; begun if it is not there."""
    embeddings: EmbeddingsName | None = None
    """What the memory recalls by besides words: minilm for English, e5 for a hundred languages. One memory,
    one kind."""
    namespace: str = ""
    """Whose memory it is, from the widest circle: user/ada."""
    knowledge: tuple[Path, ...] = ()
    """Text files to answer from, before anything that is looked up."""
    policy: str = "sinks"
    """What the cache of a local model keeps."""
    budget: int = 4096
    """Tokens kept, where the policy has a budget. Prompts take what --max-tokens leaves of it, so that none
    falls out of view."""
    max_steps: int = 5
    """Tools called for one question at most."""
    max_seconds: float = 300.0
    """Time for one question, looked at between calls, and of each call to a provider; a slow model needs
    more."""
    planning: Literal["auto", "native", "json"] = "auto"
    """How the model plans: by native calls of tools, or as JSON text."""
    language: Literal["en", "zh"] = "en"
    """Language of prompts and tools; the answer is in the question's."""
    name: str = "Scrubjay"
    """What the agent calls itself."""
    bio: str = ""
    """A few sentences about it."""
    instructions: str = ""
    """How it is to work."""
    allow_side_effects: bool = False
    """Do not ask before it acts upon text from outside: tools that change things, addresses it made up."""
    record: Path | None = None
    """File to which answers of network tools are added."""
    replay: Path | None = None
    """Give network tools their answers from this file; no network is used."""
    export: Path | None = None
    """File to which each question's steps are added as instruction-tuning records."""
    export_templates: int = 4
    """Prompt templates in which a record is written."""
    look: Path | None = None
    """File to which the last question's turn is written, as a page (.html) or a trace (.json): what was
    recalled, planned, called and read."""
    json: bool = False
    """Print one JSON object a question in place of the answer."""
    temperature: float | None = None
    """0 takes the likeliest word always; default: that of a local model, a provider's own of its models."""
    max_tokens: int | None = None
    """Tokens a reply has at most; default: 512 of a local model, a provider's own of its models."""
    call_bias: float = 0.0
    """Makes a local model that may call a tool do so more often; small ones want some 4."""
    seed: int | None = None
    """Makes replies of a local model repeatable."""
    device: str = "cpu"
    """Where a local model runs."""

    def check(self) -> None:
        """Raise ValueError on what cannot work together, and before a model is loaded."""
        if self.question is not None and not self.question.strip():
            raise ValueError("the question is empty; ask something, or leave it away for a conversation")
        if self.record is not None and self.replay is not None:
            raise ValueError("--record needs the network, --replay does without: give one of them")
        if self.replay is not None and not self.replay.is_file():
            raise ValueError(f"there is no file {self.replay} to replay; --record {self.replay} makes one")
        for name in ("max_steps", "max_seconds", "export_templates"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        for path in self.knowledge:
            if not path.is_file():
                raise ValueError(f"there is no file {path}")
        if self.look is not None:
            from scrubjay.experiments.looking.look import check_format

            check_format(self.look)
        for path in (self.memory, self.record, self.export, self.look):
            if path is not None and not path.absolute().parent.is_dir():
                raise ValueError(f"there is no folder {path.parent} for {path.name}")
        if self.embeddings is not None and self.memory is None:
            raise ValueError(
                f"--embeddings {self.embeddings} is how a memory recalls: give --memory FILE, too"
            )
        if self.embeddings is not None:
            make_embeddings(self.embeddings)
        if self.memory is not None and self.memory.exists():
            open_bank(self.memory, create=False).close()


def run(words: Sequence[str]) -> int:
    """`scrubjay agent [QUESTION] [--model NAME] [--tools NAME,...] [--memory FILE]`."""
    options = parse(AgentOptions, words, "scrubjay agent")
    with bad_input():
        return run_agent(options)


def run_agent(options: AgentOptions) -> int:
    """Answer what is asked; return the exit code.

    Raises ValueError or ImportError on options that cannot work.
    """
    from scrubjay.agents.kwai import KwaiAgent, Profile
    from scrubjay.agents.kwai.limits import limits_for
    from scrubjay.agents.language.namespaces import as_literal

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
            namespace=as_literal(read_namespace(options.namespace) or ()),
        )
        conversation = Conversation(agent, options)
        if options.question is not None:
            return 0 if conversation.ask(options.question) else 1
        return conversation.run()


class Conversation:
    """Questions to one agent, each with those before it in view."""

    def __init__(self, agent: KwaiAgent, options: AgentOptions) -> None:
        self._agent, self._options = agent, options
        self._knowledge = [read_text(path) for path in options.knowledge]
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

        Return whether there is an answer; where the model failed there is none, and the question is not gone
        on from.
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
            if result is not None and result["events"]:
                read = result["events"][-1].tainted
                self._show_page({"stopped": "the model failed", "usage": {}, "tainted": read} | result)
            return False
        self._messages = result["messages"]
        if options.json:
            print(as_json(summarise(question, result)), flush=True)
        else:
            print(flush=True)
            if result["stopped"] != "finished":
                _tell(f"the work stopped early: {result['stopped']}")
        if was_cut(result["messages"][-1]):
            _tell("the answer ends at the model's limit of tokens; --max-tokens gives it more")
        if options.export is not None:
            self._export(result)
        self._show_page(result)
        return True

    def _show_page(self, result: dict[str, Any]) -> None:
        """Write the page of a turn, one that failed, too: there it is wanted most."""
        if self._options.look is not None:
            from scrubjay.experiments.looking.look import look

            look(result).save(self._options.look)

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
    print(printable(text), file=sys.stderr, flush=True)


def load_model(options: AgentOptions) -> Any:
    """Return the chat model, a local one in memory.

    Raises ValueError or ImportError with what to do about it.
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


def choose_tools(options: AgentOptions, has_route: Callable[[], bool] | None = None) -> list[BaseTool]:
    """Return the tools by the names given.

    Raises ValueError on a name that is none, ImportError on its module.
    """
    from scrubjay.agents.language.declarations import is_trusted
    from scrubjay.agents.tools import make_tools
    from scrubjay.agents.tools.declared import as_tool

    words = [word.strip() for word in options.tools.split(",") if word.strip()]
    if not words:
        raise ValueError("--tools is empty; name tools with commas between, or auto, or none")
    chosen: list[BaseTool] = []
    made = {
        "language": options.language,
        "offline": options.replay is not None,
        "replay": options.replay or options.record,
    }
    for word in words:
        if word == "none":
            continue
        if word == "auto":
            offline = options.replay is None and not (has_route or _has_route)()
            working = [
                one
                for one in make_tools("auto", **made)
                if all(importlib.util.find_spec(name) for name in (one.metadata or {})["packages"])
                and not (offline and not is_trusted(one))
            ]
            chosen += working
        elif ":" in word:
            chosen.append(as_tool(_resolve(word)))
        else:
            chosen += make_tools([word], **made)
    return list({one.name: one for one in chosen}.values())


def _resolve(word: str) -> Any:
    module, _, name = word.partition(":")
    make_importable(module)
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError) as error:
        raise type(error)(f"tool {word!r}: {error}") from error
    if not callable(found) and not hasattr(found, "invoke"):
        raise ValueError(f"tool {word!r}: {module} has no function or tool {name!r}")
    return found


def _has_route() -> bool:
    """Return whether packets would leave this machine; none is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation, RFC 5737
        except OSError:
            return False
    return True
