"""A memory bank: what an agent was told, did and read, kept in one file and recalled by words and by meaning.

One record type for knowledge, conversation, task and episode. Nothing is overwritten: a new truth supersedes
an old one, whose validity ends; `forget` alone deletes, and does so physically. Writing needs no language
model.

Recall has HCAM's shape over text (Lampinen et al. 2021, arXiv 2105.14039): a query is scored against
summaries of chunks (a conversation's segments, a document's sections), then against the records inside the
chosen ones; words nominate too, and both scores are summed, each as far as it is sure. Without embeddings
words alone nominate.
"""

from __future__ import annotations

import itertools
import sqlite3
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
    check_namespace,
    join_namespace,
    record_fields,
    to_seconds,
    zone_of,
)
from scrubjay.memory.bank.file.store import Store
from scrubjay.memory.bank.model import Known, check_dimension, check_model
from scrubjay.memory.bank.search.approximate import ApproximateIndex
from scrubjay.memory.bank.search.dense import DenseIndex, VectorIndex, stored_dimension, unit_vectors
from scrubjay.memory.bank.search.fluency import Embeddings, fluency, script_of
from scrubjay.memory.bank.search.matrix import usable_device
from scrubjay.memory.bank.search.recall import Filter, recall
from scrubjay.memory.bank.search.segments import require_usearch
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
    from scrubjay.memory.bank.surprise import Surprise, SurpriseConfig


