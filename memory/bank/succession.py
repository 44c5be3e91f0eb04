"""Succession of records: a request ends the validity of a record where a newer one starts, and can be undone.

`add(supersedes=...)` does the same while it writes the newer record. Here both records are in the bank
already. No text changes, and nothing is deleted.
"""

from __future__ import annotations

import sqlite3

from scrubjay.memory.bank.asynchronous import in_thread
from scrubjay.memory.bank.file.store import Store
from scrubjay.memory.bank.record import COLUMNS, TRUSTS, Record, check_id, record_fields


class Succession:
    """Methods of `MemoryBank` that link the records of one fact over time."""

    _store: Store

    def supersede(self, old_id: str, new_id: str) -> None:
        """End the validity of a record at the time where the validity of a newer one starts.

        The start is `valid_from`, or `observed` if it is None. The field `supersedes` of the newer record is
        set to the old id. `undo_supersede` undoes the call.

        Args:
            old_id: Id of the record that is no longer true.
            new_id: Id of the record that replaces it.

        Raises:
            KeyError: If no record has one of the ids.
            ValueError: If the newer record starts no later, has a lower trust, or supersedes a record
                already, or if the validity of the old record has an end already.
        """
        with self._store.writing() as connection:
            old, new = (_read(connection, id, self._store.foreign) for id in (old_id, new_id))
            if old.valid_to is not None:
                raise ValueError(
                    f"old_id={old_id!r}: its validity ends already, at {old.valid_to:%Y-%m-%d %H:%M}; undo "
                    "that with undo_supersede first"
                )
            if new.supersedes is not None:
                raise ValueError(
                    f"new_id={new_id!r}: it supersedes {new.supersedes!r} already; undo that with "
                    "undo_supersede first"
                )
            if TRUSTS.index(new.trust) > TRUSTS.index(old.trust):
                raise ValueError(
                    f"new_id={new_id!r}: a text of trust {new.trust!r} cannot replace a record of trust "
                    f"{old.trust!r}; let the agent or the user confirm the text"
                )
            start = new.valid_from or new.observed
            if start <= (old.valid_from or old.observed):
                raise ValueError(
                    f"new_id={new_id!r}: it starts at {start:%Y-%m-%d %H:%M}, no later than the record that "
                    "it should replace; exchange the ids, or pass other records"
                )
            connection.execute("UPDATE records SET valid_to = ? WHERE id = ?", (start.timestamp(), old_id))
            connection.execute("UPDATE records SET supersedes = ? WHERE id = ?", (old_id, new_id))

    def undo_supersede(self, old_id: str, new_id: str) -> None:
        """Undo `supersede`: the validity of the old record has no end, and the newer one supersedes none.

        Raises:
            KeyError: If no record has one of the ids.
            ValueError: If the newer record does not supersede the old one, or the end of the old record's
                validity is not the start of the newer one's.
        """
        with self._store.writing() as connection:
            old, new = (_read(connection, id, self._store.foreign) for id in (old_id, new_id))
            if new.supersedes != old_id:
                raise ValueError(f"new_id={new_id!r}: it does not supersede {old_id!r}, so nothing is undone")
            if old.valid_to != (new.valid_from or new.observed):
                raise ValueError(
                    f"old_id={old_id!r}: its validity does not end at the start of {new_id!r}; it was given "
                    "another end, which stays"
                )
            connection.execute("UPDATE records SET valid_to = NULL WHERE id = ?", (old_id,))
            connection.execute("UPDATE records SET supersedes = NULL WHERE id = ?", (new_id,))

    def succession(self, id: str) -> list[Record]:
        """Return the records that a record supersedes or that supersede it, with itself, oldest first.

        These are the values of one fact with their times of validity. Forgotten records are missing. The
        time grows with the bank, since no index leads to the newer records.

        Raises KeyError if no record has the id.
        """
        with self._store.reading() as connection:
            foreign = self._store.foreign
            records = {id: _read(connection, id, foreign)}
            waiting = [records[id]]
            while waiting:  # a file of someone else may have a circle
                record = waiting.pop()
                for row in connection.execute(
                    f"SELECT {COLUMNS} FROM records WHERE id = ? OR supersedes = ?",
                    (record.supersedes, record.id),
                ).fetchall():
                    neighbour = Record(**record_fields(row, foreign))
                    if neighbour.id not in records:
                        records[neighbour.id] = neighbour
                        waiting.append(neighbour)
        return sorted(records.values(), key=lambda record: record.valid_from or record.observed)

    asupersede = in_thread(supersede)
    aundo_supersede = in_thread(undo_supersede)
    asuccession = in_thread(succession)


def _read(connection: sqlite3.Connection, id: str, foreign: bool) -> Record:
    row = connection.execute(f"SELECT {COLUMNS} FROM records WHERE id = ?", (check_id("id", id),)).fetchone()
    if row is None:
        raise KeyError(f"id={id!r:.80}: no record has this id")
    return Record(**record_fields(row, foreign))
