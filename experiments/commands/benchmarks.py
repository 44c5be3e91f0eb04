"""`scrubjay longcontext`, `scrubjay memory bench`, `scrubjay memory facts` and `scrubjay kagentbench`."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from scrubjay.experiments import files as json_reader
from scrubjay.experiments.cli.arguments import choose, parse
from scrubjay.experiments.cli.failures import UsageError, bad_input, describe
from scrubjay.experiments.cli.untrusted_text import format_entries, one_line, show_help, table
from scrubjay.experiments.commands.options import Device, Embeddings
from scrubjay.experiments.lm.kagentbench import WEIGHTS, join, score
from scrubjay.experiments.lm.models import open_chat_model
from scrubjay.experiments.lm.options import (
    AgreementOptions,
    CostOptions,
    HaystackOptions,
    PerplexityOptions,
    QuestionsOptions,
    SpeedOptions,
)
from scrubjay.experiments.progress import GracefulInterrupt, ProgressLines

MEASUREMENTS: dict[str, tuple[str, type[Any]]] = {
    "perplexity": ("perplexity of a streamed text by position, with time and memory", PerplexityOptions),
    "haystack": ("needle retrieval by length and depth, and RULER tasks", HaystackOptions),
    "speed": ("time per token after contexts of several lengths", SpeedOptions),
    "agreement": ("agreement of each policy with the full cache", AgreementOptions),
    "questions": ("all policies on questions before, after and at the end of a text", QuestionsOptions),
    "cost": ("predicted time and memory of each policy, without a text", CostOptions),
}
"""Description and options class by measurement; `run_NAME` in `scrubjay.experiments.lm.NAME` runs it."""


def longcontext(arguments: Sequence[str]) -> int:
    """`scrubjay longcontext MEASUREMENT TEXT [--methods NAME ...] [--budget N] [--out DIR]`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        measurements = format_entries({name: about for name, (about, _) in MEASUREMENTS.items()})
        show_help(
            "usage: scrubjay longcontext MEASUREMENT TEXT [--methods NAME ...] [--budget N] [--out DIR]\n\n"
            f"{measurements}\n\nscrubjay longcontext MEASUREMENT --help lists every option."
        )
    name = choose("measurement", arguments[0], list(MEASUREMENTS))
    options = parse(MEASUREMENTS[name][1], arguments[1:], f"scrubjay longcontext {name}")
    try:
        module = importlib.import_module(f"scrubjay.experiments.lm.{name}")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"longcontext needs missing packages: pip install 'scrubjay[lm]' ({error})"
        ) from error
    from scrubjay.experiments.resources import one_thread

    try:
        with one_thread():
            command = f"scrubjay longcontext {shlex.join(arguments)}"
            paths: list[Path] = getattr(module, f"run_{name}")(options, command)
    except KeyboardInterrupt as stop:
        print("\nstopped; run the same command to resume")
        return stop.exit_code if isinstance(stop, GracefulInterrupt) else 130
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(describe(error)) from error
    print(*map(one_line, paths), sep="\n")
    return 0


Arm = Literal["bank", "supersedes", "consolidated", "files", "full"]
SetFormat = Literal["agentbench", "longmemeval", "locomo", "realtalk", "beam", "memdaily"]


@dataclass(frozen=True)
class BenchOptions:
    """Benchmark a memory bank on questions about long texts, against file search and full context.

    Each text is stored once and then queried. Without --model only retrieval is scored; with --model the
    answers of the model are scored too. Each answer is saved in --out immediately, so that the same command
    continues an interrupted run.
    """

    files: Positional[tuple[Path, ...]]
    """Data sets in their published format: files of MemoryAgentBench (.parquet, .json, .jsonl),
    longmemeval_*.json, locomo10.json, and the folders of REALTALK, BEAM and MemDaily."""
    format: SetFormat | None = None
    """Data set of the files; default: detected from their contents."""
    arms: tuple[Arm, ...] = ("bank", "supersedes", "consolidated", "files", "full")
    """Methods to compare. bank: the memory bank. supersedes: the bank, in which a new record replaces
    an old one if the data set annotates this. consolidated: the bank, in which a new record replaces the
    outdated one among its nearest records; only for data sets that annotate facts. files: keyword search in
    files. full: no search; the model reads as much of the end of the text as fits --window."""
    model: str | None = None
    """Model that answers: "smollm2", a transformers folder, a GGUF file, or a LangChain provider:name;
    default: score retrieval only."""
    judge: str | None = None
    """Model that judges the answers as right or wrong; its prompt is printed with the table."""
    k: int = 10
    """Number of records retrieved per question."""
    embeddings: Embeddings = None
    window: int = 8192
    """Maximum prompt tokens of the answering model; at most its context window."""
    questions: int | None = None
    """Maximum number of questions per text; later ones are skipped. Default: all."""
    max_tokens: int = 64
    """Maximum tokens of an answer."""
    max_seconds: float = 300.0
    """Time limit in seconds for each call to a provider."""
    device: Device = "cpu"
    out: Path = Path("runs/memory-bench")
    """Folder for the answers and the table."""


