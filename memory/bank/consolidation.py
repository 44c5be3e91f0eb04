"""Consolidation: what is new is held against what is like it, and somebody decides what becomes of both.

As in Mem0 (Chhikara et al. 2025, arXiv 2504.19413) a text is added, or updates or ends a record, or is
nothing new. Who decides is any callable, such as a language model (`agents/langchain/consolidation.py`); a
bank that is written to directly never asks. Nothing is overwritten: an update supersedes, a deletion ends a
validity. Every decision stays in the file, by ids and without texts, and can be undone.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, get_args

from scrubjay.memory.bank.bank import MemoryBank
from scrubjay.memory.bank.file.damage import Unreadable
from scrubjay.memory.bank.file.record import (
    Record,
    Time,
    check_count,
    split_namespace,
    to_datetime,
    to_seconds,
)
from scrubjay.memory.bank.write import Draft, check_memorable, encode_provenance

Action = Literal["add", "update", "delete", "none"]
_TABLES = (
    (
        """CREATE TABLE decisions (
            number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, moment REAL NOT NULL,
            considered TEXT NOT NULL, steps TEXT NOT NULL, refused TEXT NOT NULL, undone REAL)""",
    ),
)
_COLUMNS = "id, moment, considered, steps, refused, undone"
_LONGEST_REASON = 200
_MORE = 4  # hits looked at for one record of the very namespace


class Change(NamedTuple):
    """What is to be done about a new text."""

    action: Action
    record: int | None = None
    """Place, among the records shown, of the one that is updated or deleted."""
    text: str | None = None
    """Of an update, the new wording; None for the text itself."""


Decide = Callable[[str, Sequence[Record]], Sequence[Change]]
"""Is given a new text and the records nearest to it, and says what is to be done.

