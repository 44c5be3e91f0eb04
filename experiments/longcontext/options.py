"""What all measurements of long contexts are told: the model, the text, the methods, and where results go."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor
    from transformers import PreTrainedModel

    from scrubjay.memory import context

FULL = "full"
"""The method that keeps everything."""
INFINIRETRI = "infiniretri"
"""The method that keeps sentences, not keys."""
NEEDLE = "needle"
"""The task whose one needle stands at a given depth."""
RECOMPUTE = "recompute"
"""The method that keeps nothing, and reads the last tokens afresh for every token."""


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
        from scrubjay.memory import context

        if not self.text:
            raise ValueError("no text is given: name a .txt file or a .deb of novels")
        for path in self.text:
            if not path.is_file():
                raise ValueError(f"there is no file {path}")
        if not self.read().strip():
            raise ValueError(f"{', '.join(map(str, self.text))}: there is no text in it")
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
        from scrubjay.memory import context

        return context.make(name) if name == FULL else context.make(name, budget=self.budget)

    def settings(self) -> dict[str, Any]:
        """Return what results depend on."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in self.EXTENSIBLE
        }

    def read(self) -> str:
        """Return the text."""
        from scrubjay.experiments.longcontext.texts import read_text

        return "\n\n\n".join(read_text(path, self.title) for path in self.text)

    def excerpt(self, tokenizer: Any, length: int) -> Int[Tensor, " time"]:
        """Return the first tokens of the text. Raises ValueError if it has fewer."""
        from scrubjay.experiments.longcontext.reading import tokenize_text

        tokens = tokenize_text(tokenizer, self.read())
        if len(tokens) < length:
            raise ValueError(
                f"{', '.join(map(str, self.text))}: {length} tokens are needed, {len(tokens)} are there"
            )
        return tokens[:length]

    def load_model(self) -> tuple[PreTrainedModel, Any]:
        """Return model and tokenizer."""
        import torch

        from scrubjay.experiments.runs.device import resolve_device
        from scrubjay.memory import context

        dtype = getattr(torch, self.dtype)
        return context.load_model(self.model, dtype, resolve_device(self.device), under_policy=True)


@dataclass(frozen=True, kw_only=True)
class AgreementOptions(MeasureOptions):
    """Let the full cache go on with stretches of a text, greedily, and each policy predict every token."""

    methods: tuple[str, ...] = ("window", "sinks", "h2o", "snapkv", "chunks", "recycled")
    """Names of context policies; full is always measured."""
    prompts: int = 8
    """Stretches of the text."""
    length: int = 2048
    """Tokens of a stretch."""
    new_tokens: int = 32
    """Tokens written after each."""
    out: Path = Path("runs/agreement")
    """Directory of the results; the same command goes on where it was stopped."""

    EXTENSIBLE = (*MeasureOptions.EXTENSIBLE, "prompts")

    def check(self) -> None:
        """Raise ValueError on names and numbers that cannot work, before anything is loaded."""
        super().check()
        for name in ("prompts", "length", "new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")


