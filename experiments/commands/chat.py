"""`scrubjay chat`: chat with a local language model in the terminal."""

from __future__ import annotations

import itertools
import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from scrubjay.experiments.cli import arguments
from scrubjay.experiments.cli.arguments import did_you_mean
from scrubjay.experiments.cli.failures import bad_input
from scrubjay.experiments.cli.untrusted_text import one_line, printable
from scrubjay.experiments.commands.options import Budget, ContextPolicy, Device, MaxTokens
from scrubjay.experiments.files import parse, read_untrusted, write_atomically
from scrubjay.experiments.lm.models import open_local_model

if TYPE_CHECKING:
    from scrubjay.experiments.viz.language_model import RetentionRecorder

_THREAD = "chat"
_MESSAGES = "messages.json"
_COMMANDS = {
    "/help": "list the commands",
    "/policy": "/policy NAME [BUDGET]: switch the context policy and process the conversation again",
    "/save": "/save FOLDER: write the conversation and its cache to disk",
    "/load": "/load FOLDER: continue a conversation from disk",
    "/reset": "start a new conversation",
    "/quit": "exit; so does Ctrl-D",
}


@dataclass(frozen=True)
class ChatOptions:
    """Chat with a local language model. Ctrl-C stops an answer; /help lists the commands."""

    model: str = "smollm2"
    """Language model: "smollm2", a transformers folder, or a GGUF file."""
    policy: ContextPolicy = "sinks"
    budget: Budget = None
    system: str = ""
    """System prompt."""
    temperature: float | None = None
    """Sampling temperature; default: 0, greedy decoding."""
    top_p: float | None = None
    """Nucleus sampling: sample from the most likely tokens with this total probability; default: 0.95."""
    max_tokens: MaxTokens = None
    seed: int | None = None
    """Random seed; default: answers vary."""
    device: Device = "cpu"
    look: Path | None = None
    """File for a page (.html) or trace (.json), rewritten after each answer. It shows which tokens of the
    conversation the cache retains, and which tokens the model attends to and retrieves."""