class MemoryBank:
    """Memories in an SQLite file, or in memory (`":memory:"`); safe for threads and several processes.

    Args:
        path: The file, begun if it is not there.
        embeddings: What records are found by besides their words.
        clock: Returns the present moment; in its time zone days begin.
        dense_weight: What embeddings count where words count 1, each times how sure it is
            (`memory/bank/search/recall.py`).
        surprise: Puts a neural memory beside the records (`memory/bank/surprise.py`); off unless asked for.
        device: Where torch holds the embeddings, "cuda" for one, where Triton scans them; without it numpy
            does, and torch stays out.
        approximate: Hold no embeddings at all: beside the file an index of them is kept, from which the
            nearest are found, not surely all of them (extra `ann`; `memory/bank/search/approximate.py`).

    Raises:
        DamagedBankError: a ValueError, here and by every method, on a file that is damaged or no bank.
        ValueError: on a file of a newer Scrubjay, on a device that is not there, and on what does not go
            together; the first search or write does on a file that was written with other embeddings
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
        if dense_weight < 0:
            raise ValueError(f"dense_weight={dense_weight}: must not be negative")
        if surprise is not None and embeddings is None:
            raise ValueError(f"surprise={surprise}: it is found in embeddings; pass some")
        if device is not None and embeddings is None:
            raise ValueError(f"device={device!r}: it is to hold embeddings; pass some")
        if approximate:
            if embeddings is None or device is not None or str(path) in ("", ":memory:"):
                raise ValueError(
                    f"approximate=True with embeddings={embeddings!r}, device={device!r}, "
                    f"path={str(path)!r}: "
                    "it needs embeddings and a file, and holds nothing on a device"
                )
            require_usearch()
        self._approximate = approximate
        self._device = None if device is None else usable_device(device)
        self._embeddings, self._clock, self._dense_weight = embeddings, clock, dense_weight
        self._fluencies: dict[str, float] = {}
        self._known: Known | None = None
        self._store = Store(path)
        self._index: DenseIndex | None = None
        self._surprise_config = surprise
        self._surprise: Surprise | None = None

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
        if importance is not None and not 0 <= importance <= 1:
            raise ValueError(f"importance={importance}: must be from 0 to 1")
        now = to_seconds(self._clock(), "clock()")
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
        )

    def embedded(self, drafts: list[Draft]) -> list[Draft]:
        """Return the drafts with their embeddings, and with all else that takes time done.

        Before a transaction, as others must not wait for it.
        """
        vectors = self._embed([draft.text for draft in drafts])
        drafts = [draft._replace(vector=v) for draft, v in zip(drafts, vectors, strict=True)]
        surprise = None if not drafts or vectors[0] is None else self._surprised(len(vectors[0]))
        drafts = drafts if surprise is None else surprise.judged(drafts)
        return [prepared(self._store, draft) for draft in drafts]

    def write(self, drafts: list[Draft]) -> list[str]:
        """Write embedded drafts, all or nothing, and return the ids of the records that say what they do."""
        if not drafts:
            return []
        with self._store.writing() as connection:
            self._note_dimension(connection, drafts[0].vector)
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
            ValueError: if the text is blank, and as `add`.
        """
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
    ) -> list[Hit]:
        """Return up to `k` records, best first, that hold now or held `at` a moment.

        Args:
            query: Words, or a question. A date in it means what names it and what was observed on that day,
                or in that month, where `clock` is.
            k: Records at most.
            kinds: Only these.
            namespace: Only this circle and all that it contains: `("user",)` finds `("user", "ada")`'s.
            at: The moment; by default now.
            explain: Fill the hits' `explanation`.
            trusts: Only what these worded: `("user", "agent")` leaves out what tools said.

        Raises:
            ValueError: on k < 1, on kinds and trusts that there are none of, and on a query longer than
                `LONGEST_TEXT` (2**20) characters.
        """
        if k < 1:
            raise ValueError(f"k={k}: must be at least 1")
        check_length("query", query)
        moment = self._clock()
        now = to_seconds(moment, "clock()")
        filter = Filter(
            at=now if at is None else to_seconds(at, "at"),
            kinds=check_choices("kinds", kinds, KINDS),
            namespace=None if namespace is None else join_namespace(check_namespace(namespace)),
            trusts=check_choices("trusts", trusts, TRUSTS),
        )
        vector, dense_weight = None, 0.0
        if self._embeddings is not None and query.strip():
            self._check_model()
            dense_weight = self._dense_weight * self._fluency(self._embeddings, script_of(query))
            vector = unit_vectors([self._embeddings.embed_query(query)], 1)[0]
            surprise = self._surprised(len(vector))
            if surprise is not None and surprise.config.recall_weight:
                vector = surprise.recalled(vector)
            for _ in self.build_index():
                pass
        with self._store.reading() as connection:
            index = None if vector is None else self._refreshed_index(connection, vector)
            hits = []
            for number, score, why in recall(
                connection, query, vector, index, dense_weight, filter, now, k, zone_of(moment)
            ):
                row = connection.execute(
                    f"SELECT {COLUMNS} FROM records WHERE number = ?", (number,)
                ).fetchone()
                hits.append(Hit(**record_fields(row), score=score, explanation=why if explain else None))
        return hits

    def get(self, id: str) -> Record | None:
        """Return the record, valid or not; None if there is none."""
        with self._store.reading() as connection:
            row = connection.execute(f"SELECT {COLUMNS} FROM records WHERE id = ?", (id,)).fetchone()
            return Record(**record_fields(row)) if row else None

    def recent(self, n: int, kind: str | None = None, namespace: Sequence[str] | None = None) -> list[Record]:
        """Return the last `n` records that hold now, the newest last."""
        if n < 0:
            raise ValueError(f"n={n}: must not be negative")
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

    def restore(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[bool]:
        """Write what `export` gave, and yield of each record whether it was new.

        Ids that are there stay untouched.

        Hundreds are written at once, and those yielded for are safe: going on after a break begins from the
        start. Raises ValueError or TypeError on what is no such record.
        """
        rows, restorer = iter(rows), Restorer()
        while batch := list(itertools.islice(rows, BATCH)):
            for row in batch:
                check_row(row)
            vectors = self._embed([row["text"] for row in batch])
            drafts = [draft_of(row, vector) for row, vector in zip(batch, vectors, strict=True)]
            with self._store.writing() as connection:
                self._note_dimension(connection, vectors[0])
                new = [restorer.restore(connection, row, d) for row, d in zip(batch, drafts, strict=True)]
            yield from new

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
        if self._approximate:
            with self._store.reading() as connection:
                dimension = stored_dimension(connection)
                index = None if dimension is None else self._kept_index(dimension)
            if isinstance(index, ApproximateIndex):
                yield from index.catch_up()

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

    def _embed(self, texts: list[str]) -> Sequence[np.ndarray | None]:
        if self._embeddings is None or not texts:
            return [None] * len(texts)
        self._check_model()
        return list(unit_vectors(self._embeddings.embed_documents(texts), len(texts)))

    def _fluency(self, embeddings: Embeddings, script: str) -> float:
        if script not in self._fluencies:
            self._fluencies[script] = fluency(embeddings, script)
        return self._fluencies[script]

    def _check_model(self) -> None:
        if self._embeddings is not None:
            self._known = check_model(self._store, self._embeddings, self._known)

    def _note_dimension(self, connection: sqlite3.Connection, vector: np.ndarray | None) -> None:
        if vector is not None:
            check_dimension(stored_dimension(connection), vector)
            # Known before others had to wait, unless the file's embeddings are all newer than that.
            self._check_model()
            connection.execute("UPDATE facts SET value = ? WHERE name = 'dimension'", (len(vector),))

    def _surprised(self, dimension: int) -> Surprise | None:
        if self._surprise_config is not None and self._surprise is None:
            from scrubjay.memory.bank.surprise import Surprise  # it brings torch along

            self._surprise = Surprise(self._store, self._surprise_config, dimension)
        self._store.if_undone(self._drop_kept)
        return self._surprise

    def _refreshed_index(self, connection: sqlite3.Connection, vector: np.ndarray) -> DenseIndex:
        check_dimension(stored_dimension(connection), vector)
        self._check_model()  # again, as others may have begun the file anew since
        index = self._kept_index(len(vector))
        self._store.if_undone(self._drop_kept)
        index.refresh(connection)
        return index

    def _kept_index(self, dimension: int) -> DenseIndex:
        """Return the one index of all threads; inside a transaction, as two might make one each."""
        if self._index is None:
            if self._approximate:
                self._index = ApproximateIndex(self._store, dimension)
            else:
                self._index = VectorIndex(dimension, self._device)
        return self._index

    def _drop_kept(self) -> None:
        self._index = self._surprise = None
