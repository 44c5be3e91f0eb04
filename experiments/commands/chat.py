"""`scrubjay chat`: talk to a local model in the terminal, as long as you like."""

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

from scrubjay.experiments.language.models import open_local_model
from scrubjay.experiments.runs.reading import parse, read_kept
from scrubjay.experiments.words import arguments
from scrubjay.experiments.words.arguments import did_you_mean
from scrubjay.experiments.words.foreign import one_line, printable
from scrubjay.experiments.words.terminal import bad_input

if TYPE_CHECKING:
    from scrubjay.experiments.looking.keeping import Keeping

_THREAD = "chat"
_MESSAGES = "messages.json"
_COMMANDS = {
    "/help": "what can be typed",
    "/policy": "/policy NAME [BUDGET]: keep the cache by another policy, and read the conversation again",
    "/save": "/save FOLDER: write the conversation and its cache to disk",
    "/load": "/load FOLDER: go on with a conversation from disk",
    "/reset": "forget the conversation",
    "/quit": "leave; so does the end of the input",
}


@dataclass(frozen=True)
class ChatOptions:
    """Talk to a local language model. Ctrl-C stops an answer; /help tells what else can be typed."""

    model: str = "smollm2"
    """"smollm2", a folder of transformers, or a GGUF file."""
    policy: str = "sinks"
    """What the cache keeps of a conversation that does not end."""
    budget: int = 1024
    """Tokens kept, where the policy has a budget."""
    system: str = ""
    """What the model is told before the conversation."""
    temperature: float = 0.7
    """Words are drawn, the more freely the higher; 0 takes the likeliest always."""
    top_p: float = 0.95
    """Words are drawn among the likeliest that have this much probability together."""
    max_tokens: int = 512
    """Tokens of an answer at most."""
    seed: int | None = None
    """Makes answers repeatable."""
    device: str = "cpu"
    """Where the model runs."""
    look: Path | None = None
    """A page (.html) or a trace (.json), written after each answer: what the cache keeps, reads and fetches
    of each token of the conversation."""