class Chat:
    """Conversation with one model: messages, and commands that begin with a slash.

    Raises ValueError on invalid options.
    """

    def __init__(self, options: ChatOptions, console: Console) -> None:
        self.options, self._console = options, console
        self._messages: list[Any] = []
        self._keeping: RetentionRecorder | None = None
        if options.look is not None:
            from scrubjay.experiments.viz.look import check_format

            check_format(options.look)
        self._chat = self._model(options.policy, options.budget)
        self._start()

    def run(self) -> int:
        """Read lines until the input ends; return the exit code."""
        console = self._console
        with console.status("loading the model"):
            _ = self._chat.loaded_model
        console.print(
            f"[bold]{escape(one_line(self.options.model))}[/bold], {self._describe_policy()}; "
            "/help for commands, Ctrl-C stops an answer"
        )
        while (line := self._read()) is not None:
            words = line.split()
            if not words:
                continue
            try:
                if words[0] == "/quit":
                    break
                if words[0].startswith("/"):
                    self._command(words[0], words[1:])
                else:
                    self.answer(line)
            except (ValueError, OSError) as error:
                console.out(one_line(error), style="red", highlight=False)
            except KeyboardInterrupt:
                console.print("\nstopped; the next answer processes the conversation again")
        return 0

    def answer(self, text: str) -> None:
        """Stream the answer to a message, then print the cost: tokens, cache size, speed."""
        from langchain_core.messages import AIMessage, HumanMessage

        messages = [*self._messages, HumanMessage(text)]
        reply, last = "", None
        stream = self._chat.stream(messages, {"configurable": {"thread_id": _THREAD}})
        with _stop_on_interrupt() as stop_event, self._record_cache():
            with self._console.status("reading"):
                first = next(stream)
            for chunk in itertools.chain([first], stream):
                reply += chunk.text
                self._console.out(printable(chunk.text), end="", highlight=False)
                last = chunk
                if stop_event.is_set():
                    break
            stream.close()
        self._messages = [*messages, AIMessage(reply)]
        self._console.print()
        self._console.print(f"[dim]{self._cost(last, stop_event.is_set())}[/dim]")

    @contextmanager
    def _record_cache(self) -> Iterator[None]:
        """Record the cache contents in the `with` block, then write the --look page, even after an error."""
        if self.options.look is None:
            yield
            return
        from scrubjay.experiments.viz.language_model import RetentionRecorder, record_calls
        from scrubjay.experiments.viz.look import Look
        from scrubjay.memory.context.retrieval_heads import stored_retrieval_heads

        local_model = self._chat.loaded_model
        if self._keeping is None:
            self._keeping = RetentionRecorder(local_model.tokenizer)
        try:
            with record_calls(local_model.model, self._keeping):
                yield
        finally:
            if len(self._keeping):
                title = f"a chat with {self.options.model} under {self._chat.policy}"
                Look(self._keeping.trace(title, stored_retrieval_heads(local_model.model))).save(
                    self.options.look
                )

    def _cost(self, last: Any, was_stopped: bool) -> str:
        cache_size = f"{self._chat.cache_bytes(_THREAD) / 2**20:.1f} MiB"
        if dropped_tokens := self._chat.dropped_tokens(_THREAD):
            cache_size += f" ({dropped_tokens} tokens dropped; keep them with /policy chunks or a budget)"
        usage = last.usage_metadata if last is not None else None
        if was_stopped or last is None or usage is None:
            return f"stopped; cache {cache_size}"
        read = usage["input_token_details"]["cache_read"]
        seconds = last.response_metadata["seconds"]
        return (
            f"{usage['total_tokens']} tokens ({usage['input_tokens'] - read} read, {usage['output_tokens']} "
            "written), "
            f"cache {cache_size}, {usage['output_tokens'] / seconds:.1f} tokens/s"
        )

    def _command(self, name: str, words: list[str]) -> None:
        if name not in _COMMANDS:
            raise ValueError(
                f"unknown command {name}; choose from "
                f"{', '.join(_COMMANDS)}{did_you_mean(name, list(_COMMANDS))}"
            )
        if name == "/help":
            for command, description in _COMMANDS.items():
                self._console.out(f"{command:<8} {description}", highlight=False)
        elif name == "/reset":
            self._start()
            self._console.print("new conversation")
        elif name == "/policy":
            self._change_policy(words)
        else:
            if len(words) != 1:
                raise ValueError(_COMMANDS[name])
            (self._save if name == "/save" else self._load)(Path(words[0]).expanduser())

    def _change_policy(self, words: list[str]) -> None:
        if words:
            budget = self.options.budget
            if len(words) > 1:
                try:
                    budget = int(words[1])
                except ValueError:
                    raise ValueError(f"budget {words[1]!r}: expected a whole number") from None
            chat = self._model(words[0], budget)
            # Load it before the old chat releases the shared model.
            _ = chat.loaded_model
            self._chat = chat
        self._console.print(self._describe_policy())

    def _save(self, folder: Path) -> None:
        from langchain_core.messages import messages_to_dict

        self._chat.save_conversation(folder, _THREAD)
        text = json.dumps(messages_to_dict(self._messages), ensure_ascii=False, indent=1)
        write_atomically(folder / _MESSAGES, text)
        self._console.out(one_line(f"saved in {folder}"))

    def _load(self, folder: Path) -> None:
        from langchain_core.messages import messages_from_dict

        try:
            messages = messages_from_dict(parse(read_untrusted(folder / _MESSAGES), folder / _MESSAGES))
        except (AttributeError, OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} has no saved conversation: {error}") from error
        if self.options.look is None:
            self._chat.load_conversation(folder, _THREAD)
        else:  # processed again with the next answer: the page needs a record of every token
            self._chat.forget_conversation(_THREAD)
        self._messages = messages
        self._console.out(one_line(f"loaded {folder}: {len(messages)} messages"))

    def _start(self) -> None:
        from langchain_core.messages import SystemMessage

        self._chat.forget_conversation(_THREAD)
        self._messages = [SystemMessage(self.options.system)] if self.options.system else []

    def _model(self, policy: str, budget: int | None) -> Any:
        options = self.options
        return open_local_model(
            model=options.model,
            policy=policy,
            budget=budget,
            temperature=options.temperature,
            top_p=options.top_p,
            max_tokens=options.max_tokens,
            seed=options.seed,
            device=options.device,
            track_tokens=options.look is not None,
        )

    def _describe_policy(self) -> str:
        policy = self._chat.context_policy
        sizes = ", ".join(f"{name} {value}" for name, value in vars(policy).items())
        return f"policy {self._chat.policy}" + (f" ({sizes})" if sizes else "")

    def _read(self) -> str | None:
        """Return the next line, or None at the end of the input. Ctrl-C clears the line."""
        while True:
            try:
                if sys.stdin.isatty():
                    return self._console.input("[bold green]> [/bold green]")
                line = sys.stdin.readline()
                return line.rstrip("\n") if line else None
            except EOFError:
                return None
            except KeyboardInterrupt:
                self._console.print("\ntype /quit or Ctrl-D to exit")


@contextmanager
def _stop_on_interrupt() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C sets; a second Ctrl-C raises KeyboardInterrupt.

    The caller checks the event after each token. The answer then ends at a whole token, and the cache stays
    consistent.
    """
    stop_event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop_event
        return

    def stop(*_: object) -> None:
        if stop_event.is_set():
            raise KeyboardInterrupt
        stop_event.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stop_event
    finally:
        signal.signal(signal.SIGINT, before)


def run(argv: Sequence[str]) -> int:
    """`scrubjay chat [--model NAME|FOLDER|FILE.gguf] [--policy NAME] [--budget N] [--look FILE]`."""
    options = arguments.parse(ChatOptions, argv, "scrubjay chat")
    with bad_input():
        return Chat(options, Console()).run()