def bench(options: BenchOptions) -> int:
    """Run the benchmark, print and save its table, and return the exit code.

    Questions that already have a saved answer are skipped.
    """
    if not options.files:
        raise UsageError("bench needs the files of a data set, such as locomo10.json")
    if options.questions is not None and options.questions < 1:
        raise UsageError(f"questions={options.questions}: must be at least 1")
    from scrubjay.experiments.answers.bench import JUDGE_PROMPT, PROMPT, Bench, Settings, read_texts
    from scrubjay.experiments.answers.scores import head, table
    from scrubjay.experiments.files import write_atomically
    from scrubjay.experiments.resources import one_thread

    names = [field.name for field in dataclasses.fields(Settings)]
    settings = Settings(**{name: getattr(options, name) for name in names})
    settings.check()
    texts = read_texts(options.files, options.format, options.questions)
    prompts = {"Answers": (options.model, PROMPT), "Judged": (options.judge, JUDGE_PROMPT)}
    benchmark = Bench(
        settings, options.out, _open_model(options.model, options), _open_model(options.judge, options)
    )
    with one_thread():
        code = benchmark.run(texts, options.arms)
    rows = benchmark.rows(texts, options.arms)
    if rows:
        table_text = table(rows)
        models = {task: (model, prompt) for task, (model, prompt) in prompts.items() if model is not None}
        header = head(" ".join(_command_line(options)), benchmark.window, models)
        write_atomically(options.out / "table.md", f"{header}\n\n{table_text}\n")
        print(f"{table_text}\n\n{one_line(options.out / 'table.md')}")
    return code


def _open_model(name: str | None, options: BenchOptions) -> Any:
    """Return the chat model `name`, or None if `name` is None."""
    if name is None:
        return None
    local = {"policy": "full", "max_conversations": 1, "device": options.device}  # questions are independent
    return open_chat_model(name, options.max_seconds, 0.0, options.max_tokens, **local)


@dataclass(frozen=True)
class FactsOptions:
    """Generate synthetic facts with contradictions for `bench`, like FactConsolidation of MemoryAgentBench.

    A question needs one fact (sh, single-hop) or two or three facts (mh, multi-hop). Each seed generates one
    text, without real names.
    """

    file: Positional[Path]
    """Output file, such as facts.jsonl."""
    part: Literal["development", "test"] = "development"
    """Seed set: development for tuning, test for final results."""
    seeds: tuple[int, ...] = ()
    """Random seeds; default: the seeds of --part."""
    facts: int = 1000
    """Approximate number of facts per text."""
    questions: int = 100
    """Number of questions per text and type; the types are sh (single-hop) and mh (multi-hop)."""


def facts(options: FactsOptions) -> int:
    """Generate synthetic facts and write them as JSON lines: for each seed, one line per question type."""
    from scrubjay.experiments.answers.datasets import part_names
    from scrubjay.experiments.answers.facts import make_rows
    from scrubjay.experiments.files import write_atomically

    if not options.file.parent.is_dir():
        raise UsageError(f"folder {options.file.parent} for {options.file.name} does not exist")
    seeds = options.seeds or part_names("FactConsolidation", options.part)
    rows = [row for seed in seeds for row in make_rows(seed, options.facts, options.questions)]
    write_atomically(options.file, "".join(f"{json.dumps(row)}\n" for row in rows))
    num_questions = sum(len(row["questions"]) for row in rows)
    print(one_line(f"{options.file}: {len(rows)} texts, {num_questions:,} questions"))
    return 0


def _command_line(options: BenchOptions) -> Iterator[str]:
    """Yield the command-line arguments that reproduce these options."""
    yield "scrubjay memory bench"
    yield from (shlex.quote(str(path)) for path in options.files)
    for field in dataclasses.fields(options):
        value: Any = getattr(options, field.name)
        if field.name != "files" and value != field.default:
            yield f"--{field.name.replace('_', '-')}"
            yield from (shlex.quote(str(one)) for one in (value if isinstance(value, tuple) else [value]))


@dataclass(frozen=True)
class KAgentBenchOptions:
    """Score predictions on KAgentBench. Its data are at huggingface.co/datasets/kwaikeg/KAgentBench."""

    file: Positional[Path]
    """Benchmark file benchmark_eval.jsonl: records with id, type, golden_result_list, funcs,
    memory_last_task."""
    predictions: Positional[Path | None] = None
    """Predictions file: records with id and model_predict. Default: use model_predict in the benchmark
    file."""
    json: bool = False
    """Print the scores as one JSON object."""


def kagentbench(argv: Sequence[str]) -> int:
    """`scrubjay kagentbench FILE [PREDICTIONS]`."""
    options = parse(KAgentBenchOptions, argv, "scrubjay kagentbench")
    with bad_input():
        return run_kagentbench(options)


def run_kagentbench(options: KAgentBenchOptions) -> int:
    """Print the scores; return the exit code. Raises ValueError or OSError on invalid files."""
    records = list(_read(options.file))
    if options.predictions is not None:
        records = join(records, list(_read(options.predictions)))
    lines = ProgressLines()
    result = score(records, lambda done: lines(lambda: f"scored {done:,} of {len(records):,}"))
    if options.json:
        percent = {name: 100 * value for name, value in result.scores.items()}
        print(json.dumps({"scores": percent, "queries": result.counts, "overall": _percent(result.overall)}))
        return 0
    rows = [("ability", "queries", "weight", "score")]
    for name, weight in WEIGHTS.items():
        count = str(result.counts.get(name, 0))
        rows.append((name, count, f"{weight:.2f}", _format_score(result.scores.get(name))))
    print(table([*rows, ("overall", str(len(records)), "1.00", _format_score(result.overall))]))
    return 0


def _read(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(json_reader.read_text(path).split("\n"), 1):
        if line.strip():
            record = json_reader.parse(line, f"{path}, line {number}")
            if not isinstance(record, dict) or not isinstance(record.get("id"), str | int):
                raise ValueError(
                    f"{path}, line {number}: not a valid record; its id must be a string or an integer"
                )
            yield record


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _format_score(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
