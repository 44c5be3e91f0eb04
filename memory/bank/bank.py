"""A memory bank: what an agent was told, did and read, kept in one file and recalled by words and by meaning.

One record type for knowledge, conversation, task and episode. Nothing is overwritten: a new truth supersedes
an old one, whose validity ends; `forget` alone deletes, and does so physically. Writing needs no language
model.

Recall adds up how near a record is in meaning, which of the query's words it says, and a part of what its
neighbours in the conversation or the document have of both (`memory/bank/search/recall.py`). Without
embeddings words alone count.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from scrubjay.memory.bank.document import split_document
from scrubjay.memory.bank.file.record import (
    COLUMNS,
    KINDS,
    TRUSTS,
    Hit,
    Record,
    Time,
    check_choice,
    check_choices,
    check_count,
    check_namespace,
    join_namespace,
    record_fields,
    to_seconds,
    zone_of,
)
from scrubjay.memory.bank.file.store import Store, select
from scrubjay.memory.bank.meaning import Meaning, check_options
from scrubjay.memory.bank.search.filter import Filter
from scrubjay.memory.bank.search.fluency import Embeddings
from scrubjay.memory.bank.search.recall import nearest, recall
from scrubjay.memory.bank.transfer import BATCH, Restorer, check_row, draft_of, read_rows
from scrubjay.memory.bank.write import (
    Draft,
    Writer,
    check_length,
    check_memorable,
    encode_provenance,
    prepared,
)

if TYPE_CHECKING:
    from scrubjay.memory.bank.surprise import SurpriseConfig


class MemoryBank:
    """Memories in an SQLite file, or in memory (`":memory:"`); safe for threads and several processes.

    Args:
        path: The file, begun if it is not there.
        embeddings: What records are found by besides their words.
        clock: Returns the present moment; in its time zone days begin.
        dense_weight: What a standard deviation of nearness counts where all of a query's words count 5
            (`memory/bank/search/recall.py`).
        surprise: Puts a neural memory beside the records (`memory/bank/surprise.py`); off unless asked for.
        device: Where torch holds the embeddings, "cuda" for one, where Triton scans them; without it numpy
            does, and torch stays out.
        approximate: Hold no embeddings at all: beside the file an index of them is kept, from which the
            nearest are found, not surely all of them (extra `ann`; `memory/bank/search/approximate.py`).

    Raises:
        DamagedBankError: a ValueError, here and by every method, on a file that is damaged or no bank.
        OSError: where the file's folder is not there, or the file is a folder.
        ValueError: on no path, on a file of a newer Scrubjay, on a device that is not there, and on what does
            not go together; the first search or write does on a file that was written with other embeddings
            (`memory/bank/model.py`).
    """

    def __init__(
        self,
        path: str | Path,
        embeddings: Embeddings | None = None,
        clock: Callable[[], Time] = lambda: datetime.now(UTC),
        dense_weight: float = 1.0,
        surprise: SurpriseConfig | None = None,
        device: str | None = None,
        approximate: bool = False,
    ) -> None:
        if not dense_weight >= 0:
            raise ValueError(f"dense_weight={dense_weight}: must not be negative")
        held_on = check_options(path, embeddings, surprise, device, approximate)
        self._clock, self._dense_weight = clock, dense_weight
        self._store = Store(path)
        self._meaning: Meaning | None = None
        if embeddings is not None:
            self._meaning = Meaning(self._store, embeddings, surprise, held_on, approximate)

    def add(
        self,
        text: str,
        kind: str = "conversation",
        namespace: Sequence[str] = (),
        importance: float | None = None,
        observed: Time | None = None,
        valid_from: Time | None = None,
        valid_to: Time | None = None,
        trust: str = "user",
        supersedes: str | None = None,
        merge: bool = True,
        **provenance: Any,
    ) -> str:
        """Remember a text and return its id, when it is safe from the death of this process.

        Args:
            text: What to remember, of up to `LONGEST_TEXT` (2**20) characters.
            kind: "knowledge", "conversation", "task" or "episode".
            namespace: Whose it is, from the widest circle.
            importance: From 0 to 1; by default 0.5.
            observed: When it was said or seen; by default now.
            valid_from: Since when it holds; None where that is not known.
            valid_to: Until when; by default for ever.
            trust: Who worded it: "user", "agent" or "tool".
            supersedes: Id of the record whose validity ends where this one's begins.
            merge: A text that says no more than a record of the same namespace, kind, trust and validity does
                joins it, and the id is that record's; False keeps every text apart, as a log of turns must.
            provenance: Anything that JSON can hold.

        Raises:
            ValueError, TypeError: on what cannot be stored.
        """
        draft = self.draft(
            text,
            kind,
            namespace,
            importance,
            observed,
            valid_from,
            valid_to,
            trust,
            supersedes,
            merge,
            **provenance,
        )
        return self.write(self.embedded([draft]))[0]

    @property
    def store(self) -> Store:
        """The file, for tables that belong to the records and transactions that write both."""
        return self._store

    def draft(
        self,
        text: str,
        kind: str = "conversation",
        namespace: Sequence[str] = (),
        importance: float | None = None,
        observed: Time | None = None,
        valid_from: Time | None = None,
        valid_to: Time | None = None,
        trust: str = "user",
        supersedes: str | None = None,
        merge: bool = True,
        **provenance: Any,
    ) -> Draft:
        """Return what `add` would write, checked. Raises ValueError or TypeError as `add` does.

        Args: those of `add`.
        """
        check_memorable(text)
        if importance is not None and not (isinstance(importance, int | float) and 0 <= importance <= 1):
            raise ValueError(f"importance={importance!r}: must be a number from 0 to 1")
        moment = self._clock()
        now = to_seconds(moment, "clock()")
        start = None if valid_from is None else to_seconds(valid_from, "valid_from")
        end = None if valid_to is None else to_seconds(valid_to, "valid_to")
        if start is not None and end is not None and start >= end:
            raise ValueError(f"valid_from={valid_from}, valid_to={valid_to}: it must end after it begins")
        return Draft(
            text=text,
            kind=check_choice("kind", kind, KINDS),
            namespace=join_namespace(check_namespace(namespace)),
            trust=check_choice("trust", trust, TRUSTS),
            provenance=encode_provenance(provenance),
            created=now,
            observed=now if observed is None else to_seconds(observed, "observed"),
            valid_from=start,
            valid_to=end,
            importance=0.5 if importance is None else float(importance),
            supersedes=supersedes,
            merge=merge and supersedes is None,
            vector=None,
            zone=zone_of(moment),
        )

    def embedded(self, drafts: list[Draft]) -> list[Draft]:
        """Return the drafts with their embeddings, and with all else that takes time done.

        Before a transaction, as others must not wait for it.
        """
        if self._meaning is not None:
            vectors = self._meaning.embedded([draft.text for draft in drafts])
            drafts = [draft._replace(vector=v) for draft, v in zip(drafts, vectors, strict=True)]
            drafts = self._meaning.judged(drafts)
        return [prepared(self._store, draft) for draft in drafts]

    def write(self, drafts: list[Draft]) -> list[str]:
        """Write embedded drafts, all or nothing, and return the ids of the records that say what they do."""
        if not drafts:
            return []
        with self._store.writing() as connection:
            if self._meaning is not None and drafts[0].vector is not None:
                self._meaning.note_dimension(connection, drafts[0].vector)
            writer = Writer(connection)
            return [writer.write(draft) for draft in drafts]

    def add_document(
        self,
        text: str,
        kind: str = "knowledge",
        namespace: Sequence[str] = (),
        passage_length: int = 600,
        importance: float | None = None,
        observed: Time | None = None,
        trust: str = "user",
        **provenance: Any,
    ) -> list[str]:
        """Remember a document by its passages and return their ids; a section's passages are one chunk.

        Sections begin at Markdown headings, which passages carry as provenance `section`. All is written, or
        nothing.

        Args:
            text: The document.
            kind: "knowledge", "conversation", "task" or "episode".
            namespace: Whose it is, from the widest circle.
            passage_length: Characters of a passage at most.
            importance: From 0 to 1; by default 0.5.
            observed: When it was read; by default now.
            trust: Who worded it: "user", "agent" or "tool".
            provenance: Anything that JSON can hold.

        Raises:
            ValueError, TypeError: if the text is blank, and as `add`.
        """
        if not isinstance(text, str):
            raise TypeError(f"text={text!r}: pass a string")
        drafts = []
        for number, (heading, passages) in enumerate(split_document(text, passage_length)):
            for passage in passages:
                draft = self.draft(
                    passage, kind, namespace, importance, observed, trust=trust,
                    **{**provenance, "section": heading},
                )  # fmt: skip
                drafts.append(draft._replace(section=number))
        if not drafts:
            raise ValueError("text has no passage; pass a document that is not blank")
        return self.write(self.embedded(drafts))

    def search(
        self,
        query: str,
        k: int = 10,
        kinds: Iterable[str] | str | None = None,
        namespace: Sequence[str] | None = None,
        at: Time | None = None,
        explain: bool = False,
        trusts: Iterable[str] | str | None = None,
        by: str | None = None,
    ) -> list[Hit]:
        """Return up to `k` records, best first, that hold now or held `at` a moment.

        Args:
            query: Words, or a question. A day, month or year in it are words of what was observed then, where
                `clock` is.
            k: Records at most.
            kinds: Only these.
            namespace: Only this circle and all that it contains: `("user",)` finds `("user", "ada")`'s.
            at: The moment; by default now.
            explain: Fill the hits' `explanation`.
            trusts: Only what these worded: `("user", "agent")` leaves out what tools said.
            by: "meaning" for the exact cosine alone, "words" as without embeddings; by default both.

        Raises:
            ValueError, TypeError: on k < 1, on kinds, trusts and `by` that there are none of, by meaning
                without embeddings, and on a query longer than `LONGEST_TEXT` (2**20) characters.
        """
        check_count("k", k, 1)
        check_length("query", query)
        if by is not None:
            check_choice("by", by, ("meaning", "words"))
        meaning = self._meaning if query.strip() and by != "words" else None
        if by == "meaning" and self._meaning is None:
            raise ValueError("by='meaning': the bank has no embeddings; open it with some")
        now = to_seconds(self._clock(), "clock()")
        filter = Filter(
            at=now if at is None else to_seconds(at, "at"),
            kinds=check_choices("kinds", kinds, KINDS),
            namespace=None if namespace is None else join_namespace(check_namespace(namespace)),
            trusts=check_choices("trusts", trusts, TRUSTS),
        )
        vector, dense_weight = None, 0.0
        if meaning is not None:
            # A search by meaning alone need not try the model on the script.
            dense_weight = 0.0 if by else self._dense_weight * meaning.fluency(query)
            vector = meaning.query(query, alone=by is not None)
        with self._store.reading() as connection:
            scan = None
            if meaning is not None and vector is not None:
                scan = meaning.scan(connection, vector, filter.allows)
            if by == "meaning":
                found = [] if scan is None else nearest(connection, scan, filter, k)
            else:
                found = recall(connection, query, scan, dense_weight, filter, now, k, explain)
            rows = select(connection, f"number, {COLUMNS}", [number for number, *_ in found])
            fields = {number: record_fields(row) for number, *row in rows}
            return [
                Hit(**fields[number], score=score, explanation=why if explain else None)
                for number, score, why in found
            ]

    def get(self, id: str) -> Record | None:
        """Return the record, valid or not; None if there is none."""
        with self._store.reading() as connection:
            row = connection.execute(f"SELECT {COLUMNS} FROM records WHERE id = ?", (id,)).fetchone()
            return Record(**record_fields(row)) if row else None

    def recent(self, n: int, kind: str | None = None, namespace: Sequence[str] | None = None) -> list[Record]:
        """Return the last `n` records that hold now, the newest last."""
        check_count("n", n, 0)
        condition, values = Filter(
            at=to_seconds(self._clock(), "clock()"),
            kinds=None if kind is None else (check_choice("kind", kind, KINDS),),
            namespace=None if namespace is None else join_namespace(check_namespace(namespace)),
            trusts=None,
        ).condition()
        with self._store.reading() as connection:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM records WHERE {condition} ORDER BY renewed DESC, number DESC LIMIT ?",
                [*values, n],
            ).fetchall()
            return [Record(**record_fields(row)) for row in reversed(rows)]

    def sayings(self, id: str) -> list[str]:
        """Return every wording of a record, the first one first."""
        with self._store.reading() as connection:
            rows = connection.execute(
                "SELECT 0, text FROM records WHERE id = ?1 UNION ALL SELECT sayings.rowid, sayings.text "
                "FROM sayings JOIN records USING (number) WHERE id = ?1 ORDER BY 1",
                (id,),
            ).fetchall()
        return [text for _, text in rows]

    def export(self) -> Iterator[dict[str, Any]]:
        """Yield every record as JSON values, the oldest first.

        Those that no longer hold and all wordings included.

        What other threads and processes write meanwhile may be among them.
        """
        last = 0
        while True:
            with self._store.reading() as connection:
                last, rows = read_rows(connection, last)
            if not rows:
                return
            yield from rows

    def restore(self, rows: Iterable[Mapping[str, Any]]) -> list[bool]:
        """Write what `export` gave, and return of each record whether it was new.

        Ids that are there stay untouched. Hundreds are written at once, and stay if it breaks off: going on
        begins from the start. Raises ValueError or TypeError on what is no such record.
        """
        rows, restorer, zone = iter(rows), Restorer(), zone_of(self._clock())
        new: list[bool] = []
        while batch := list(itertools.islice(rows, BATCH)):
            for row in batch:
                check_row(row)
            vectors: Sequence[np.ndarray | None] = [None] * len(batch)
            if self._meaning is not None:
                vectors = self._meaning.embedded([row["text"] for row in batch])
            drafts = [draft_of(row, vector, zone) for row, vector in zip(batch, vectors, strict=True)]
            with self._store.writing() as connection:
                if self._meaning is not None and vectors[0] is not None:
                    self._meaning.note_dimension(connection, vectors[0])
                done = [restorer.restore(connection, row, d) for row, d in zip(batch, drafts, strict=True)]
            new += done
        return new

    def forget(self, id: str) -> bool:
        """Delete a record for good: text, wordings, embedding and index entries.

        Return whether there was one.

        Its bytes are overwritten in the file; another process that reads at this moment may delay that.
        """
        with self._store.writing() as connection:
            found = Writer(connection).forget(id, self._store.path)
        if found:
            self._store.erase_traces()
        return found

    def build_index(self) -> Iterator[tuple[int, int]]:
        """Build what an `approximate` bank's index lacks, and yield how many records are in it, of how many.

        A search does so, too, which takes minutes for a million records; what is built stays if this is
        broken off. Without `approximate` there is nothing to build.
        """
        if self._meaning is not None:
            yield from self._meaning.build_index()

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def __len__(self) -> int:
        """Return how many records there are, those that no longer hold included."""
        with self._store.reading() as connection:
            return connection.execute("SELECT COUNT(*) FROM records").fetchone()[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
