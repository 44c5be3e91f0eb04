"""`scrubjay memory page`: a bank's records, and what superseded what and when, as one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from scrubjay.agents.embeddings import EmbeddingsName
from scrubjay.experiments.language.banks import open_bank, open_for_recall
from scrubjay.experiments.words.foreign import one_line


@dataclass(frozen=True)
class PageOptions:
    """Write a page that shows records as they were written, and what each of them superseded."""

    file: Positional[Path]
    """The memory."""
    out: Path | None = None
    """File to write: a page (.html), a picture (.png, .pdf, .svg) or the trace (.json); default: the memory's
    name with .html."""
    most: int = 2_000
    """Records at most, the newest ones."""
    query: str | None = None
    """Ask this, too: the last step tells what is found, and why each record came."""
    k: int = 10
    """Records found at most."""
    embeddings: EmbeddingsName | None = None
    """Look by meaning, too, with those that the memory was written with."""


def page(options: PageOptions) -> int:
    """Write the page."""
    from scrubjay.experiments.looking.bank import trace_bank
    from scrubjay.experiments.looking.look import Look, check_format

    out = options.out or options.file.with_suffix(".html")
    check_format(out)
    asked = options.query is not None
    opened = open_for_recall if asked else open_bank  # which says what a search leaves out
    with opened(options.file, False, options.embeddings) as bank:
        look = Look(trace_bank(bank, options.file.name, options.most, options.query, options.k))
    look.save(out)
    print(one_line(f"{out}: {len(look.trace.steps) - asked:,} records"))
    return 0
