"""`scrubjay memory`: a memory bank looked into, changed and measured, one file and one word of what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from scrubjay.experiments.commands.memory import bench, consolidating, page, records
from scrubjay.experiments.words.arguments import UsageError, choose, parse
from scrubjay.experiments.words.terminal import bad_input

ACTIONS: dict[str, tuple[str, type, Callable[[Any], int]]] = {
    "add": ("remember a text", records.AddOptions, records.add),
    "search": ("find records by words, and by meaning", records.SearchOptions, records.search),
    "show": ("show records in full", records.ShowOptions, records.show),
    "page": ("show records, and what replaced what, as a page", page.PageOptions, page.page),
    "forget": ("delete records for good", records.ForgetOptions, records.forget),
    "import": ("read exported records, or documents", records.ImportOptions, records.import_),
    "export": ("write all records as JSON lines", records.ExportOptions, records.export),
    "decisions": (
        "show what a model made of new memories",
        consolidating.DecisionsOptions,
        consolidating.decisions,
    ),
    "undo": ("take such a decision back", consolidating.UndoOptions, consolidating.undo),
    "bench": ("measure a memory on the sets of the field, file by file", bench.BenchOptions, bench.bench),
    "facts": ("write made facts and their contradictions, for bench", bench.FactsOptions, bench.facts),
}


def run(words: Sequence[str]) -> int:
    """`scrubjay memory ACTION FILE ...`."""
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, ACTIONS))
        lines = "\n".join(f"  {name:<{width}}  {what}" for name, (what, *_) in ACTIONS.items())
        print(
            f"usage: scrubjay memory ACTION FILE ...\n\n{lines}\n\nscrubjay memory ACTION --help tells more."
        )
        return 0
    name = choose("action", words[0], list(ACTIONS))
    _, kind, act = ACTIONS[name]
    options = parse(kind, words[1:], f"scrubjay memory {name}")
    try:
        with bad_input():
            return act(options)
    except sqlite3.DatabaseError as error:
        raise UsageError(f"{getattr(options, 'file', 'the memory')}: {error}") from error
