"""`scrubjay memory add`, `search`, `show`, `forget`, `import` and `export`: the records of a bank."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from scrubjay.agents.embeddings import EmbeddingsName
from scrubjay.experiments.commands.memory.consolidating import model_decides, tell
from scrubjay.experiments.language.banks import open_bank, open_for_recall, read_namespace
from scrubjay.experiments.runs import reading
from scrubjay.experiments.words.foreign import as_json, one_line, printable
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank import Consolidation
from scrubjay.memory.bank.document import split_document
from scrubjay.memory.bank.file.record import Hit, Record
from scrubjay.memory.bank.transfer import check_row

Kind = Literal["knowledge", "conversation", "task", "episode"]
Trust = Literal["user", "agent", "tool"]
By = Literal["meaning", "words"]
_SILENT_SECONDS = 3.0
"""Before progress is told, and between two times."""


@dataclass(frozen=True)
class AddOptions:
    """Remember a text, and print its id. The text "-" is read from the standard input."""

    file: Positional[Path]
    """The memory; begun if it is not there."""
    text: Positional[str]
    """What to remember."""
    kind: Kind = "knowledge"
    """What it is."""
    namespace: str = ""
    """Whose memory it is, from the widest circle: user/ada."""
    trust: Trust = "user"
    """Who worded it. What a tool worded, the agent does not act upon without your approval."""
    supersedes: str | None = None
    """Id of the record that no longer holds from now on."""
    importance: float = 0.5
    """From 0 to 1."""
    consolidate: str | None = None
    """Let this model decide, by the records that are most like it, whether the text is added, updates or ends
    one, or is nothing new: "smollm2", a folder, a GGUF file, or provider:name. `decisions` shows what it
    decided, `undo` takes it back."""
    embeddings: EmbeddingsName | None = None
    """What it is to be found by besides its words: minilm for English, e5 for a hundred languages. One
    memory, one kind."""


def add(options: AddOptions) -> int:
    """Add one record."""
    if options.consolidate is not None and options.supersedes is not None:
        raise ValueError("with --consolidate a model says what is superseded: leave --supersedes away")
    text = _typed() if options.text == "-" else options.text
    # Before a file is begun.
    decide = None if options.consolidate is None else model_decides(options.consolidate)
    with open_for_recall(options.file, True, options.embeddings) as bank:
        if decide is not None:
            decision = Consolidation(bank, decide).add(
                text,
                kind=options.kind,
                namespace=read_namespace(options.namespace) or (),
                importance=options.importance,
                trust=options.trust,
                source="scrubjay memory add",
            )
            tell(decision)
            return 0
        id = bank.add(
            text,
            options.kind,
            read_namespace(options.namespace) or (),
            options.importance,
            trust=options.trust,
            supersedes=options.supersedes,
            source="scrubjay memory add",
        )
    print(id)
    return 0


@dataclass(frozen=True)
class SearchOptions:
    """Find records, best first: id, score, kind, when it was last said, who said it; then the text."""

    file: Positional[Path]
    """The memory."""
    query: Positional[str]
    """Words to look for."""
    k: int = 10
    """Records at most."""
    kinds: tuple[Kind, ...] = ()
    """Only these kinds."""
    namespace: str | None = None
    """Only this circle and those within it: user/ada."""
    trusts: tuple[Trust, ...] = ()
    """Only what these said."""
    at: str | None = None
    """What held then, as 2026-11-26 or 2026-11-26T08:30; default: what holds now."""
    embeddings: EmbeddingsName | None = None
    """Look by meaning, too, with those that the memory was written with."""
    by: By | None = None
    """Look by the one alone; by default by both."""
    explain: bool = False
    """Tell how each score came about."""
    json: bool = False
    """One JSON object a record."""


def search(options: SearchOptions) -> int:
    """Print what is found; the exit code is 0 even if it is nothing."""
    with open_for_recall(options.file, False, options.embeddings) as bank:
        hits = bank.search(
            options.query,
            options.k,
            options.kinds or None,
            read_namespace(options.namespace),
            None if options.at is None else _read_moment(options.at),
            options.explain,
            options.trusts or None,
            options.by,
        )
    for hit in hits:
        if options.json:
            print(as_json(_as_json(hit)))
            continue
        print(f"{one_line(hit.id)}  {hit.score:.4f}  {_heading(hit)}")
        print(_indented(hit.text))
        if hit.explanation is not None:
            print(_indented(f"because: {hit.explanation.told}"))
    if not hits:
        print("nothing found", file=sys.stderr)
    return 0


@dataclass(frozen=True)
class ShowOptions:
    """Show records in full: those named by id, or the last ones that hold."""

    file: Positional[Path]
    """The memory."""
    ids: Positional[tuple[str, ...]] = ()
    """Ids of records."""
    last: int = 10
    """How many, where no id is given."""
    kind: Kind | None = None
    """Of those, only this kind."""
    namespace: str | None = None
    """Of those, only this circle and those within it."""
    json: bool = False
    """One JSON object a record."""


def show(options: ShowOptions) -> int:
    """Print records with every field and every wording."""
    with open_bank(options.file, create=False) as bank:
        records = [_get(bank, id, options.file) for id in options.ids]
        if not options.ids:
            records = bank.recent(options.last, options.kind, read_namespace(options.namespace))
        for record in records:
            wordings = bank.sayings(record.id)
            if options.json:
                print(as_json(_as_json(record) | {"wordings": wordings}))
                continue
            print(f"{one_line(record.id)}  {_heading(record)}")
            print(_indented(record.text))
            for name, value in _as_json(record).items():
                if name not in ("id", "text", "kind", "trust", "renewed") and value not in (None, [], {}):
                    print(_indented(f"{name}: {value}"))
            for wording in wordings[1:]:
                print(_indented(f"also said: {wording}"))
        if not options.ids:
            print(
                f"{len(bank)} records in {options.file}, those that no longer hold included", file=sys.stderr
            )
    return 0


@dataclass(frozen=True)
class ForgetOptions:
    """Delete records for good: their bytes are overwritten."""

    file: Positional[Path]
    """The memory."""
    ids: Positional[tuple[str, ...]]
    """Ids of records."""


def forget(options: ForgetOptions) -> int:
    """Delete all that are named, or none if one of them is not there."""
    if not options.ids:
        raise ValueError("forget needs the id of a record, as search prints it")
    with open_bank(options.file, create=False) as bank:
        for id in options.ids:
            _get(bank, id, options.file)
        for id in options.ids:
            bank.forget(id)
    print(f"forgotten: {len(set(options.ids))}")
    return 0


@dataclass(frozen=True)
class ExportOptions:
    """Write all records as JSON lines, with ids, wordings, provenance and what no longer holds."""

    file: Positional[Path]
    """The memory."""
    out: Path | None = None
    """File to write; default: the standard output."""


def export(options: ExportOptions) -> int:
    """Write records, in a file only whole."""
    with open_bank(options.file, create=False) as bank:
        lines = (f"{as_json(row)}\n" for row in bank.export())
        lines = _told(lines, "exported", len(bank))
        if options.out is None:
            sys.stdout.writelines(lines)
            return 0
        new = options.out.with_name(f"{options.out.name}.new")
        with new.open("w", encoding="utf-8") as file:
            file.writelines(lines)
        new.replace(options.out)
        print(f"{options.out}: {len(bank)} records", file=sys.stderr)
    return 0


@dataclass(frozen=True)
class ImportOptions:
    """Read exported records (.jsonl, or "-" for stdin), or documents (text, Markdown) by their passages.

    Exported records keep the trust they had: read only those of a bank you trust. Stopped, the same command
    goes on: records that are there are left as they are.
    """

    file: Positional[Path]
    """The memory; begun if it is not there."""
    sources: Positional[tuple[Path, ...]]
    """What to read."""
    kind: Kind = "knowledge"
    """Of documents."""
    namespace: str = ""
    """Of documents: user/ada."""
    trust: Trust = "tool"
    """Of documents: user only for what you wrote or have read. What a tool worded, the agent does not act
    upon without your approval."""
    embeddings: EmbeddingsName | None = None
    """What all is to be found by besides its words: minilm for English, e5 for a hundred languages. One
    memory, one kind."""


def import_(options: ImportOptions) -> int:
    """Read one source after the other, and tell of each how much was new."""
    if not options.sources:
        raise ValueError("import needs a file to read: exported records (.jsonl), text or Markdown")
    for source in options.sources:
        if source != Path("-") and not source.is_file():
            raise ValueError(f"there is no file {source}")
    with open_for_recall(options.file, True, options.embeddings) as bank:
        for source in options.sources:
            if source == Path("-") or source.suffix == ".jsonl":
                with _opened(source) as lines:
                    written = bank.restore(_told(_rows(lines, source), "read"))
                print(one_line(f"{source}: {sum(written)} new, {len(written) - sum(written)} were there"))
                continue
            text = reading.read_text(source)
            if not any(passages for _, passages in split_document(text)):
                raise ValueError(f"{source} has no passage: nothing but headings, or nothing; leave it out")
            ids = bank.add_document(
                text,
                options.kind,
                read_namespace(options.namespace) or (),
                trust=options.trust,
                source=str(source),
            )
            print(one_line(f"{source}: {len(ids)} passages"))
    return 0


def _get(bank: MemoryBank, id: str, file: Path) -> Record:
    record = bank.get(id)
    if record is None:
        raise ValueError(f"{file} has no record {id!r}; search and show print ids")
    return record


def _read_moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone() if moment.tzinfo is None else moment
    except (ValueError, OverflowError):
        raise ValueError(f"at={text!r}: write a moment as 2026-11-26 or 2026-11-26T08:30") from None


def _heading(record: Record) -> str:
    ended = f"  until {_local(record.valid_to)}" if record.valid_to else ""
    return one_line(f"{record.kind}  {_local(record.renewed)}{ended}  {record.trust}")


def _local(moment: datetime) -> str:
    # At either end of the calendar the user's clock may have no such moment.
    with contextlib.suppress(OverflowError):
        moment = moment.astimezone()
    return f"{moment:%Y-%m-%d %H:%M}"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in printable(text).splitlines())


def _as_json(record: Record | Hit) -> dict[str, Any]:
    fields = dataclasses.asdict(record)
    fields["namespace"] = list(record.namespace)
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in fields.items()
        if name != "explanation" or value is not None
    }


def _typed() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the standard input is no text in {error.encoding.upper()}: {error.reason}"
        ) from None


def _rows(lines: Iterable[str], source: Path) -> Iterator[Any]:
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{source}, line {number}"
                yield _checked(reading.parse(line, where), where)
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is no text in UTF-8 after line {number}: {error.reason}") from None


def _checked(row: Any, where: str) -> Any:
    try:
        check_row(row)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None
    return row


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[Iterable[str]]:
    if source == Path("-"):
        yield sys.stdin
        return
    with source.open(encoding="utf-8") as file:
        yield file


def _told(items: Iterable[Any], done: str, total: int | None = None) -> Iterator[Any]:
    """Yield `items`, and say how many it were from time to time, where somebody waits."""
    said = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        if time.monotonic() - said > _SILENT_SECONDS:
            said = time.monotonic()
            print(f"{done} {count:,}{'' if total is None else f' of {total:,}'}", file=sys.stderr, flush=True)
