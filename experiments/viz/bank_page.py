"""Page of a memory bank: a list of records with filters, their histories, and searches with the reasons."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scrubjay.experiments.files import write_atomically
from scrubjay.experiments.viz.html_document import render_document, render_frame
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.record import Hit, Record


@dataclass(frozen=True)
class BankView:
    """Records of a bank and results of searches, as a page that a notebook displays and that can be saved."""

    data: dict[str, Any]
    """Content of the page: JSON values."""

    def save(self, out: Path | str) -> Path:
        """Write the page and return its path. Raises ValueError unless the file name ends in .html."""
        out = Path(out)
        check_page_name(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, self.render())
        return out

    def render(self) -> str:
        """Return the page."""
        # NaN and infinity are not JSON, and a browser refuses them.
        text = json.dumps(self.data, ensure_ascii=True, allow_nan=False)
        return render_document("bank_page", text, styles=("page", "bank_page"))

    def _repr_html_(self) -> str:
        return render_frame(self.render())


def check_page_name(out: Path) -> None:
    """Raise ValueError unless the name of the file ends in .html."""
    if out.suffix.lower() != ".html":
        raise ValueError(f"out={str(out)!r}: the page of a bank is HTML; name it {out.stem}.html")


def view_bank(
    bank: MemoryBank, title: str, max_records: int = 2_000, queries: Sequence[str] = (), k: int = 10
) -> BankView:
    """Return a view of the latest records of a bank, and of its best matches of each query.

    The matches are included if they are older than the `max_records` latest records. Raises ValueError if the
    bank is empty, or if `max_records` or `k` is below 1.
    """
    if max_records < 1:
        raise ValueError(f"max_records={max_records}: must be at least 1")
    searches = [(query, bank.search(query, k, explain=True)) for query in queries]
    with bank.store.reading() as connection:
        newest = "SELECT id FROM records ORDER BY number DESC LIMIT ?"
        ids = dict.fromkeys(id for (id,) in connection.execute(newest, (max_records,)))
        expiries = dict(connection.execute("SELECT id, time FROM expiries JOIN records USING (number)"))
    ids |= dict.fromkeys(hit.id for _, hits in searches for hit in hits)
    records = [record for id in ids if (record := bank.get(id)) is not None]
    if not records:
        raise ValueError(f"{title} has no records; add one with `scrubjay memory add`")
    replaced_by: dict[str, list[str]] = {}
    for record in records:
        if record.supersedes is not None:
            replaced_by.setdefault(record.supersedes, []).append(record.id)
    count, now = len(bank), datetime.now(UTC)
    return BankView(
        {
            "title": title,
            "about": [
                ["records", f"{count:,}" if count == len(records) else f"{len(records):,} of {count:,}"],
                ["time of this page", f"{now:%Y-%m-%d %H:%M} UTC"],
            ],
            "now": now.timestamp(),
            "records": [
                {
                    **_record_data(record, bank),
                    "expires": _finite(expiries.get(record.id)),
                    "replaced_by": replaced_by.get(record.id, []),
                }
                for record in records
            ],
            "queries": [
                {"text": query, "hits": [_hit_data(hit) for hit in hits]} for query, hits in searches
            ],
        }
    )


def _finite(value: Any) -> float | None:
    """Return a finite number or None: a damaged file may contain anything."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _record_data(record: Record, bank: MemoryBank) -> dict[str, Any]:
    """Return the fields of a record as JSON values: times in seconds since 1970, other metadata as text."""
    data = {
        name: value.timestamp() if isinstance(value, datetime) else value
        for name, value in dataclasses.asdict(record).items()
    }
    *earlier, _ = bank.history(record.id)
    return data | {
        "namespace": list(record.namespace),
        "provenance": {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in record.provenance.items()
        },
        "history": [
            {"text": one.text, "end": None if one.end is None else one.end.timestamp()} for one in earlier
        ],
        "sayings": bank.sayings(record.id)[1:],
    }


def _hit_data(hit: Hit) -> dict[str, Any]:
    assert hit.explanation is not None
    names = ("id", "score", "relevance", "superseded_by")
    return {name: getattr(hit, name) for name in names} | {"explanation": dataclasses.asdict(hit.explanation)}
