"""`scrubjay memory`: search, edit, export and benchmark memory banks."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from scrubjay.experiments.cli.arguments import UsageError, choose, parse
from scrubjay.experiments.cli.terminal import bad_input
from scrubjay.experiments.commands.memory import bench, consolidation, page, records

ACTIONS: dict[str, tuple[str, type, Callable[[Any], int]]] = {
    "add": ("add a text", records.AddOptions, records.add),
    "search": ("search records by words and by meaning", records.SearchOptions, records.search),
    "show": ("show records with all fields", records.ShowOptions, records.show),
    "page": ("write a page of the records and their supersessions", page.PageOptions, page.page),
    "forget": ("delete records permanently", records.ForgetOptions, records.forget),
    "import": ("import exported records or documents", records.ImportOptions, records.import_),
    "export": ("export all records as JSON lines", records.ExportOptions, records.export),
    "decisions": (
        "show consolidation decisions of a model",
        consolidation.DecisionsOptions,
        consolidation.decisions,
    ),
    "undo": ("undo a consolidation decision", consolidation.UndoOptions, consolidation.undo),
    "bench": ("run question-answering benchmarks on a memory", bench.BenchOptions, bench.bench),
    "facts": ("generate a benchmark of synthetic facts and contradictions", bench.FactsOptions, bench.facts),
}


def run(argv: Sequence[str]) -> int:
    """`scrubjay memory ACTION FILE ...`."""
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, ACTIONS))
        lines = "\n".join(f"  {name:<{width}}  {what}" for name, (what, *_) in ACTIONS.items())
        print(
            f"usage: scrubjay memory ACTION FILE ...\n\n{lines}\n\n"
            "Run scrubjay memory ACTION --help for details."
        )
        return 0
    name = choose("action", argv[0], list(ACTIONS))
    _, kind, act = ACTIONS[name]
    options = parse(kind, argv[1:], f"scrubjay memory {name}")
    try:
        with bad_input():
            return act(options)
    except sqlite3.DatabaseError as error:
        raise UsageError(f"{getattr(options, 'file', 'the memory')}: {error}") from error
