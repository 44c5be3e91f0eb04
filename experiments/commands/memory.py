"""`scrubjay memory`: search, edit, export and benchmark memory banks."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from scrubjay.experiments.cli.arguments import choose, parse
from scrubjay.experiments.cli.failures import UsageError, bad_input
from scrubjay.experiments.cli.untrusted_text import as_json, format_entries, one_line, printable, show_help
from scrubjay.experiments.commands import benchmarks, consolidation, transfer
from scrubjay.experiments.commands.consolidation import make_decider, print_decision
from scrubjay.experiments.commands.options import (
    AsJson,
    Author,
    BankFile,
    Embeddings,
    Foreign,
    NewBankFile,
    RecordKind,
    SameEmbeddings,
)
from scrubjay.experiments.files import parse as parse_json
from scrubjay.experiments.lm.models import format_namespace, open_bank, open_for_recall, read_namespace
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank import Consolidation
from scrubjay.memory.bank.record import Record, Version, parse_time

By = Literal["meaning", "words"]


@dataclass(frozen=True)
class AddOptions:
    """Add a text and print the id of its record. If the text is "-", read it from stdin."""

    file: NewBankFile
    text: Positional[str]
    """Text to add."""
    kind: RecordKind = "knowledge"
    """Kind of record."""
    namespace: str = ""
    """Namespace of the record, outermost level first, such as user/ada. If a name has a slash, write a JSON
    list, such as '["user", "a/b"]'."""
    trust: Author | None = None
    """Author of the text: user, agent or tool. The agent asks for approval before it acts on a text whose
    author is a tool. Default: user, or tool for a text from stdin, which may come from someone else."""
    supersedes: str | None = None
    """Id of the record that the new record replaces."""
    importance: float = 0.5
    """Importance, from 0 to 1."""
    ttl: float | None = None
    """Days until the record is deleted; default: never."""
    consolidate: str | None = None
    """Model that compares the text with the most similar records. It decides to add the text, to update or
    end a record, or to ignore the text. Choose "smollm2", a folder, a GGUF file, or provider:name. See also
    `decisions` and `undo`."""
    embeddings: Embeddings = None
    foreign: Foreign = False


def add(options: AddOptions) -> int:
    """Add one record."""
    if options.consolidate is not None and options.ttl is not None:
        raise ValueError("--ttl and --consolidate cannot be combined: the model may change another record")
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
            print(bank.add(text, supersedes=options.supersedes, ttl=options.ttl, **fields))
    return 0


@dataclass(frozen=True, kw_only=True)
class RecordFilter:
    """Conditions on the records of a bank."""

    namespace: str | None = None
    """Select only this namespace and the namespaces below it, such as user/ada or '["user", "a/b"]'."""
    kinds: tuple[RecordKind, ...] = ()
    """Select only these kinds of records; default: all."""
    where: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="FIELD=VALUE")] = ()
    """Select only records whose provenance has this value, such as source=manual.md. A number, true, false or
    null is a JSON value; write the text 5 as '"5"'. Repeat the option for more fields."""
    since: str | None = None
    """Select only records that were observed at this time or later, such as 2026-11-26 or
    2026-11-26T08:30."""
    until: str | None = None
    """Select only records that were observed before this time."""

    def conditions(self) -> dict[str, Any]:
        """Return the conditions as arguments of `MemoryBank.search` and `forget`; None where nothing is set.

        Raises ValueError on an invalid field or time.
        """
        return {
            "namespace": read_namespace(self.namespace),
            "kinds": self.kinds or None,
            "where": dict(map(_read_field, self.where)) or None,
            "since": _read_time(self.since, "since"),
            "until": _read_time(self.until, "until"),
        }


@dataclass(frozen=True)
class SearchOptions(RecordFilter):
    """Search records, best match first. Each match is printed with id, score, kind, time, author and text."""

    file: BankFile
    query: Positional[str]
    """Search query."""
    k: int = 10
    """Maximum number of matches."""
    trusts: tuple[Author, ...] = ()
    """Select only texts of these authors; default: all."""
    at: str | None = None
    """Search the records that were known and valid at this time, such as 2026-11-26 or 2026-11-26T08:30;
    default: now."""
    embeddings: SameEmbeddings = None
    by: By | None = None
    """Search only by meaning or only by words; default: both."""
    changes: bool = True
    """Put a newer fact before the one that it replaces, and mark the older one."""
    half_life: float | None = None
    """Days in which the score of a record halves; default: time only breaks ties."""
    min_relevance: float | None = None
    """Print only matches of at least this relevance, from 0 to 1, such as 0.03."""
    explain: bool = False
    """Explain each score, and print the relevance from 0 to 1."""
    foreign: Foreign = False
    json: AsJson = False


def search(options: SearchOptions) -> int:
    """Print the search results; the exit code is 0 even without results."""
    with open_for_recall(options.file, False, options.embeddings, options.foreign) as bank:
        hits = bank.search(
            options.query,
            options.k,
            at=_read_time(options.at, "at"),
            explain=options.explain,
            trusts=options.trusts or None,
            by=options.by,
            changes=options.changes,
            half_life=options.half_life,
            min_relevance=options.min_relevance,
            **options.conditions(),
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
            print(_indent(f"relevance: {hit.relevance:.3f}"))
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
    kind: RecordKind | None = None
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
    """Print records with all fields, their former texts and the texts that were merged into them."""
    with open_bank(options.file, create=False, foreign=options.foreign) as bank:
        records = [_get(bank, id, options.file) for id in options.ids]
        if not options.ids:
            namespace, at = read_namespace(options.namespace), _read_time(options.at, "at")
            records = bank.recent(options.last, options.kind, namespace, at)
        for record in records:
            wordings, former = bank.sayings(record.id), bank.history(record.id)[:-1]
            if options.json:
                history = [_as_json(version) for version in former]
                print(as_json(_as_json(record) | {"wordings": wordings, "history": history}))
                continue
            print(f"{one_line(record.id)}  {_heading(record)}")
            print(_indent(record.text))
            for name, value in _as_json(record).items():
                if name not in ("id", "text", "kind", "trust", "renewed") and value not in (None, [], {}):
                    print(_indent(f"{name}: {value}"))
            for wording in wordings[1:]:
                print(_indent(f"also said: {wording}"))
            for version in former:
                print(_indent(f"until {version.end and _local(version.end)}: {version.text}"))
        if not options.ids:
            count = f"{len(bank)} records in {options.file}, including superseded ones"
            print(one_line(count), file=sys.stderr)
    return 0


@dataclass(frozen=True)
class UpdateOptions:
    """Replace the text of a record. The id stays, and `show` prints the former text.

    To store a fact that changed at a certain time, use `add --supersedes` instead.
    """

    file: BankFile
    id: Positional[str]
    """Record id."""
    text: Positional[str]
    """New text. If it is "-", read it from stdin."""
    trust: Author | None = None
    """Author of the new text: user, agent or tool. Default: user, or tool for a text from stdin."""
    embeddings: SameEmbeddings = None
    foreign: Foreign = False


def update(options: UpdateOptions) -> int:
    """Replace the text of one record."""
    text = _read_stdin() if options.text == "-" else options.text
    with open_for_recall(options.file, False, options.embeddings, options.foreign) as bank:
        _get(bank, options.id, options.file)
        is_new = bank.update(options.id, text, options.trust or ("tool" if options.text == "-" else "user"))
    print("updated: 1" if is_new else "updated: 0; the record has this text already")
    return 0


@dataclass(frozen=True)
class SupersedeOptions:
    """End the validity of a record at the time where that of a newer one starts."""

    file: BankFile
    old: Positional[str]
    """Id of the record that is no longer true."""
    new: Positional[str]
    """Id of the record that replaces it."""
    undo: bool = False
    """Undo this: the old record is valid again."""
    foreign: Foreign = False


def supersede(options: SupersedeOptions) -> int:
    """Link two records, or undo that, and print the records of the fact."""
    with open_bank(options.file, create=False, foreign=options.foreign) as bank:
        for id in (options.old, options.new):
            _get(bank, id, options.file)
        (bank.undo_supersede if options.undo else bank.supersede)(options.old, options.new)
        for record in [_get(bank, options.old, options.file), _get(bank, options.new, options.file)]:
            print(f"{one_line(record.id)}  {_heading(record)}")
            print(_indent(record.text))
    return 0


@dataclass(frozen=True)
class NamespacesOptions:
    """List the namespaces that own records, with their numbers of records."""

    file: BankFile
    namespace: str | None = None
    """List only this namespace and the namespaces below it, such as user/ada or '["user", "a/b"]'."""
    foreign: Foreign = False
    json: AsJson = False


def namespaces(options: NamespacesOptions) -> int:
    """Print the namespaces with their numbers of records."""
    with open_bank(options.file, create=False, foreign=options.foreign) as bank:
        for namespace, count in bank.namespaces(read_namespace(options.namespace)).items():
            if options.json:
                print(as_json({"namespace": list(namespace), "records": count}))
            else:
                print(one_line(f"{count} {format_namespace(namespace) or '(no owner)'}"))
    return 0


@dataclass(frozen=True)
class ForgetOptions(RecordFilter):
    """Delete records permanently by id, or all that fulfil every condition. Their bytes are overwritten.

    With conditions, the number of records is printed, and --yes deletes them.
    """

    file: BankFile
    ids: Positional[tuple[str, ...]] = ()
    """Record ids."""
    yes: bool = False
    """Delete the records that fulfil the conditions."""
    everything: bool = False
    """With --namespace alone: delete also the owner's items of a LangGraph store, messages of chat histories
    and decisions."""
    foreign: Foreign = False


def forget(options: ForgetOptions) -> int:
    """Delete all named records, or none if one of them is missing; or those that fulfil the conditions."""
    conditions = {name: value for name, value in options.conditions().items() if value is not None}
    if bool(options.ids) == bool(conditions):
        raise ValueError(
            "forget needs record ids, as printed by search, or conditions such as --namespace, and not both"
        )
    with open_bank(options.file, create=False, foreign=options.foreign) as bank:
        if options.everything and (not options.namespace or len(conditions) > 1):
            raise ValueError("--everything requires --namespace, such as user/ada, and no other condition")
        if conditions and not options.yes:
            print(f"selected: {bank.count(**conditions)}")
            print("nothing was deleted; repeat the command with --yes", file=sys.stderr)
            return 0
        if options.everything:
            counts = bank.erase_owner(conditions["namespace"])
            print(f"deleted: {', '.join(f'{count} {table}' for table, count in counts.items())}")
            return 0
        for id in options.ids:
            _get(bank, id, options.file)
        count = bank.forget(**conditions) if conditions else sum(map(bank.forget, {*options.ids}))
    print(f"deleted: {count}")
    return 0


def _read_time(text: str | None, name: str) -> datetime | None:
    """Return the time of an option, local without a time zone. Raises ValueError if it is not a time."""
    return None if text is None else parse_time(text, name, is_local=True)


def _read_field(setting: str) -> tuple[str, Any]:
    name, sign, text = setting.partition("=")
    if not name or not sign:
        raise ValueError(f"--where {setting}: write FIELD=VALUE, such as source=manual.md")
    try:
        value = parse_json(text, name)
    except ValueError:
        return name, text
    return name, text if isinstance(value, list | dict) else value


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


def _as_json(record: Record | Version) -> dict[str, Any]:
    fields = dataclasses.asdict(record)
    if isinstance(record, Record):
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


@dataclass(frozen=True)
class PageOptions:
    """Write a page with a list of the records, filters and histories, and the results of searches."""

    file: BankFile
    out: Path | None = None
    """HTML file to write; default: the name of the memory bank with .html."""
    max_records: int = 2_000
    """Maximum number of records; the page has the latest ones."""
    query: UseAppendAction[tuple[str, ...]] = ()
    """Search query; repeat the option for several. The page shows the hits and explains their scores."""
    k: int = 10
    """Maximum number of hits of each query."""
    embeddings: SameEmbeddings = None
    foreign: Foreign = False


def page(options: PageOptions) -> int:
    """Write the page of a memory bank."""
    from scrubjay.experiments.viz.bank_page import check_page_name, view_bank

    out = options.out or options.file.with_suffix(".html")
    check_page_name(out)
    # Opening for searches warns about records that a search cannot find.
    open_memory = open_for_recall if options.query else open_bank
    with open_memory(options.file, False, options.embeddings, options.foreign) as bank:
        view = view_bank(bank, options.file.name, options.max_records, options.query, options.k)
    view.save(out)
    print(one_line(f"{out}: {len(view.data['records']):,} records"))
    return 0


ACTIONS: dict[str, tuple[str, type, Callable[[Any], int]]] = {
    "add": ("add a text", AddOptions, add),
    "search": ("search records by words and by meaning", SearchOptions, search),
    "show": ("show records with all fields", ShowOptions, show),
    "page": ("write a page of the records, their histories and searches", PageOptions, page),
    "namespaces": ("list the owners of records", NamespacesOptions, namespaces),
    "update": ("replace the text of a record", UpdateOptions, update),
    "supersede": ("let a newer record replace an older one, or undo it", SupersedeOptions, supersede),
    "forget": ("delete records permanently, by id or by conditions", ForgetOptions, forget),
    "import": ("import exported records or documents", transfer.ImportOptions, transfer.import_),
    "export": ("export records as JSON lines", transfer.ExportOptions, transfer.export),
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
