"""What all measurements of long contexts are told: the model, the text, the methods, and where results go."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel
from tyro.conf import Positional

from scrubjay.experiments.longcontext.reading import tokenize_text
from scrubjay.experiments.longcontext.texts import read_text
from scrubjay.experiments.runs.device import resolve_device
from scrubjay.memory import context


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """Options of every measurement."""

    text: Positional[tuple[Path, ...]]
    """A .txt file, or Debian's r-cran-janeaustenr .deb (apt-get download r-cran-janeaustenr); of several, one
    after the other."""
    title: str | None = None
    """Which of the texts in a .deb, by its first letters: northanger. Default: all in turn."""
    model: str = "smollm2"
    """smollm2, or a folder or GGUF file of a causal language model."""
    device: str = "cpu"
    """cpu, cuda or auto."""
    dtype: str = "float32"
    """Numbers of the model: float32, or bfloat16, in which some processors are several times as fast."""
    methods: tuple[str, ...] = ("full", "sinks", "window")
    """Names of context policies."""
    budget: int = 256
    """Keys per layer and head that a policy may hold, or, of those that hold all, read at once; full has no
    budget."""
    block: int = 512
    """Tokens read at once."""
    seed: int = 0
    """Of whatever is drawn at random."""
    out: Path
    """Directory of the results; the same command goes on where it was stopped."""
    quiet: bool = False
    """Show no progress."""

    EXTENSIBLE = ("methods", "out", "quiet")
    """Fields that may differ when a directory's results are added to."""

    def check(self) -> None:
        """Raise ValueError on names and numbers that cannot work, before anything is loaded."""
        if not self.text:
            raise ValueError("no text is given: name a .txt file or a .deb of novels")
        for path in self.text:
            if not path.is_file():
                raise ValueError(f"there is no file {path}")
        if not self.methods:
            raise ValueError("--methods is empty; name at least one")
        for name in self.methods:
            self.check_method(name)
        context.check_dtype(self.dtype)
        if self.block < 1:
            raise ValueError(f"block={self.block}: at least 1 token is read at once")

    def check_method(self, name: str) -> None:
        """Raise ValueError if no policy of that name can have this budget."""
        self.policy(name)

    def policy(self, name: str) -> context.ContextPolicy:
        """Return the named policy with the budget."""
        return context.make(name) if name == "full" else context.make(name, budget=self.budget)

    def settings(self) -> dict[str, Any]:
        """Return what results depend on."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in self.EXTENSIBLE
        }

    def read(self) -> str:
        """Return the text."""
        return "\n\n\n".join(read_text(path, self.title) for path in self.text)

    def excerpt(self, tokenizer: Any, length: int) -> Int[Tensor, " time"]:
        """Return the first tokens of the text. Raises ValueError if it has fewer."""
        tokens = tokenize_text(tokenizer, self.read())
        if len(tokens) < length:
            raise ValueError(
                f"{', '.join(map(str, self.text))}: {length} tokens are needed, {len(tokens)} are there"
            )
        return tokens[:length]

    def load_model(self) -> tuple[PreTrainedModel, Any]:
        """Return model and tokenizer."""
        return context.load_model(self.model, getattr(torch, self.dtype), resolve_device(self.device))
