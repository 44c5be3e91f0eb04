"""Options of the long-context measurements: model, text, methods and output directory."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tyro.conf import Positional

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor
    from transformers import PreTrainedModel

    from scrubjay.memory import context

ALL = "all"
"""Stands for every policy."""
FULL = "full"
"""Method that keeps all tokens."""
INFINIRETRI = "infiniretri"
"""Method that selects sentences instead of keys."""
NEEDLE = "needle"
"""Task with one needle at a given depth."""
RECOMPUTE = "recompute"
"""Method without a cache, which rereads the last tokens for each new token."""
QuestionTime = Literal["known", "later", "streaming"]
"""When a policy learns a question about a text."""


def make_policy(name: str, budget: int | None) -> context.ContextPolicy:
    """Return the context policy `name` with this budget, which `full` does not have."""
    from scrubjay.memory import context

    return context.make(name) if name == FULL else context.make(name, budget=budget)


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Options common to all measurements that read a text."""

    text: Positional[tuple[Path, ...]]
    """A .txt file, or Debian's r-cran-janeaustenr .deb (apt-get download r-cran-janeaustenr); several
    files are joined."""
    title: str | None = None
    """Beginning of the title of one text, such as northanger, if `text` is a .deb; None joins all its
    texts."""
    model: str = "smollm2"
    """Model name (smollm2), or a folder or GGUF file of a causal language model."""
    device: str = "cpu"
    """Device: cpu, cuda or auto."""
    dtype: str = "float32"
    """Data type of the model: float32 or bfloat16; some processors are several times as fast in bfloat16."""
    methods: tuple[str, ...] = ("full", "sinks", "window")
    """Names of context policies."""
    block: int = 512
    """Tokens per forward pass."""
    out: Path
    """Output directory; the same command resumes an interrupted run."""
    quiet: bool = False
    """Hide the progress display."""

    EXTENSIBLE = ("methods", "out", "quiet")
    """Fields that may change when more results are added to a directory."""

    def check(self) -> None:
        """Raise ValueError on invalid options, before anything is loaded."""
        from scrubjay.memory import context

        if not self.text:
            raise ValueError(
                "text=(): pass a .txt file, or the Debian package r-cran-janeaustenr (.deb) with novels"
            )
        for path in self.text:
            if not path.is_file():
                raise ValueError(f"there is no file {path}")
        if not self.read().strip():
            raise ValueError(f"{', '.join(map(str, self.text))}: the text is empty")
        self._check_filled("methods")
        for name in self.methods:
            self.check_method(name)
        context.check_dtype(self.dtype)
        self._check_least(1, "block")

    def _check_filled(self, *names: str) -> None:
        """Raise ValueError if one of these options is empty."""
        for name in names:
            if not getattr(self, name):
                raise ValueError(f"--{name} is empty; name at least one")

    def _check_least(self, least: int, *names: str) -> None:
        """Raise ValueError if one of these options is below `least`."""
        for name in names:
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")

    def check_method(self, name: str) -> None:
        """Raise ValueError if the policy is unknown or does not support its budget."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Return the options that must be equal for all results in one directory."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in self.EXTENSIBLE
        }

    def read(self) -> str:
        """Return the text of all files, joined."""
        from scrubjay.experiments.lm.texts import read_text

        return "\n\n\n".join(read_text(path, self.title) for path in self.text)

    def excerpt(self, tokenizer: Any, length: int) -> Int[Tensor, " time"]:
        """Return the first `length` tokens of the text. Raises ValueError if the text is shorter."""
        from scrubjay.experiments.lm.reading import tokenize_text

        tokens = tokenize_text(tokenizer, self.read())
        if len(tokens) < length:
            raise ValueError(
                f"{', '.join(map(str, self.text))}: {length} tokens are needed, "
                f"but the text has {len(tokens)}"
            )
        return tokens[:length]

    def start(self) -> tuple[PreTrainedModel, Any]:
        """Check the options, prepare the output directory, and return model and tokenizer.

        Raises ValueError on invalid options, or if the directory holds results with other settings.
        """
        import torch

        from scrubjay.experiments.measurements import prepare_results_dir
        from scrubjay.experiments.resources import resolve_device
        from scrubjay.memory import context

        self.check()
        prepare_results_dir(self.out, self.settings())
        dtype = getattr(torch, self.dtype)
        return context.load_model(self.model, dtype, resolve_device(self.device), under_policy=True)


@dataclass(frozen=True, kw_only=True)
class MeasureOptions(TextOptions):
    """Options of measurements with one budget."""

    budget: int = 256
    """Number of keys that a policy retains per layer and head. If a policy retains all keys, the
    budget is the number of keys that a token attends to. The method `full` ignores this option."""

    def check_method(self, name: str) -> None:
        """Raise ValueError if the policy is unknown or does not support this budget."""
        self.policy(name)

    def policy(self, name: str) -> context.ContextPolicy:
        """Return the context policy with this name and the budget of these options."""
        return make_policy(name, self.budget)


@dataclass(frozen=True, kw_only=True)
class SeededOptions(MeasureOptions):
    """Options of measurements that draw examples."""

    seed: int = 0
    """Random seed for the choice of examples, excerpts or positions."""


@dataclass(frozen=True, kw_only=True)
class AgreementOptions(SeededOptions):
    """Compare each policy's predictions with the greedy continuation of the full cache."""

    methods: tuple[str, ...] = ("window", "sinks", "h2o", "snapkv", "chunks", "recycled")
    """Names of context policies; the full cache (full) is always included."""
    prompts: int = 8
    """Number of random excerpts of the text."""
    length: int = 2048
    """Number of tokens per excerpt."""
    new_tokens: int = 32
    """Number of tokens to generate after each excerpt."""
    out: Path = Path("runs/agreement")
    """Output directory; the same command resumes an interrupted run."""

    EXTENSIBLE = (*MeasureOptions.EXTENSIBLE, "prompts")

    def check(self) -> None:
        """Raise ValueError on invalid options, before anything is loaded."""
        super().check()
        self._check_least(1, "prompts", "length", "new_tokens")


