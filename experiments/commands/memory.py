"""`scrubjay memory`: search, edit, export and benchmark memory banks."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TextIO

from tyro.conf import Positional

from scrubjay.experiments import files as json_reader
from scrubjay.experiments.cli.arguments import choose, parse
from scrubjay.experiments.cli.failures import UsageError, bad_input
from scrubjay.experiments.cli.untrusted_text import as_json, format_entries, one_line, printable, show_help
from scrubjay.experiments.commands import benchmarks, consolidation
from scrubjay.experiments.commands.consolidation import make_decider, print_decision
from scrubjay.experiments.commands.options import (
    AsJson,
    BankFile,
    Embeddings,
    Foreign,
    NewBankFile,
    SameEmbeddings,
)
from scrubjay.experiments.files import replacement
from scrubjay.experiments.lm.models import open_bank, open_for_recall, read_namespace
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank import Consolidation
from scrubjay.memory.bank.document import split_document
from scrubjay.memory.bank.record import Hit, Record, parse_time
from scrubjay.memory.bank.serialization import check_row

Kind = Literal["knowledge", "conversation", "task", "episode"]
Trust = Literal["user", "agent", "tool"]
By = Literal["meaning", "words"]
_SILENT_SECONDS = 3.0
_MAX_ROW = 2**28
"""Maximum number of characters of an exported record with its earlier texts."""
"""Seconds before the first progress line, and between lines."""


@dataclass(frozen=True)
class AddOptions:
    """Add a text and print the id of its record. If the text is "-", read it from stdin."""

    file: NewBankFile
    text: Positional[str]
    """Text to add."""
    kind: Kind = "knowledge"
    """Kind of record."""
    namespace: str = ""
    """Namespace of the record, outermost level first, such as user/ada. If a name has a slash, write a JSON
    list, such as '["user", "a/b"]'."""
    trust: Trust | None = None
    """Author of the text: user, agent or tool. The agent asks for approval before it acts on a text whose
    author is a tool. Default: user, or tool for a text from stdin, which may come from someone else."""
    supersedes: str | None = None
    """Id of the record that the new record replaces."""
    importance: float = 0.5
    """Importance, from 0 to 1."""
    consolidate: str | None = None
    """Model that compares the text with the most similar records. It decides to add the text, to update or
    end a record, or to ignore the text. Choose "smollm2", a folder, a GGUF file, or provider:name. See also
    `decisions` and `undo`."""
    embeddings: Embeddings = None
    foreign: Foreign = False


def add(options: AddOptions) -> int:
    """Add one record."""
    if options.consolidate is not None and options.supersedes is not None:
        raise ValueError(
            "--supersedes and --consolidate cannot be combined: with --consolidate the model decides"
        )
    text = _read_stdin() if options.text == "-" else options.text
    # Load the model before the file is created.
    decide = None if options.consolidate is None else make_decider(options.consolidate)
    fields: dict[str, Any] = {
        "kind": options.kind,
        "namespace": read_namespace(options.namespace) or (),
        "importance": options.importance,
        "trust": options.trust or ("tool" if options.text == "-" else "user"),
        "source": "scrubjay memory add",
    }
    with open_for_recall(options.file, True, options.embeddings, options.foreign) as bank:
        if decide is not None:
            print_decision(Consolidation(bank, decide).add(text, **fields))
        else:
            print(bank.add(text, supersedes=options.supersedes, **fields))
    return 0


@dataclass(frozen=True)
class SearchOptions:
    """Search records, best match first. Each match is printed with id, score, kind, time, author and text."""

    file: BankFile
    query: Positional[str]
    """Search query."""
    k: int = 10
    """Maximum number of matches."""
    kinds: tuple[Kind, ...] = ()
    """Search only these kinds of records; default: all."""
    namespace: str | None = None
    """Search only this namespace and the namespaces below it, such as user/ada or '["user", "a/b"]'."""
    trusts: tuple[Trust, ...] = ()
    """Search only texts of these authors; default: all."""
    at: str | None = None
    """Search the records that were known and valid at this time, such as 2026-11-26 or 2026-11-26T08:30;
    default: now."""
    embeddings: SameEmbeddings = None
    by: By | None = None
    """Search only by meaning or only by words; default: both."""
    explain: bool = False
    """Explain each score."""
    foreign: Foreign = False
    json: AsJson = False


def search(options: SearchOptions) -> int:
    """Print the search results; the exit code is 0 even without results."""
    with open_for_recall(options.file, False, options.embeddings, options.foreign) as bank:
        hits = bank.search(
            options.query,
            options.k,
            options.kinds or None,
            read_namespace(options.namespace),
            _read_time(options.at),
            options.explain,
            options.trusts or None,
            options.by,
        )
    for hit in hits:
        if options.json:
            print(as_json(_as_json(hit)))
            continue
        print(f"{one_line(hit.id)}  {hit.score:.4f}  {_heading(hit)}")
        print(_indent(hit.text))
        if hit.superseded_by is not None:
            print(_indent(f"superseded by: {one_line(hit.superseded_by)}"))
        if hit.explanation is not None:
            print(_indent(f"because: {hit.explanation.summary}"))
    if not hits:
        print("no records found", file=sys.stderr)
    return 0


@dataclass(frozen=True)
class ShowOptions:
    """Show all fields of the records with these ids. Without ids, show the latest valid records."""

    file: BankFile
    ids: Positional[tuple[str, ...]] = ()
    """Record ids."""
    last: int = 10
    """Without ids: maximum number of records; the latest ones are shown."""
    kind: Kind | None = None
    """Without ids: show only this kind of record."""
    namespace: str | None = None
    """Without ids: show only this namespace and the namespaces below it, such as user/ada or
    '["user", "a/b"]'."""
    at: str | None = None
    """Without ids: show the records that were known and valid at this time, such as 2026-11-26 or
    2026-11-26T08:30; default: now."""
    foreign: Foreign = False
    json: AsJson = False


def show(options: ShowOptions) -> int:
    """Print records with all fields and with the texts that were merged into them."""
    with open_bank(options.file, create=False, foreign=options.foreign) as bank:
        records = [_get(bank, id, options.file) for id in options.ids]
        if not options.ids:
            namespace, at = read_namespace(options.namespace), _read_time(options.at)
            records = bank.recent(options.last, options.kind, namespace, at)
        for record in records:
            wordings = bank.sayings(record.id)
            if options.json:
                print(as_json(_as_json(record) | {"wordings": wordings}))
                continue
            print(f"{one_line(record.id)}  {_heading(record)}")
            print(_indent(record.text))
            for name, value in _as_json(record).items():
                if name not in ("id", "text", "kind", "trust", "renewed") and value not in (None, [], {}):
                    print(_indent(f"{name}: {value}"))
            for wording in wordings[1:]:
                print(_indent(f"also said: {wording}"))
        if not options.ids:
            count = f"{len(bank)} records in {options.file}, including superseded ones"
            print(one_line(count), file=sys.stderr)
    return 0


@dataclass(frozen=True)
class ForgetOptions:
    """Delete records permanently; their bytes are overwritten."""

    file: BankFile
    ids: Positional[tuple[str, ...]]
    """Record ids."""
    foreign: Foreign = False


def forget(options: ForgetOptions) -> int:
    """Delete all named records, or none if one of them is missing."""
    if not options.ids:
        raise ValueError("forget needs a record id, as printed by search")
    with open_bank(options.file, create=False, foreign=options.foreign) as bank:
        for id in options.ids:
            _get(bank, id, options.file)
        for id in options.ids:
            bank.forget(id)
    print(f"deleted: {len(set(options.ids))}")
    return 0


@dataclass(frozen=True)
class ExportOptions:
    """Export all records, also superseded ones, as JSON lines with ids, merged texts and provenance."""

    file: BankFile
    out: Path | None = None
    """Output file; default: stdout."""
    foreign: Foreign = False


def export(options: ExportOptions) -> int:
    """Write all records. An existing output file is replaced only after the export is complete."""
    with open_bank(options.file, create=False, foreign=options.foreign) as bank:
        lines = (f"{as_json(row)}\n" for row in bank.export())
        lines = _report_progress(lines, "exported", len(bank))
        if options.out is None:
            sys.stdout.writelines(lines)
            return 0
        with replacement(options.out) as new, new.open("w", encoding="utf-8") as file:
            file.writelines(lines)
        print(one_line(f"{options.out}: {len(bank)} records"), file=sys.stderr)
    return 0


@dataclass(frozen=True)
class ImportOptions:
    """Import exported records (.jsonl, or "-" for stdin), or split documents (text, Markdown) into passages.

    All imported texts count as texts of tools, unless --own or --trust says otherwise: the agent asks for
    approval before it acts on them. The same command continues an interrupted import; existing records are
    not changed.
    """

    file: NewBankFile
    sources: Positional[tuple[Path, ...]]
    """Files to import."""
    kind: Kind = "knowledge"
    """Kind of the records that are made from documents. Exported records keep their own kind."""
    namespace: str = ""
    """Namespace of the records that are made from documents, outermost level first, such as user/ada or
    '["user", "a/b"]'. Exported records keep their own namespace."""
    trust: Trust = "tool"
    """Source of documents: `user` for texts that you wrote or checked, `tool` for all other texts."""
    own: bool = False
    """Exported records are from your own memory bank, and nobody else has changed them since: they keep their
    trust levels."""
    embeddings: Embeddings = None
    foreign: Foreign = False


def import_(options: ImportOptions) -> int:
    """Import the sources in order and print the number of new records from each source."""
    if not options.sources:
        raise ValueError("import needs an input file: exported records (.jsonl), text or Markdown")
    for source in options.sources:
        if source != Path("-") and not source.is_file():
            raise ValueError(f"file {source} does not exist")
    if options.own and not any(map(_is_export, options.sources)):
        raise ValueError("--own is for exported records (.jsonl, or -); for documents use --trust user")
    with open_for_recall(options.file, True, options.embeddings, options.foreign) as bank:
        for source in options.sources:
            if _is_export(source):
                _import_records(bank, source, options.own)
                continue
            text = json_reader.read_text(source)
            if not any(passages for _, passages in split_document(text)):
                raise ValueError(f"{source} contains no passage: it is empty or has only headings; omit it")
            ids = bank.add_document(
                text,
                options.kind,
                read_namespace(options.namespace) or (),
                trust=options.trust,
                source=str(source),
            )
            print(one_line(f"{source}: {len(ids)} passages"))
    return 0


def _is_export(source: Path) -> bool:
    return source == Path("-") or source.suffix == ".jsonl"


def _import_records(bank: MemoryBank, source: Path, own: bool) -> None:
    """Import exported records, and report how many are new, and how many lost their trust level."""
    trusts: list[str] = []

    def read(lines: TextIO) -> Iterator[Any]:
        for row in _rows(lines, source):
            trusts.append(row["trust"])
            yield row

    reader = contextlib.nullcontext(sys.stdin) if source == Path("-") else source.open(encoding="utf-8")
    with reader as lines:
        is_new = bank.restore(_report_progress(read(lines), "read"), foreign=not own)
    print(one_line(f"{source}: {sum(is_new)} new, {len(is_new) - sum(is_new)} already present"))
    num_limited = sum(new and trust != "tool" for new, trust in zip(is_new, trusts, strict=True))
    if num_limited and not own:
        print(
            one_line(
                f"{source}: {num_limited} records of users and agents count as texts of tools, because "
                "they may be someone else's; import an export of your own into a new bank with --own"
            ),
            file=sys.stderr,
        )


def _read_time(at: str | None) -> datetime | None:
    return None if at is None else parse_time(at, "at", is_local=True)


def _get(bank: MemoryBank, id: str, file: Path) -> Record:
    record = bank.get(id)
    if record is None:
        raise ValueError(
            f"{file} has no record {id!r}; `scrubjay memory search` and `scrubjay memory show` print ids"
        )
    return record


def _heading(record: Record) -> str:
    until = f"  until {_local(record.valid_to)}" if record.valid_to else ""
    return one_line(f"{record.kind}  {_local(record.renewed)}{until}  {record.trust}")


def _local(moment: datetime) -> str:
    # The local time may be out of range at either end of the calendar.
    with contextlib.suppress(OverflowError):
        moment = moment.astimezone()
    return f"{moment:%Y-%m-%d %H:%M}"


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in printable(text).splitlines())


def _as_json(record: Record | Hit) -> dict[str, Any]:
    fields = dataclasses.asdict(record)
    fields["namespace"] = list(record.namespace)
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in fields.items()
        if name != "explanation" or value is not None
    }


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"stdin is not valid {error.encoding.upper()} text: {error.reason}") from None


def _rows(lines: TextIO, source: Path) -> Iterator[Any]:
    number = 0
    try:
        # A file of holes is a single line, which may not fit in memory.
        for number, line in enumerate(iter(lambda: lines.readline(_MAX_ROW + 1), ""), 1):
            if len(line) > _MAX_ROW:
                raise ValueError(f"{source}, line {number} has more than {_MAX_ROW:,} characters, the limit")
            if line.strip():
                where = f"{source}, line {number}"
                row = json_reader.parse(line, where)
                try:
                    check_row(row)
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{where}: {error}") from None
                yield row
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not valid UTF-8 after line {number}: {error.reason}") from None


def _report_progress(items: Iterable[Any], done: str, total: int | None = None) -> Iterator[Any]:
    """Yield `items` and print their count on stderr from time to time."""
    last_printed = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        if time.monotonic() - last_printed > _SILENT_SECONDS:
            last_printed = time.monotonic()
            print(f"{done} {count:,}{'' if total is None else f' of {total:,}'}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class PageOptions:
    """Write a page with one step per record, oldest first. A step also shows any superseded record."""

    file: BankFile
    out: Path | None = None
    """Output file: a page (.html), a picture (.png, .pdf, .svg) or a trace (.json); default: the name of the
    memory bank with .html."""
    max_records: int = 2_000
    """Maximum number of records; the page shows the latest ones."""
    query: str | None = None
    """Search query. The page gets a last step that shows the hits and explains their scores."""
    k: int = 10
    """Maximum number of hits of --query."""
    embeddings: SameEmbeddings = None
    foreign: Foreign = False


def page(options: PageOptions) -> int:
    """Write the page of the records in a memory bank."""
    from scrubjay.experiments.viz.agent import trace_bank
    from scrubjay.experiments.viz.look import Look, check_format

    out = options.out or options.file.with_suffix(".html")
    check_format(out)
    has_query = options.query is not None
    open_memory = open_for_recall if has_query else open_bank  # warns about records that a search cannot find
    with open_memory(options.file, False, options.embeddings, options.foreign) as bank:
        look = Look(trace_bank(bank, options.file.name, options.max_records, options.query, options.k))
    look.save(out)
    print(one_line(f"{out}: {len(look.trace.steps) - has_query:,} records"))
    return 0


ACTIONS: dict[str, tuple[str, type, Callable[[Any], int]]] = {
    "add": ("add a text", AddOptions, add),
    "search": ("search records by words and by meaning", SearchOptions, search),
    "show": ("show records with all fields", ShowOptions, show),
    "page": ("write a page of the records and their supersessions", PageOptions, page),
    "forget": ("delete records permanently", ForgetOptions, forget),
    "import": ("import exported records or documents", ImportOptions, import_),
    "export": ("export all records as JSON lines", ExportOptions, export),
    "decisions": (
        "show consolidation decisions of a model",
        consolidation.DecisionsOptions,
        consolidation.decisions,
    ),
    "undo": ("undo a consolidation decision", consolidation.UndoOptions, consolidation.undo),
    "bench": ("run question-answering benchmarks on a memory", benchmarks.BenchOptions, benchmarks.bench),
    "facts": (
        "generate a benchmark of synthetic facts and contradictions",
        benchmarks.FactsOptions,
        benchmarks.facts,
    ),
}


def run(argv: Sequence[str]) -> int:
    """`scrubjay memory ACTION FILE ...`."""
    if not argv or argv[0] in ("-h", "--help"):
        actions = format_entries({name: about for name, (about, *_) in ACTIONS.items()})
        show_help(
            f"usage: scrubjay memory ACTION FILE ...\n\n{actions}\n\n"
            "Run scrubjay memory ACTION --help for details."
        )
    name = choose("action", argv[0], list(ACTIONS))
    _, kind, act = ACTIONS[name]
    options = parse(kind, argv[1:], f"scrubjay memory {name}")
    try:
        with bad_input():
            return act(options)
    except sqlite3.DatabaseError as error:
        raise UsageError(f"{getattr(options, 'file', 'the memory')}: {error}") from error
