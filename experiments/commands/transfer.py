"""`scrubjay memory export` and `import`: records as JSON lines, and documents."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tyro.conf import Positional

from scrubjay.experiments import files as json_reader
from scrubjay.experiments.cli.untrusted_text import as_json, one_line
from scrubjay.experiments.commands.options import (
    Author,
    BankFile,
    Embeddings,
    Foreign,
    NewBankFile,
    RecordKind,
)
from scrubjay.experiments.files import replacement
from scrubjay.experiments.lm.models import open_bank, open_for_recall, read_namespace
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.document import split_document
from scrubjay.memory.bank.serialization import check_row

_SILENT_SECONDS = 3.0
"""Seconds before the first progress line, and between lines."""
_MAX_ROW = 2**28
"""Maximum number of characters of an exported record with its earlier texts."""


@dataclass(frozen=True)
class ExportOptions:
    """Export all records as JSON lines, also superseded ones, with former and merged texts and provenance."""

    file: BankFile
    out: Path | None = None
    """Output file; default: stdout."""
    namespace: str | None = None
    """Export only this namespace and the namespaces below it, such as user/ada or '["user", "a/b"]'."""
    everything: bool = False
    """Export also the owner's items of a LangGraph store and messages of chat histories. Each line then has a
    field `table`. Requires --namespace."""
    foreign: Foreign = False


def export(options: ExportOptions) -> int:
    """Write all records. An existing output file is replaced only after the export is complete."""
    with open_bank(options.file, create=False, foreign=options.foreign) as bank:
        namespace = read_namespace(options.namespace)
        if options.everything and not namespace:
            raise ValueError("--everything requires --namespace, such as user/ada")
        rows = bank.export_owner(namespace or ()) if options.everything else bank.export(namespace)
        count = None if options.everything else bank.count(namespace=namespace)
        lines = _report_progress((f"{as_json(row)}\n" for row in rows), "exported", count)
        if options.out is None:
            sys.stdout.writelines(lines)
            return 0
        with replacement(options.out) as new, new.open("w", encoding="utf-8") as file:
            count = sum(file.write(line) > 0 for line in lines)
        unit = "rows" if options.everything else "records"
        print(one_line(f"{options.out}: {count} {unit}"), file=sys.stderr)
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
    kind: RecordKind = "knowledge"
    """Kind of the records that are made from documents. Exported records keep their own kind."""
    namespace: str = ""
    """Namespace of the records that are made from documents, outermost level first, such as user/ada or
    '["user", "a/b"]'. Exported records keep their own namespace."""
    trust: Author = "tool"
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