@dataclass(frozen=True, kw_only=True)
class HaystackOptions(SeededOptions):
    """Measure the answers of each method on texts of several lengths, and write a table and a plot.

    The same command resumes an interrupted run.
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
    """Names of context policies; infiniretri is also allowed."""
    tasks: tuple[str, ...] = (NEEDLE,)
    """Tasks: needle (at each depth), or RULER tasks such as single_1, multikey_2, variable_tracking."""
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192)
    """Lengths to measure: maximum numbers of tokens of text, question and answer together."""
    depths: tuple[float, ...] = (0.0, 25.0, 50.0, 75.0, 100.0)
    """Depths of the needle, in percent of the text."""
    samples: int = 1
    """Number of examples per text length and needle depth, or per text length and RULER task. All methods get
    the same examples."""
    out: Path = Path("runs/haystack")
    """Output directory; the same command resumes an interrupted run."""

    EXTENSIBLE = (*MeasureOptions.EXTENSIBLE, "tasks", "lengths", "depths", "samples")

    def check(self) -> None:
        """Raise ValueError on invalid options, before anything is loaded."""
        from scrubjay.experiments.lm.ruler import list_tasks

        super().check()
        self._check_filled("tasks", "lengths", "depths")
        for task in self.tasks:
            if task not in (NEEDLE, *list_tasks()):
                raise ValueError(f"unknown task {task!r}; choose from {', '.join([NEEDLE, *list_tasks()])}")
        for depth in self.depths:
            if not 0 <= depth <= 100:
                raise ValueError(f"depth={depth}: must be a percentage from 0 to 100")
        self._check_least(1, "samples")

    def check_method(self, name: str) -> None:
        """Raise ValueError if the method is unknown or does not support this budget."""
        if name != INFINIRETRI:
            super().check_method(name)
        elif self.budget < 2:
            raise ValueError(f"budget={self.budget}: {INFINIRETRI} needs at least 2")


@dataclass(frozen=True, kw_only=True)
class PerplexityOptions(SeededOptions):
    """Stream a text through a model under each policy, and report perplexity, time and memory.

    The same command with a larger `--tokens` continues the results in the output directory.
    """

    methods: tuple[str, ...] = ("window", "sinks")
    """Names of context policies."""
    tokens: int = 20_000
    """Number of tokens of the text to predict."""
    recompute: int = 0
    """Number of random positions at which every method is compared with a model without a cache. At each
    position, this model rereads the last `budget` tokens, which is slow. 0 disables the comparison."""
    save_every: int = 20
    """Number of blocks between two checkpoints of the cache, from which an interrupted run resumes."""
    out: Path = Path("runs/perplexity")
    """Output directory; the same command resumes an interrupted run."""

    EXTENSIBLE = (*MeasureOptions.EXTENSIBLE, "tokens", "recompute", "save_every")

    def check(self) -> None:
        """Raise ValueError on invalid options, before anything is loaded."""
        super().check()
        self._check_least(1, "tokens")
        self._check_least(0, "recompute")
        self._check_least(1, "save_every")
        most = max(0, self.tokens - self.budget)
        if self.recompute > most:
            raise ValueError(
                f"recompute={self.recompute}: must be at most {most}, the larger of 0 and "
                f"tokens={self.tokens} minus budget={self.budget}"
            )


@dataclass(frozen=True, kw_only=True)
class SpeedOptions(MeasureOptions):
    """Measure the time per token after contexts of several lengths, and compare with the method recompute.

    One process measures the methods in turn. recompute has no cache. For each new token it rereads the last
    `budget` tokens, like the sliding window with recomputation in StreamingLLM.
    """

    methods: tuple[str, ...] = ("full", "sinks")
    """Names of context policies."""
    contexts: tuple[int, ...] = (1024, 4096, 8192)
    """Context lengths: numbers of tokens that are read before the timed tokens."""
    full_until: int = 8192
    """Longest context for the method `full`, which retains all tokens."""
    steps: int = 8
    """Number of tokens in one measurement; the method recompute always measures one token."""
    repeats: int = 5
    """Number of measurements per method and context length."""
    out: Path = Path("runs/speed")
    """Output directory; the same command resumes an interrupted run."""

    EXTENSIBLE = (*MeasureOptions.EXTENSIBLE, "contexts", "full_until")

    def check(self) -> None:
        """Raise ValueError on invalid options, before anything is loaded."""
        super().check()
        self._check_filled("contexts")
        self._check_least(1, "steps", "repeats")
        lengths = sorted(self.contexts)
        between = self.steps * self.repeats
        if any(after - before <= between for before, after in itertools.pairwise(lengths)):
            raise ValueError(
                f"contexts={self.contexts}: any two lengths must differ by more than {between} tokens (steps "
                "x repeats), because the model reads that many timed tokens after the shorter length"
            )
        if lengths[0] < self.budget:
            raise ValueError(f"contexts={self.contexts}: each must be at least budget={self.budget} tokens")

    def list_methods(self, length: int) -> list[str]:
        """Return the names of the methods that are measured after a context of `length` tokens."""
        return [RECOMPUTE, *(m for m in self.methods if m != "full" or length <= self.full_until)]


@dataclass(frozen=True, kw_only=True)
class QuestionsOptions(TextOptions):
    """Compare all policies on questions that come with a text, after it, or at the end of a stream.

    Also reports perplexity, time per token, and the bytes of each cache. The same command resumes an
    interrupted run.
    """

    methods: tuple[str, ...] = (ALL,)
    """Names of context policies; `all` stands for every policy."""
    shares: tuple[float, ...] = (0.5, 0.2, 0.1)
    """Budgets, as shares of `length`. Policies without a budget are measured once."""
    times: tuple[QuestionTime, ...] = ("known", "later", "streaming")
    """When a policy learns the question. known: while the prompt is compressed. later: after the compressed
    text. streaming: after a text that arrives in blocks, each of which is compressed."""
    length: int = 4096
    """Largest number of tokens of text, question and answer together."""
    samples: int = 4
    """Number of texts of each kind. Together the three texts of a sample have twelve questions."""
    perplexity: tuple[int, ...] = (4096, 16384)
    """Lengths of a streamed text whose perplexity is measured. Beyond the model's window only the policies
    that move positions are measured."""
    seed: int = 0
    """Random seed of the texts."""
    out: Path = Path("runs/questions")
    """Output directory; the same command resumes an interrupted run."""

    EXTENSIBLE = (*TextOptions.EXTENSIBLE, "shares", "times", "samples", "perplexity")

    def check(self) -> None:
        """Raise ValueError on invalid options, before anything is loaded."""
        super().check()
        self._check_filled("shares", "times")
        self._check_least(1, "samples", "length")
        for share in self.shares:
            if not 0 < share <= 1:
                raise ValueError(f"shares={self.shares}: each must be above 0 and at most 1")
        for time in self.times:
            if time not in get_args(QuestionTime):
                raise ValueError(f"times={self.times}: choose from {', '.join(get_args(QuestionTime))}")

    def check_method(self, name: str) -> None:
        """Raise ValueError if the policy is unknown."""
        from scrubjay.memory import context

        if name != ALL:
            context.make(name)

    def list_methods(self) -> list[str]:
        """Return the names of the policies, without duplicates."""
        from scrubjay.memory import context

        names = [context.list_policies() if name == ALL else [name] for name in self.methods]
        return list(dict.fromkeys(itertools.chain(*names)))


@dataclass(frozen=True, kw_only=True)
class CostOptions:
    """Predict time and memory of each policy and budget, and recommend one within limits.

    Two constants of the machine are fitted to measured times. Without --rows, two times are measured first.
    """

    prompt: int = 4096
    """Number of tokens of the prompt."""
    generate: int = 256
    """Number of tokens of an answer."""
    answers: int = 1
    """Number of answers to the same prompt, generated together."""
    latency: float | None = None
    """Largest time per generated token, in ms of processor time."""
    memory: float | None = None
    """Largest size of the caches, in MiB."""
    rows: tuple[Path, ...] = ()
    """Folders of `scrubjay longcontext speed`, whose times the constants are fitted to."""
    model: str = "smollm2"
    """Model name (smollm2), or a folder or GGUF file of a causal language model."""
    dtype: str = "float32"
    """Data type of the model: float32 or bfloat16."""
    out: Path = Path("runs/cost")
    """Output directory of table.md."""

    def start(self) -> PreTrainedModel:
        """Check the options and return the model. Raises ValueError on invalid options."""
        import torch

        from scrubjay.memory import context

        for name in ("prompt", "generate", "answers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("latency", "memory"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise ValueError(f"{name}={limit}: must be positive")
        context.check_dtype(self.dtype)
        return context.load_model(self.model, getattr(torch, self.dtype), under_policy=True)[0]
