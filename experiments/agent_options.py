"""What `scrubjay agent` can be told, and the parts it names: a model, tools, a memory."""

from __future__ import annotations

import importlib
import importlib.util
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from scrubjay.experiments.bank_commands import open_bank
from scrubjay.experiments.embeddings import EmbeddingsName, make_embeddings
from scrubjay.experiments.local_model import open_local_model

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

_PROVIDER = re.compile(r"[a-z][a-z0-9_-]+:[^/\\]+.*")


@dataclass(frozen=True)
class AgentOptions:
    """Ask an agent that recalls, plans, calls tools and answers when it knows.

    Without a question it holds a conversation: on a terminal, or over the lines of the standard input. Steps are
    shown on stderr, the answer on stdout. Ctrl-C stops it; what it remembered stays.
    """

    question: Positional[str | None] = None
    """What to ask."""
    model: str = "smollm2"
    """"smollm2", a folder of transformers, a GGUF file, or provider:name of langchain, as openai:gpt-5."""
    tools: str = "auto"
    """Names with commas between, auto for all that can work here, none, and your own as module:name."""
    memory: Path | None = None
    """File of a memory bank; begun if it is not there."""
    embeddings: EmbeddingsName | None = None
    """What the memory recalls by besides words: minilm for English, e5 for a hundred languages. One memory, one kind."""
    namespace: str = ""
    """Whose memory it is, from the widest circle: user/ada."""
    knowledge: tuple[Path, ...] = ()
    """Text files to answer from, before anything that is looked up."""
    policy: str = "sinks"
    """What the cache of a local model keeps."""
    budget: int = 4096
    """Tokens kept, where the policy has a budget. Prompts take what --max-tokens leaves of it, so that none falls out of view."""
    max_steps: int = 5
    """Tools called for one question at most."""
    max_seconds: float = 300.0
    """Time for one question, looked at between calls, and of each call to a provider; a slow model needs more."""
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
        """Raise ValueError on what cannot work together."""
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
        for path in (self.memory, self.record, self.export):
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


def load_model(options: AgentOptions) -> Any:
    """Return the chat model, a local one in memory. Raises ValueError or ImportError with what to do about it."""
    if _PROVIDER.fullmatch(options.model) and not Path(options.model).exists():
        try:
            from langchain.chat_models import init_chat_model
        except ImportError:
            provider = options.model.partition(":")[0].replace("_", "-")
            raise ImportError(
                f"model={options.model!r} needs more: pip install langchain langchain-{provider}"
            ) from None
        try:
            return init_chat_model(
                options.model,
                temperature=options.temperature,
                max_tokens=options.max_tokens,
                timeout=options.max_seconds,
            )
        except ImportError:
            raise
        except Exception as error:  # such as a missing key, each provider in a class of its own
            raise ValueError(f"model={options.model!r}: {error}") from error
    model = open_local_model(
        model=options.model,
        policy=options.policy,
        budget=options.budget,
        temperature=0.0 if options.temperature is None else options.temperature,
        max_tokens=512 if options.max_tokens is None else options.max_tokens,
        call_bias=options.call_bias,
        seed=options.seed,
        device=options.device,
    )
    _ = model.loaded  # before anything is written
    return model


def choose_tools(options: AgentOptions, has_route: Callable[[], bool] | None = None) -> list[BaseTool]:
    """Return the tools by the names given. Raises ValueError on a name that is none, ImportError on its module."""
    from langchain_core.tools import BaseTool, tool

    from scrubjay.agents.kwai.tools import make_tools

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
                and not (offline and (one.metadata or {})["untrusted"])
            ]
            chosen += working
        elif ":" in word:
            named = _resolve(word)
            chosen.append(named if isinstance(named, BaseTool) else tool(named))
        else:
            chosen += make_tools([word], **made)
    return list({one.name: one for one in chosen}.values())


def _resolve(word: str) -> Any:
    module, _, name = word.partition(":")
    found = getattr(importlib.import_module(module), name, None)
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
