"""`scrubjay memory bench`: how well questions are answered from a memory, on the sets that the field uses."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from scrubjay.agents.embeddings import EmbeddingsName
from scrubjay.experiments.language.models import open_chat_model
from scrubjay.experiments.words.arguments import UsageError
from scrubjay.experiments.words.foreign import one_line

Arm = Literal["bank", "supersedes", "consolidated", "files", "full"]
Form = Literal["agentbench", "longmemeval", "locomo", "realtalk", "beam", "memdaily"]


@dataclass(frozen=True)
class BenchOptions:
    """Measure a memory on questions about long texts, beside a search of files and the whole context.

    Each text is taken in once and then asked about. Without a model it is measured which records are found;
    with one also what it answers from them. Every answer is kept at once in --out: stopped, the same command
    goes on.
    """

    files: Positional[tuple[Path, ...]]
    """Sets as they are published: files of MemoryAgentBench (.parquet, .json, .jsonl), longmemeval_*.json,
    locomo10.json, and the folders of REALTALK, BEAM and MemDaily."""
    form: Form | None = None
    """Which set they are of; default: what they look like."""
    arms: tuple[Arm, ...] = ("bank", "supersedes", "consolidated", "files", "full")
    """Who is asked: the bank; the bank that is told which record replaces which, or whose consolidation finds
    that among the nearest ones and cannot err, where a set says so; a search of files by words; the end of
    the whole text, as much as there is room for."""
    model: str | None = None
    """Who answers: "smollm2", a folder of transformers, a GGUF file, or provider:name of langchain."""
    judge: str | None = None
    """A model that says of each answer whether it is right. The table has its prompt, as judges differ."""
    k: int = 10
    """Records recalled for a question."""
    embeddings: EmbeddingsName | None = None
    """What the bank recalls by besides words: minilm for English, e5 for a hundred languages."""
    window: int = 8192
    """Tokens shown to who answers at most, where a model does not see fewer."""
    questions: int | None = None
    """Of each text only so many, the first."""
    max_tokens: int = 64
    """Tokens of a model's answer at most."""
    max_seconds: float = 300.0
    """For each call of a provider."""
    device: str = "cpu"
    """Where a local model runs."""
    out: Path = Path("runs/memory-bench")
    """Folder for what is answered, and the table."""


def bench(options: BenchOptions) -> int:
    """Answer what is missing, print the table and write it; return the exit code."""
    if not options.files:
        raise UsageError("bench needs files of a set, such as locomo10.json")
    if options.questions is not None and options.questions < 1:
        raise UsageError(f"questions={options.questions}: must be at least 1")
    from scrubjay.experiments.quality.answers.bench import Bench, Settings, read_texts
    from scrubjay.experiments.quality.answers.readers import JUDGED, PROMPT
    from scrubjay.experiments.quality.answers.report import head, table
    from scrubjay.experiments.runs.device import one_thread
    from scrubjay.experiments.runs.directory import write_atomically

    names = [field.name for field in dataclasses.fields(Settings)]
    settings = Settings(**{name: getattr(options, name) for name in names})
    settings.check()
    texts = read_texts(options.files, options.form, options.questions)
    asked = {"Answers": (options.model, PROMPT), "Judged": (options.judge, JUDGED)}
    bench = Bench(settings, options.out, _opened(options.model, options), _opened(options.judge, options))
    with one_thread():
        code = bench.run(texts, options.arms)
    rows = bench.rows(texts, options.arms)
    if rows:
        made = table(rows)
        models = {task: (model, prompt) for task, (model, prompt) in asked.items() if model is not None}
        told = head(" ".join(_typed(options)), bench.window, models)
        write_atomically(options.out / "table.md", f"{told}\n\n{made}\n")
        print(f"{made}\n\n{one_line(options.out / 'table.md')}")
    return code


def _opened(name: str | None, options: BenchOptions) -> Any:
    """Return the chat model of that name, None for none."""
    if name is None:
        return None
    local = {"policy": "full", "max_conversations": 1, "device": options.device}  # no question goes on
    return open_chat_model(name, options.max_seconds, 0.0, options.max_tokens, **local)


@dataclass(frozen=True)
class FactsOptions:
    """Write made facts and their contradictions, FactConsolidation in MemoryAgentBench's form, for `bench`.

    Questions of one fact (sh) and of two or three (mh), each seed a text of its own; of no real names.
    """

    file: Positional[Path]
    """What to write, such as facts.jsonl."""
    part: Literal["development", "test"] = "development"
    """Whose seeds: those to choose settings on, or those to test them on."""
    seeds: tuple[int, ...] = ()
    """In place of those of a part."""
    facts: int = 1000
    """Facts of a text, about."""
    questions: int = 100
    """Of each kind, of a text."""


def facts(options: FactsOptions) -> int:
    """Write a row for each seed and kind of question."""
    from scrubjay.experiments.quality.sets.facts import make_rows
    from scrubjay.experiments.quality.sets.parts import names_of
    from scrubjay.experiments.runs.directory import write_atomically

    if not options.file.parent.is_dir():
        raise UsageError(f"there is no folder {options.file.parent} for {options.file.name}")
    seeds = options.seeds or names_of("FactConsolidation", options.part)
    rows = [row for seed in seeds for row in make_rows(seed, options.facts, options.questions)]
    write_atomically(options.file, "".join(f"{json.dumps(row)}\n" for row in rows))
    asked = sum(len(row["questions"]) for row in rows)
    print(one_line(f"{options.file}: {len(rows)} texts, {asked:,} questions"))
    return 0


def _typed(options: BenchOptions) -> Iterator[str]:
    """Yield the words of the command that has these options."""
    yield "scrubjay memory bench"
    yield from (shlex.quote(str(path)) for path in options.files)
    for field in dataclasses.fields(options):
        value: Any = getattr(options, field.name)
        if field.name != "files" and value != field.default:
            yield f"--{field.name.replace('_', '-')}"
            yield from (shlex.quote(str(one)) for one in (value if isinstance(value, tuple) else [value]))
