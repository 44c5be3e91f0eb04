"""Consolidation: compare a new text with similar records and decide how to change the memory.

As in Mem0 (Chhikara et al. 2025, arXiv 2504.19413), a text is added, updates a record, deletes a record, or
is discarded as known. The decision function is any callable, such as a language model
(`agents/langchain/consolidation.py`). Direct writes to a bank never call this function. Nothing is
overwritten: an update supersedes a record, and a deletion ends the validity of a record. The bank's file
stores every decision with the ids of its records, but without texts. Decisions can be undone.
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
from scrubjay.memory.bank.file.damage import UnreadableError
from scrubjay.memory.bank.record import (
    MAX_COUNT,
    Draft,
    Record,
    Time,
    check_count,
    check_id,
    check_memorable,
    encode_provenance,
    split_namespace,
    to_datetime,
    to_seconds,
)

Action = Literal["add", "update", "delete", "none"]
_COLUMNS = "id, moment, considered, steps, refused, undone"
_MAX_REFUSAL_LENGTH = 200
_SEARCH_FACTOR = 4  # hits to search per candidate, since hits of nested namespaces are dropped


class Change(NamedTuple):
    """Change to the bank that the decision function requests for a new text."""

    action: Action
    """Type of the change: add, update, delete or none."""
    record: int | None = None
    """Index of the record to update or delete, in the list of candidate records; None for other actions."""
    text: str | None = None
    """New wording of the updated record; None uses the new text itself."""


DecisionFunction = Callable[[str, Sequence[Record]], Sequence[Change]]
"""Function that maps a new text and its nearest records to a list of changes.