class Chat:
    """One conversation with one model: messages, and commands that begin with a slash.

    Raises ValueError on options that cannot work.
    """

    def __init__(self, options: ChatOptions, console: Console) -> None:
        self.options, self._console = options, console
        self._messages: list[Any] = []
        self._keeping: Keeping | None = None
        if options.look is not None:
            from scrubjay.experiments.looking.look import check_format

            check_format(options.look)
        self._chat = self._model(options.policy, options.budget)
        self._start()

    def run(self) -> int:
        """Read lines until the input ends; return the exit code."""
        console = self._console
        console.print(
            f"[bold]{self.options.model}[/bold], {self._described()}; /help for commands, Ctrl-C stops an "
            "answer"
        )
        with console.status("loading the model"):
            _ = self._chat.loaded
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
                console.print("\nstopped at once; the next answer reads the conversation again")
        return 0

    def answer(self, text: str) -> None:
        """Ask, print the answer as it comes, then what it cost."""
        from langchain_core.messages import AIMessage, HumanMessage

        asked = [*self._messages, HumanMessage(text)]
        said, last = "", None
        stream = self._chat.stream(asked, {"configurable": {"thread_id": _THREAD}})
        with _interruptible() as stopped, self._noted():
            with self._console.status("reading"):
                first = next(stream)
            for chunk in itertools.chain([first], stream):
                said += chunk.text
                self._console.out(printable(chunk.text), end="", highlight=False)
                last = chunk
                if stopped.is_set():
                    break
            stream.close()
        self._messages = [*asked, AIMessage(said)]
        self._console.print()
        self._console.print(f"[dim]{self._cost(last, stopped.is_set())}[/dim]")

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """While entered, note what the cache keeps; then write the page, whatever ended the answer."""
        if self.options.look is None:
            yield
            return
        from scrubjay.experiments.looking.keeping import Keeping, noted
        from scrubjay.experiments.looking.look import Look
        from scrubjay.memory.heads.retrieval import stored_retrieval_heads

        loaded = self._chat.loaded
        if self._keeping is None:
            self._keeping = Keeping(loaded.tokenizer)
        try:
            with noted(loaded.model, self._keeping):
                yield
        finally:
            if len(self._keeping):
                title = f"a chat with {self.options.model} under {self._chat.policy}"
                Look(self._keeping.trace(title, stored_retrieval_heads(loaded.model))).save(self.options.look)

    def _cost(self, last: Any, stopped: bool) -> str:
        kept = _bytes(self._chat.cache_bytes(_THREAD))
        usage = last.usage_metadata if last is not None else None
        if stopped or last is None or usage is None:
            return f"stopped; cache {kept}"
        read = usage["input_token_details"]["cache_read"]
        seconds = last.response_metadata["seconds"]
        return (
            f"{usage['total_tokens']} tokens ({usage['input_tokens'] - read} read, {usage['output_tokens']} "
            "said), "
            f"cache {kept}, {usage['output_tokens'] / seconds:.1f} tokens/s"
        )

    def _command(self, name: str, words: list[str]) -> None:
        if name not in _COMMANDS:
            raise ValueError(
                f"unknown command {name}; there are "
                f"{', '.join(_COMMANDS)}{did_you_mean(name, list(_COMMANDS))}"
            )
        if name == "/help":
            for known, what in _COMMANDS.items():
                self._console.out(f"{known:<8} {what}", highlight=False)
        elif name == "/reset":
            self._start()
            self._console.print("forgotten")
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
            # Before the last to hold the model lets go of it.
            _ = chat.loaded
            self._chat = chat
        self._console.print(self._described())

    def _save(self, folder: Path) -> None:
        from langchain_core.messages import messages_to_dict

        self._chat.save_conversation(folder, _THREAD)
        new = folder / f"{_MESSAGES}.new"
        new.write_text(json.dumps(messages_to_dict(self._messages), ensure_ascii=False, indent=1), "utf-8")
        new.replace(folder / _MESSAGES)
        self._console.out(one_line(f"saved in {folder}"))

    def _load(self, folder: Path) -> None:
        from langchain_core.messages import messages_from_dict

        try:
            messages = messages_from_dict(parse(read_kept(folder / _MESSAGES), folder / _MESSAGES))
        except (AttributeError, OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} holds no saved conversation: {error}") from error
        if self.options.look is None:
            self._chat.load_conversation(folder, _THREAD)
        else:  # read again with the next answer: of what was read elsewhere nothing was noted
            self._chat.forget_conversation(_THREAD)
        self._messages = messages
        self._console.out(one_line(f"loaded {folder}: {len(messages)} messages"))

    def _start(self) -> None:
        from langchain_core.messages import SystemMessage

        self._chat.forget_conversation(_THREAD)
        self._messages = [SystemMessage(self.options.system)] if self.options.system else []

    def _model(self, policy: str, budget: int) -> Any:
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
            marked=options.look is not None,
        )

    def _described(self) -> str:
        policy = self._chat.context_policy
        sizes = ", ".join(f"{name} {value}" for name, value in vars(policy).items())
        return f"policy {self._chat.policy}" + (f" ({sizes})" if sizes else "")

    def _read(self) -> str | None:
        """Return the next line, None at the end of the input; Ctrl-C here clears the line."""
        while True:
            try:
                if sys.stdin.isatty():
                    return self._console.input("[bold green]> [/bold green]")
                line = sys.stdin.readline()
                return line.rstrip("\n") if line else None
            except EOFError:
                return None
            except KeyboardInterrupt:
                self._console.print("\n/quit or Ctrl-D leaves")


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C sets; a second one raises at once.

    So an answer ends between two tokens, its cache whole.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(*_: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _bytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def run(words: Sequence[str]) -> int:
    """`scrubjay chat [--model NAME|FOLDER|FILE.gguf] [--policy NAME] [--budget N] [--look FILE]`."""
    options = arguments.parse(ChatOptions, words, "scrubjay chat")
    with bad_input():
        return Chat(options, Console()).run()