ValueError if it cannot; what that says stays in the file, so it had better hold nothing of the text.
"""


class Step(NamedTuple):
    """What was done."""

    action: Action
    wrote: str | None = None
    """Id of the record that was written."""
    ended: str | None = None
    """Id of the record that no longer holds."""
    before: float | None = None
    """Until when that held before."""
    end: float | None = None
    """Until when it has held since."""


@dataclass(frozen=True)
class Decision:
    """A decision as the bank keeps it."""

    id: str
    moment: datetime
    considered: tuple[str, ...]
    """Ids of the records that were shown, the nearest first."""
    steps: tuple[Step, ...]
    refused: str
    """Why the text was added in place of what had been decided; "" where it was done."""
    undone: datetime | None
    """When it was taken back."""


class Consolidation:
    """Writes to a bank by the decisions of `decide`, which sees the `k` nearest records.

    A decision that cannot be is refused, and the text added: of an unknown record, of one that has changed
    since, of one that is newer than the text, or of one that a tool must not change. What is reworded keeps
    what was said as provenance `said`. So nothing that is said is lost but what is decided to be nothing new,
    or only to end a record. Raises ValueError on k < 1.
    """

    def __init__(self, bank: MemoryBank, decide: Decide, k: int = 10) -> None:
        check_count("k", k, 1)
        self._bank, self._decide, self._k = bank, decide, k
        bank.store.add_tables("consolidation", _TABLES)

    def add(
        self,
        text: str,
        kind: str = "knowledge",
        namespace: Sequence[str] = (),
        importance: float | None = None,
        observed: Time | None = None,
        trust: str = "user",
        **provenance: Any,
    ) -> Decision:
        """Decide about a text, do it, and return what was decided. All is written, or nothing.

        Args:
            text: What was said.
            kind: Of the record, if one is written; only records of this kind are considered.
            namespace: Whose it is; only records of the very same are considered.
            importance: From 0 to 1.
            observed: When it was said; by default now.
            trust: Who worded it: user, agent or tool.
            provenance: Anything that JSON can hold.

        Raises:
            ValueError, TypeError: as `MemoryBank.add`; whatever else `decide` raises passes, and nothing is
                written.
        """
        id, bank = uuid.uuid4().hex, self._bank
        provenance = {**provenance, "decision": id}
        fields: dict[str, Any] = {"kind": kind, "namespace": namespace, "importance": importance}
        plain = bank.draft(text, **fields, observed=observed, trust=trust, merge=False, **provenance)
        near = self._near(plain)
        changes, refused = [Change("add")], ""
        try:
            changes = _checked(self._decide(text, near), near, plain)
        except ValueError as error:
            reason = str(error).encode("utf-8", "replace").decode()  # no file holds half a character
            refused = reason[:_LONGEST_REASON] or "it could not be decided"
        # Before the transaction, as others must not wait; the text itself, too, if another is quicker.
        plain = bank.embedded([plain])[0]
        plans = [self._planned(one, near, plain) for one in changes]
        with bank.store.writing() as connection:
            if any(_has_changed(connection, near, plan.step.ended) for plan in plans):
                plans, refused = [_Plan(Step("add"), plain)], "a record has changed since it was shown"
            steps = tuple(self._done(connection, plan, plain) for plan in plans)
            seen = tuple(one.id for one in near)
            decision = Decision(id, to_datetime(plain.created), seen, steps, refused, None)
            connection.execute(
                "INSERT INTO decisions (id, moment, considered, steps, refused) VALUES (?, ?, ?, ?, ?)",
                (id, plain.created, json.dumps(seen), json.dumps(steps), refused),
            )
        return decision

    def undo(self, id: str) -> Decision:
        """Take a decision back: what it wrote is forgotten, what it ended holds again as before.

        Raises ValueError if there is no such decision, it is undone, or a record of it has changed since.
        """
        bank = self._bank
        with bank.store.writing() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM decisions WHERE id = ?", (id,)).fetchall()
            if not rows:
                raise ValueError(f"there is no decision {id!r}; `decisions` names them")
            decision = _decision(rows[0])
            if decision.undone is not None:
                raise ValueError(f"decision {id!r} was undone already, at {decision.undone:%Y-%m-%d %H:%M}")
            for step in decision.steps:
                _check_untouched(connection, id, step)
            for step in decision.steps:
                if step.wrote is not None:
                    bank.forget(step.wrote)
                connection.execute("UPDATE records SET valid_to = ? WHERE id = ?", (step.before, step.ended))
            undone = datetime.now(UTC)
            connection.execute("UPDATE decisions SET undone = ? WHERE id = ?", (undone.timestamp(), id))
        bank.store.erase_traces()
        return replace(decision, undone=undone)

    def decisions(self, n: int = 10) -> list[Decision]:
        """Return the last `n` decisions, the newest last. Raises ValueError on n < 0."""
        check_count("n", n, 0)
        with self._bank.store.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM decisions ORDER BY number DESC LIMIT ?", (n,)
            ).fetchall()
            return [_decision(row) for row in reversed(rows)]

    def _near(self, draft: Draft) -> Sequence[Record]:
        """Return the nearest records of the same kind and namespace; what tools said only for what one says.

        So no page that was read can talk who decides into changing what a user said.
        """
        namespace = split_namespace(draft.namespace)
        trusts = ("tool",) if draft.trust == "tool" else ("user", "agent")
        found = self._bank.search(
            draft.text, _MORE * self._k, kinds=draft.kind, namespace=namespace, trusts=trusts
        )
        return [hit for hit in found if hit.namespace == namespace][: self._k]

    def _planned(self, change: Change, near: Sequence[Record], plain: Draft) -> _Plan:
        if change.action == "add":
            return _Plan(Step("add"), plain)
        if change.action == "none" or change.record is None:
            return _Plan(Step("none"), None)
        ended = near[change.record].id
        if change.action == "delete":
            return _Plan(Step("delete", ended=ended), None)
        if change.text is None:
            return _Plan(Step("update", ended=ended), plain._replace(supersedes=ended))
        trust = "tool" if plain.trust == "tool" else "agent"
        provenance = encode_provenance({**json.loads(plain.provenance), "said": plain.text})
        draft = plain._replace(text=change.text, trust=trust, provenance=provenance, supersedes=ended)
        draft = draft._replace(vector=None, fingerprint=None)
        return _Plan(Step("update", ended=ended), self._bank.embedded([draft])[0])

    def _done(self, connection: sqlite3.Connection, plan: _Plan, plain: Draft) -> Step:
        """Do a step and return it with what it has changed."""
        step, select = plan.step, "SELECT valid_to FROM records WHERE id = ?"
        if step.ended is not None:
            (before,) = connection.execute(select, (step.ended,)).fetchone()
            step = step._replace(before=before)
        if plan.draft is not None:
            step = step._replace(wrote=self._bank.write([plan.draft])[0])
        elif step.ended is not None:
            connection.execute(
                "UPDATE records SET valid_to = MIN(?1, COALESCE(valid_to, ?1)) WHERE id = ?2",
                (plain.observed, step.ended),
            )
        if step.ended is not None:
            (end,) = connection.execute(select, (step.ended,)).fetchone()
            step = step._replace(end=end)
        return step


class _Plan(NamedTuple):
    step: Step
    draft: Draft | None
    """What is to be written, with its embedding."""


def _checked(changes: Sequence[Change], near: Sequence[Record], plain: Draft) -> list[Change]:
    """Return the changes. Raises ValueError if they cannot be made, and on none."""
    touched = [one.record for one in changes if one.action in ("update", "delete")]
    if not changes:
        raise ValueError("nothing was decided")
    for change in changes:
        if change.action not in get_args(Action):
            raise ValueError("it names an action that there is none of")
        if change.text is not None:
            if not isinstance(change.text, str):
                raise ValueError("its wording is no text")
            check_memorable(change.text)
    for place in touched:
        if not isinstance(place, int) or not 0 <= place < len(near):
            raise ValueError("it names a record that was not shown")
        if near[place].observed > to_datetime(plain.observed):
            raise ValueError("it changes a record that is newer than the text")
    if len(set(touched)) < len(touched) or sum(one.action == "add" for one in changes) > 1:
        raise ValueError("two changes are of the same")
    return list(changes)


def _has_changed(connection: sqlite3.Connection, near: Sequence[Record], id: str | None) -> bool:
    """Return whether a record that was shown is gone, or holds until another moment."""
    if id is None:
        return False
    (shown,) = (one for one in near if one.id == id)
    row = connection.execute("SELECT valid_to FROM records WHERE id = ?", (id,)).fetchone()
    return row is None or (None if row[0] is None else to_datetime(row[0])) != shown.valid_to


def _check_untouched(connection: sqlite3.Connection, id: str, step: Step) -> None:
    """Raise ValueError if a record of a step is not as the step left it."""
    select = "SELECT valid_to, sayings FROM records WHERE id = ?"
    for record, left in ((step.wrote, (None, 1)), (step.ended, (step.end, None))):
        if record is None:
            continue
        row = connection.execute(select, (record,)).fetchone()
        if row is None or row[0] != left[0] or left[1] not in (None, row[1]):
            raise ValueError(
                f"decision {id!r} cannot be undone: its record {record!r} has changed since; undo what "
                "changed it first"
            )


def _decision(row: tuple) -> Decision:
    """Return a decision from a row of `_COLUMNS`. Raises Unreadable if it is none."""
    id, moment, considered, steps, refused, undone = row
    try:
        return Decision(
            _text(id),
            to_datetime(moment),
            tuple(map(_text, json.loads(considered))),
            tuple(_step(*one) for one in json.loads(steps)),
            _text(refused),
            None if undone is None else to_datetime(undone),
        )
    except (TypeError, ValueError, OverflowError, OSError, RecursionError) as error:
        raise Unreadable(f"a decision cannot be read: {error}") from error


def _step(action: Any, wrote: Any, ended: Any, before: Any, end: Any) -> Step:
    if action not in get_args(Action):
        raise ValueError(f"there is no {action!r:.40}")
    ids = [None if one is None else _text(one) for one in (wrote, ended)]
    moments = [None if one is None else to_seconds(one, "valid_to") for one in (before, end)]
    return Step(action, ids[0], ids[1], moments[0], moments[1])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value