It raises ValueError if it cannot decide. The file stores the error's message, so the message should not quote
the text.
"""


class Step(NamedTuple):
    """Change that a decision applied to the bank."""

    action: Action
    written_id: str | None = None
    """Id of the new record."""
    ended_id: str | None = None
    """Id of the record whose validity ended."""
    old_valid_to: float | None = None
    """End of validity of record `ended_id` before the decision, in seconds since 1970; None for no end."""
    new_valid_to: float | None = None
    """End of validity of record `ended_id` after the decision, in seconds since 1970."""


@dataclass(frozen=True)
class Decision:
    """Stored decision about one new text, with the changes that it made to the bank."""

    id: str
    """Id of the decision, for `Consolidation.undo`."""
    moment: datetime
    """Time of the decision."""
    considered_ids: tuple[str, ...]
    """Ids of the candidate records, nearest first."""
    steps: tuple[Step, ...]
    """Changes to the bank, in order."""
    refusal: str
    """Reason why the requested changes were refused and the text was added; "" if none were refused."""
    undone_at: datetime | None
    """Time at which the decision was undone; None if it was not undone."""


class Consolidation:
    """Writer that consolidates texts into a bank.

    All changes for a text are refused if one of them targets a record that is not a candidate, has changed
    meanwhile, or is newer than the text. The text is then added as a new record. For the text of a tool, only
    records of tools are candidates. If `decide` rewords a text, the new record has the original text in the
    provenance field `said`. The actions "add" and "update" store the text, "none" and "delete" do not.

    Args:
        bank: Bank to write to.
        decide: Function that maps a text and its nearest records to a list of changes.
        k: Number of nearest records that `decide` gets.

    Raises:
        ValueError: If k < 1.
    """

    def __init__(self, bank: MemoryBank, decide: DecisionFunction, k: int = 10) -> None:
        self._bank, self._decide, self._k = bank, decide, check_count("k", k, 1)
        bank.store.add_tables("consolidation")

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
        """Decide about a text, apply the changes atomically, and return the decision.

        Args:
            text: New text.
            kind: Kind of the new record; only records of this kind are candidates.
            namespace: Owner of the new record; only records of exactly this namespace are candidates.
            importance: Number from 0 to 1.
            observed: Time of the statement; now by default.
            trust: Author of the text: user, agent or tool.
            provenance: JSON-serializable metadata.

        Raises:
            ValueError, TypeError: if a value cannot be stored. An exception of `decide` other than ValueError
                propagates, and nothing is written.
        """
        id, bank = uuid.uuid4().hex, self._bank
        provenance = {**provenance, "decision": id}
        fields: dict[str, Any] = {"kind": kind, "namespace": namespace, "importance": importance}
        draft = bank.draft(text, **fields, observed=observed, trust=trust, merge=False, **provenance)
        candidates = self._find_candidates(draft)
        changes, refusal = [Change("add")], ""
        try:
            changes = _check_changes(self._decide(text, candidates), candidates, draft)
        except ValueError as error:
            reason = str(error).encode("utf-8", "replace").decode()  # UTF-8 cannot encode lone surrogates
            refusal = reason[:_MAX_REFUSAL_LENGTH] or "the decision function gave no reason"
        # Embed before the transaction, so that other writers do not wait. The text itself is embedded, too:
        # it is added if another writer changes a candidate first.
        draft = bank.embed_drafts([draft])[0]
        planned_steps = [self._plan_step(one, candidates, draft) for one in changes]
        with bank.store.writing() as connection:
            if any(_has_changed(connection, candidates, step.ended_id) for step, _ in planned_steps):
                planned_steps = [(Step("add"), draft)]
                refusal = "a candidate record has changed meanwhile"
            steps = tuple(self._apply_step(connection, *one, draft.observed) for one in planned_steps)
            candidate_ids = tuple(one.id for one in candidates)
            decision = Decision(id, to_datetime(draft.created), candidate_ids, steps, refusal, None)
            connection.execute(
                "INSERT INTO decisions (id, moment, considered, steps, refused) VALUES (?, ?, ?, ?, ?)",
                (id, draft.created, json.dumps(candidate_ids), json.dumps(steps), refusal),
            )
        return decision

    def undo(self, id: str) -> Decision:
        """Undo a decision and return it.

        The records that the decision wrote are deleted. The records whose validity it ended get their old
        validity back.

        Raises:
            ValueError: If the id is unknown, the decision was undone already, or one of its records has
                changed since the decision.
        """
        bank = self._bank
        with bank.store.writing() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM decisions WHERE id = ?", (check_id("id", id),)
            ).fetchall()
            if not rows:
                raise ValueError(f"unknown decision {id!r}; list the ids with `decisions`")
            decision = _parse_decision(rows[0])
            if decision.undone_at is not None:
                raise ValueError(
                    f"decision {id!r} was undone already, at {decision.undone_at:%Y-%m-%d %H:%M}"
                )
            for step in decision.steps:
                _check_unchanged(connection, id, step)
            for step in decision.steps:
                if step.written_id is not None:
                    bank.forget(step.written_id)
                connection.execute(
                    "UPDATE records SET valid_to = ? WHERE id = ?", (step.old_valid_to, step.ended_id)
                )
            undone_at = datetime.now(UTC)
            connection.execute("UPDATE decisions SET undone = ? WHERE id = ?", (undone_at.timestamp(), id))
        bank.store.erase_traces()
        return replace(decision, undone_at=undone_at)

    def decisions(self, n: int = 10) -> list[Decision]:
        """Return the last `n` decisions, newest last.

        Raises:
            ValueError: If n < 0.
        """
        n = check_count("n", n, 0)
        with self._bank.store.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM decisions ORDER BY number DESC LIMIT ?", (n,)
            ).fetchall()
            return [_parse_decision(row) for row in reversed(rows)]

    def _find_candidates(self, draft: Draft) -> Sequence[Record]:
        """Return the nearest records with the kind and namespace of the draft.

        For a tool's text these are records of tools, for any other text records of users and agents. A web
        page can therefore not persuade the decision function to change a user's statement.
        """
        namespace = split_namespace(draft.namespace)
        trusts = ("tool",) if draft.trust == "tool" else ("user", "agent")
        hits = self._bank.search(
            draft.text,
            min(_SEARCH_FACTOR * self._k, MAX_COUNT),
            kinds=draft.kind,
            namespace=namespace,
            trusts=trusts,
            changes=False,
        )
        return [hit for hit in hits if hit.namespace == namespace][: self._k]

    def _plan_step(
        self, change: Change, candidates: Sequence[Record], draft: Draft
    ) -> tuple[Step, Draft | None]:
        """Return the step of a change, and the embedded draft that it writes; None if it writes nothing."""
        if change.action == "add":
            return Step("add"), draft
        if change.action == "none" or change.record is None:
            return Step("none"), None
        step = Step(change.action, ended_id=candidates[change.record].id)
        if change.action == "delete":
            return step, None
        if change.text is None:
            return step, draft._replace(supersedes=step.ended_id)
        trust = "tool" if draft.trust == "tool" else "agent"
        provenance = encode_provenance({**json.loads(draft.provenance), "said": draft.text})
        new_draft = draft._replace(
            text=change.text, trust=trust, provenance=provenance, supersedes=step.ended_id
        )
        new_draft = new_draft._replace(vector=None, fingerprint=None)
        return step, self._bank.embed_drafts([new_draft])[0]

    def _apply_step(
        self, connection: sqlite3.Connection, step: Step, draft: Draft | None, observed: float
    ) -> Step:
        """Write a planned change to the bank. Return it with the ids and validity times of its records."""
        select = "SELECT valid_to FROM records WHERE id = ?"
        if step.ended_id is not None:
            (old_valid_to,) = connection.execute(select, (step.ended_id,)).fetchone()
            step = step._replace(old_valid_to=old_valid_to)
        if draft is not None:
            step = step._replace(written_id=self._bank.write([draft])[0])
        elif step.ended_id is not None:
            connection.execute(
                "UPDATE records SET valid_to = MIN(?1, COALESCE(valid_to, ?1)) WHERE id = ?2",
                (observed, step.ended_id),
            )
        if step.ended_id is not None:
            (new_valid_to,) = connection.execute(select, (step.ended_id,)).fetchone()
            step = step._replace(new_valid_to=new_valid_to)
        return step


def _check_changes(changes: Sequence[Change], candidates: Sequence[Record], draft: Draft) -> list[Change]:
    """Return the requested changes as a list. Raises ValueError if there are none or one is invalid."""
    indices = [one.record for one in changes if one.action in ("update", "delete")]
    if not changes:
        raise ValueError("the decision function returned no changes; it must return at least one Change")
    for change in changes:
        if change.action not in get_args(Action):
            raise ValueError("a change has an unknown action; choose from add, update, delete, none")
        if change.text is not None:
            if not isinstance(change.text, str):
                raise ValueError(f"a change has text={change.text!r}; expected a string")
            check_memorable(change.text)
    for index in indices:
        if not isinstance(index, int) or not 0 <= index < len(candidates):
            raise ValueError("a change targets a record that is not a candidate")
        if candidates[index].observed > to_datetime(draft.observed):
            raise ValueError("a change targets a record that is newer than the text")
    if len(set(indices)) < len(indices) or sum(one.action == "add" for one in changes) > 1:
        raise ValueError("two changes target the same record, or two changes add the text; keep one of them")
    return list(changes)


def _has_changed(connection: sqlite3.Connection, candidates: Sequence[Record], id: str | None) -> bool:
    """Return True if the candidate record `id` was deleted or the end of its validity has changed."""
    if id is None:
        return False
    (candidate,) = (one for one in candidates if one.id == id)
    row = connection.execute("SELECT valid_to FROM records WHERE id = ?", (id,)).fetchone()
    return row is None or (None if row[0] is None else to_datetime(row[0])) != candidate.valid_to


def _check_unchanged(connection: sqlite3.Connection, id: str, step: Step) -> None:
    """Raise ValueError if a record that `step` wrote or ended has changed since the step was applied."""
    select = "SELECT valid_to, sayings FROM records WHERE id = ?"
    for record, expected in ((step.written_id, (None, 1)), (step.ended_id, (step.new_valid_to, None))):
        if record is None:
            continue
        row = connection.execute(select, (record,)).fetchone()
        if row is None or row[0] != expected[0] or expected[1] not in (None, row[1]):
            raise ValueError(
                f"decision {id!r} cannot be undone: its record {record!r} has changed since the decision; "
                "undo the later change first"
            )


def _parse_decision(row: tuple) -> Decision:
    """Build a Decision from the database columns `_COLUMNS`. Raises UnreadableError on an invalid value."""
    id, moment, considered_ids, steps, refusal, undone_at = row
    try:
        return Decision(
            _check_string(id),
            to_datetime(moment),
            tuple(map(_check_string, json.loads(considered_ids))),
            tuple(_parse_step(*one) for one in json.loads(steps)),
            _check_string(refusal),
            None if undone_at is None else to_datetime(undone_at),
        )
    except (TypeError, ValueError, OverflowError, OSError, RecursionError) as error:
        raise UnreadableError(f"a decision cannot be read: {error}") from error


def _parse_step(action: Any, written_id: Any, ended_id: Any, old_valid_to: Any, new_valid_to: Any) -> Step:
    if action not in get_args(Action):
        raise ValueError(f"unknown action {action!r:.40}")
    ids = [None if one is None else _check_string(one) for one in (written_id, ended_id)]
    moments = [None if one is None else to_seconds(one, "valid_to") for one in (old_valid_to, new_valid_to)]
    return Step(action, ids[0], ids[1], moments[0], moments[1])


def _check_string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not a string")
    return value