@dataclass(frozen=True, kw_only=True)
class HaystackOptions(MeasureOptions):
    """Ask about texts of several lengths; tabulate and draw what each method finds.

    Running it again goes on.
    """

    methods: tuple[str, ...] = (
        "full",
        "window",
        "sinks",
        "h2o",
        "snapkv",
        "chunks",
        "recycled",
        "infiniretri",
    )
    """Names of context policies, and infiniretri."""
    tasks: tuple[str, ...] = (NEEDLE,)
    """needle, at each of the depths; or tasks of RULER: single_1, multikey_2, variable_tracking, ..."""
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    """Tokens of text, question and answer, at most."""
    depths: tuple[float, ...] = (0.0, 25.0, 50.0, 75.0, 100.0)
    """Where the needle stands, in percent of the text."""
    samples: int = 1
    """Examples of each length and depth, or length and task; the same for all methods."""
    out: Path = Path("runs/haystack")
    """Directory of the results; the same command goes on where it was stopped."""

    EXTENSIBLE = (*MeasureOptions.EXTENSIBLE, "tasks", "lengths", "depths", "samples")

    def check(self) -> None:
        """Raise ValueError on names and numbers that cannot work, before anything is loaded."""
        from scrubjay.experiments.longcontext.ruler import list_tasks

        super().check()
        for name in ("tasks", "lengths", "depths"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is empty; name at least one")
        for task in self.tasks:
            if task not in (NEEDLE, *list_tasks()):
                raise ValueError(f"unknown task {task!r}; choose from {', '.join([NEEDLE, *list_tasks()])}")
        for depth in self.depths:
            if not 0 <= depth <= 100:
                raise ValueError(f"depth={depth}: it is a percentage, from 0 to 100")
        if self.samples < 1:
            raise ValueError(f"samples={self.samples}: at least 1 is needed")

    def check_method(self, name: str) -> None:
        """Raise ValueError if no method of that name can have this budget."""
        if name != INFINIRETRI:
            super().check_method(name)
        elif self.budget < 2:
            raise ValueError(f"budget={self.budget}: {INFINIRETRI} needs at least 2")


@dataclass(frozen=True, kw_only=True)
class PerplexityOptions(MeasureOptions):
    """Stream a text through a model under each policy; tabulate and draw perplexity, time and memory.

    More `--tokens` than before go on from where the same directory ended.
    """

    methods: tuple[str, ...] = ("window", "sinks")
    """Names of context policies."""
    tokens: int = 20_000
    """Tokens of the text to predict."""
    recompute: int = 0
    """Random positions at which the last `budget` tokens are read afresh, to compare with; slow."""
    save_every: int = 20
    """Blocks between two copies of the cache on disk, from which a stopped run goes on."""
    out: Path = Path("runs/perplexity")
    """Directory of the results; the same command goes on where it was stopped."""

    EXTENSIBLE = (*MeasureOptions.EXTENSIBLE, "tokens", "recompute", "save_every")

    def check(self) -> None:
        """Raise ValueError on names and numbers that cannot work, before anything is loaded."""
        super().check()
        for name, least in (("tokens", 1), ("recompute", 0), ("save_every", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")
        if self.recompute > max(0, self.tokens - self.budget):
            raise ValueError(
                f"recompute={self.recompute}: only tokens after the first budget={self.budget} of "
                f"tokens={self.tokens} can be recomputed; choose fewer"
            )


@dataclass(frozen=True, kw_only=True)
class SpeedOptions(MeasureOptions):
    """Time the next token after contexts of several lengths, by turns in one process, against `recompute`.

    recompute keeps no cache and reads the last `budget` tokens afresh for every token, as StreamingLLM's peer
    does.
    """

    methods: tuple[str, ...] = ("full", "sinks")
    """Names of context policies."""
    contexts: tuple[int, ...] = (1024, 4096, 8192)
    """Tokens read before the clock starts."""
    full_until: int = 8192
    """Longest context for the method full, which must hold all of it."""
    steps: int = 8
    """Tokens timed in a turn; of recompute, one."""
    repeats: int = 5
    """Turns of each contestant at each length."""
    out: Path = Path("runs/speed")
    """Directory of the results; the same command goes on where it was stopped."""

    EXTENSIBLE = (*MeasureOptions.EXTENSIBLE, "contexts", "full_until")

    def check(self) -> None:
        """Raise ValueError on names and numbers that cannot work, before anything is loaded."""
        super().check()
        if not self.contexts:
            raise ValueError("--contexts is empty; name at least one")
        for name in ("steps", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1 is needed")
        lengths = sorted(self.contexts)
        between = self.steps * self.repeats
        if any(after - before <= between for before, after in itertools.pairwise(lengths)):
            raise ValueError(
                f"contexts={self.contexts}: they must be more than steps x repeats = {between} tokens "
                "apart, for "
                "those are read on the way"
            )
        if lengths[0] < self.budget:
            raise ValueError(f"contexts={self.contexts}: each must have at least budget={self.budget} tokens")

    def contestants(self, length: int) -> list[str]:
        """Return who is timed after so many tokens."""
        return [RECOMPUTE, *(m for m in self.methods if m != "full" or length <= self.full_until)]
