"""Life cycle of a bank's records: reading, update, history, export and deletion."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from scrubjay.memory.bank.asynchronous import in_thread, iterate_in_thread
from scrubjay.memory.bank.duplicates import compute_fingerprint
from scrubjay.memory.bank.embedding_index import EmbeddingIndex
from scrubjay.memory.bank.file.store import Store
from scrubjay.memory.bank.index import forget, forget_expired, read_draft, read_versions, replace_text
from scrubjay.memory.bank.record import (
    COLUMNS,
    FOREIGN_TRUST,
    KINDS,
    TRUSTS,
    Record,
    Time,
    Version,
    check_choice,
    check_choices,
    check_count,
    check_id,
    check_memorable,
    check_namespace,
    join_namespace,
    record_fields,
    split_namespace,
    time_zone,
    to_seconds,
)
from scrubjay.memory.bank.search.candidates import Filter, Scalar, check_where
from scrubjay.memory.bank.serialization import BATCH, START, Restorer, build_draft, check_row, read_rows
from scrubjay.memory.bank.title import text_to_embed


class LifeCycle:
    """Methods of `MemoryBank` that read, change and delete records by id, owner or field."""

    _store: Store
    _clock: Callable[[], Time]
    _embedding_index: EmbeddingIndex | None

    @property
    def foreign(self) -> bool:
        """True if the file comes from someone else, so that every record has the trust "tool"."""
        return self._store.foreign

    @property
    def store(self) -> Store:
        """Database of the bank. Callers can add tables and write to them in one transaction with records."""
        return self._store

    def get(self, id: str) -> Record | None:
        """Return the record with this id, even if its validity has ended; None if the id is unknown."""
        with self._store.reading() as connection:
            row = connection.execute(
                f"SELECT {COLUMNS} FROM records WHERE id = ?", (check_id("id", id),)
            ).fetchone()
            return Record(**record_fields(row, self.foreign)) if row else None

    def recent(
        self,
        n: int,
        kind: str | None = None,
        namespace: Sequence[str] | None = None,
        at: Time | None = None,
    ) -> list[Record]:
        """Return the last `n` records that are valid now or at the time `at`, newest last.

        Args:
            n: Largest number of records.
            kind: Kind of the records; None for all.
            namespace: Owner of the records, with the namespaces below it; None for all.
            at: Time at which records must be valid, as for `search`; now by default.
        """
        n = check_count("n", n, 0)
        condition, values = Filter(
            at=to_seconds(self._clock(), "clock()") if at is None else to_seconds(at, "at"),
            needs_observation=at is not None,
            kinds=None if kind is None else (check_choice("kind", kind, KINDS),),
            namespace=None if namespace is None else join_namespace(check_namespace(namespace)),
            trusts=None,
        ).condition()
        with self._store.reading() as connection:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM records WHERE {condition} ORDER BY renewed DESC, number DESC LIMIT ?",
                [*values, n],
            ).fetchall()
            return [Record(**record_fields(row, self.foreign)) for row in reversed(rows)]

    def sayings(self, id: str) -> list[str]:
        """Return the text of a record and all texts that were merged into the record, oldest first."""
        with self._store.reading() as connection:
            rows = connection.execute(
                "SELECT 0, text FROM records WHERE id = ?1 UNION ALL SELECT sayings.rowid, sayings.text "
                "FROM sayings JOIN records USING (number) WHERE id = ?1 ORDER BY 1",
                (check_id("id", id),),
            ).fetchall()
        return [text for _, text in rows]

    def export(self, namespace: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Yield every record once as a JSON-serializable dict, conversation by conversation, oldest first.

        `namespace` restricts them to one owner and the namespaces below it. Expired records and merged texts
        are included. Records that other threads or processes write during the export may be included. A
        record that they update has its former or its new text.
        """
        last, owner = START, join_namespace(check_namespace(namespace or ()))
        while True:
            with self._store.reading() as connection:
                last, rows = read_rows(connection, last, self.foreign, owner)
            if not rows:
                return
            yield from rows

    def restore(self, rows: Iterable[Mapping[str, Any]], foreign: bool = True) -> list[bool]:
        """Write records from `export`; return one flag per record, True if it was new.

        Records whose ids already exist in the bank stay unchanged. Records are written in batches of 500. If
        the import is interrupted, the written batches stay in the bank, and a second call with all records
        completes the import.

        Args:
            rows: Exported records.
            foreign: The records may come from someone else: all of them get the trust "tool". False restores
                the trust levels of an export of your own, such as a backup.

        Raises:
            ValueError: If a row is not an exported record.
            TypeError: If a row is not an exported record.
        """
        rows, restorer, zone = iter(rows), Restorer(), time_zone(self._clock())
        new: list[bool] = []
        while batch := list(itertools.islice(rows, BATCH)):
            for row in batch:
                check_row(row)
            vectors: Sequence[np.ndarray | None] = [None] * len(batch)
            if self._embedding_index is not None:
                vectors = self._embedding_index.embed_texts(
                    [text_to_embed(row["text"], row["provenance"]) for row in batch]
                )
            drafts = [
                build_draft(row, vector, zone, foreign) for row, vector in zip(batch, vectors, strict=True)
            ]
            with self._store.writing() as connection:
                if self._embedding_index is not None and vectors[0] is not None:
                    self._embedding_index.note_dimension(connection, vectors[0])
                flags = [restorer.restore(connection, row, d) for row, d in zip(batch, drafts, strict=True)]
            new += flags
        return new

    def update(self, id: str, text: str, trust: str = "user") -> bool:
        """Replace the text of a record; return False if the record has this text already.

        The id, the owner, the kind, the validity and the metadata stay. The former text is in `history`, and
        no search finds it. To store a fact that changed at a certain time, use `add(supersedes=...)` instead.

        Args:
            id: Id of the record.
            text: New text.
            trust: Author of the new text: "user", "agent" or "tool".

        Raises:
            KeyError: if no record has the id.
            ValueError, TypeError: if the text cannot be stored, or if it is a tool's and the record is not.
        """
        check_memorable(text)
        check_choice("trust", trust, TRUSTS)
        moment = self._clock()
        vector = None
        if self._embedding_index is not None:
            with self._store.reading() as connection:
                provenance = read_draft(connection, check_id("id", id)).provenance
            (vector,) = self._embedding_index.embed_texts([text_to_embed(text, provenance)])
        with self._store.writing() as connection:
            if vector is not None and self._embedding_index is not None:
                self._embedding_index.note_dimension(connection, vector)
            draft = read_draft(connection, check_id("id", id))._replace(
                text=text,
                trust=trust,
                created=to_seconds(moment, "clock()"),
                vector=vector,
                zone=time_zone(moment),
            )
            fingerprint = compute_fingerprint(draft)
            is_new = replace_text(connection, id, draft, fingerprint, self._store.path, self.foreign)
        if is_new:
            self._store.erase_traces()
        return is_new

    def history(self, id: str) -> list[Version]:
        """Return the texts of a record, oldest first; the last one is the present text.

        Raises KeyError if no record has the id.
        """
        with self._store.reading() as connection:
            return read_versions(connection, check_id("id", id))

    def namespaces(self, namespace: Sequence[str] | None = None) -> dict[tuple[str, ...], int]:
        """Return the namespaces that own records, sorted, with their numbers of records.

        `namespace` restricts them to one namespace and those below it.
        """
        condition, values = "1", ()
        if namespace is not None and (prefix := join_namespace(check_namespace(namespace))):
            condition, values = "namespace >= ? AND namespace < ?", (prefix, prefix[:-1] + "\x20")
        with self._store.reading() as connection:
            rows = connection.execute(
                f"SELECT namespace, COUNT(*) FROM records WHERE {condition} GROUP BY namespace", values
            ).fetchall()
        return dict(sorted((split_namespace(name), count) for name, count in rows))

    def count(
        self,
        namespace: Sequence[str] | None = None,
        kinds: Iterable[str] | str | None = None,
        where: Mapping[str, Scalar] | None = None,
        since: Time | None = None,
        until: Time | None = None,
    ) -> int:
        """Return the number of records that fulfil all conditions, also of those that are not valid now.

        Args: as for `MemoryBank.search`.
        """
        condition, values = self._filter(namespace, kinds, None, where, since, until).condition()
        with self._store.reading() as connection:
            return connection.execute(f"SELECT COUNT(*) FROM records WHERE {condition}", values).fetchone()[0]

    def forget(
        self,
        id: str | None = None,
        *,
        namespace: Sequence[str] | None = None,
        kinds: Iterable[str] | str | None = None,
        where: Mapping[str, Scalar] | None = None,
        since: Time | None = None,
        until: Time | None = None,
    ) -> int:
        """Delete records permanently with their history, embeddings and index entries; return their number.

        The bytes of the records are overwritten in the file. A concurrent reader in another process may delay
        the overwriting. An interrupted call has deleted some of the records; call it again.

        Args:
            id: Id of one record; no other argument is then allowed.
            namespace: Delete the records of this namespace and of those below it.
            kinds: Delete only records of these kinds.
            where: Delete only records with these fields of the provenance.
            since: Delete only records that were observed at this time or later.
            until: Delete only records that were observed before this time.

        Raises:
            ValueError: if there is neither an id nor a condition, or both.
        """
        conditions = (namespace, kinds, where, since, until)
        if id is not None:
            if any(condition is not None for condition in conditions):
                raise ValueError(f"id={id!r} with a condition: pass an id, or conditions")
            ids = [check_id("id", id)]
        elif all(condition is None for condition in conditions):
            raise ValueError(
                "forget() without an id or a condition; pass namespace=() to delete every record"
            )
        else:
            condition, values = self._filter(namespace, kinds, None, where, since, until).condition()
            with self._store.reading() as connection:
                rows = connection.execute(f"SELECT id FROM records WHERE {condition}", values).fetchall()
            ids = [row[0] for row in rows]
        count = 0
        for first in range(0, len(ids), BATCH):
            with self._store.writing() as connection:
                count += sum(forget(connection, one, self._store.path) for one in ids[first : first + BATCH])
        if count:
            self._store.erase_traces()
        return count

    def expire(self) -> int:
        """Delete the records whose time to live has passed; return their number.

        Every write deletes up to 500 of them.
        """
        now, count, batch = to_seconds(self._clock(), "clock()"), 0, 1
        while batch:
            with self._store.writing() as connection:
                batch = forget_expired(connection, now, BATCH, self._store.path)
            count += batch
        if count:
            self._store.erase_traces()
        return count

    def _filter(
        self,
        namespace: Sequence[str] | None,
        kinds: Iterable[str] | str | None,
        trusts: Iterable[str] | str | None,
        where: Mapping[str, Scalar] | None,
        since: Time | None,
        until: Time | None,
    ) -> Filter:
        """Return a filter of all records, also those that are not valid now, after a check of the values.

        Args: as for `MemoryBank.search`.
        """
        return Filter(
            at=None,
            kinds=check_choices("kinds", kinds, KINDS),
            namespace=None if namespace is None else join_namespace(check_namespace(namespace)),
            trusts=self._stored_trusts(check_choices("trusts", trusts, TRUSTS)),
            where=check_where(where),
            since=None if since is None else to_seconds(since, "since"),
            until=None if until is None else to_seconds(until, "until"),
        )

    def _stored_trusts(self, trusts: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Return the stored words of the records that count as one of `trusts`; None for all words."""
        if not self.foreign or trusts is None:
            return trusts
        return None if FOREIGN_TRUST in trusts else ()

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    aget = in_thread(get)
    arecent = in_thread(recent)
    asayings = in_thread(sayings)
    aexport = iterate_in_thread(BATCH)(export)
    arestore = in_thread(restore)
    aupdate = in_thread(update)
    ahistory = in_thread(history)
    anamespaces = in_thread(namespaces)
    acount = in_thread(count)
    aforget = in_thread(forget)
    aexpire = in_thread(expire)
    aclose = in_thread(close)

    def __len__(self) -> int:
        """Return the number of records, expired records included."""
        with self._store.reading() as connection:
            return connection.execute("SELECT COUNT(*) FROM records").fetchone()[0]
