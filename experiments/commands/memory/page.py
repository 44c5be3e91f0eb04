"""`scrubjay memory page`: write a page of a bank's records and their supersessions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from scrubjay.agents.embeddings import EmbeddingsName
from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.lm.models import open_bank, open_for_recall


@dataclass(frozen=True)
class PageOptions:
    """Write a page with one step per record, oldest first. A step also shows any superseded record."""

    file: Positional[Path]
    """Memory bank file."""
    out: Path | None = None
    """Output file: a page (.html), a picture (.png, .pdf, .svg) or a trace (.json); default: the name of the
    memory bank with .html."""
    max_records: int = 2_000
    """Maximum number of records; the page shows the latest ones."""
    query: str | None = None
    """Search query. The page gets a last step that shows the hits and explains their scores."""
    k: int = 10
    """Maximum number of hits of --query."""
    embeddings: EmbeddingsName | None = None
    """Embedding model for semantic search; must be the one with which the memory was written."""


def page(options: PageOptions) -> int:
    """Write the page of the records in a memory bank."""
    from scrubjay.experiments.viz.agent import trace_bank
    from scrubjay.experiments.viz.look import Look, check_format

    out = options.out or options.file.with_suffix(".html")
    check_format(out)
    has_query = options.query is not None
    open_memory = open_for_recall if has_query else open_bank  # warns about records that a search cannot find
    with open_memory(options.file, False, options.embeddings) as bank:
        look = Look(trace_bank(bank, options.file.name, options.max_records, options.query, options.k))
    look.save(out)
    print(one_line(f"{out}: {len(look.trace.steps) - has_query:,} records"))
    return 0
