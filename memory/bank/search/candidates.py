"""Candidate records of a search: filters, and the records before and after a candidate in its conversation.

A filter is an SQL condition, and names in the field `SCOPE` of the index of words.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Float, Int

from scrubjay.memory.bank.file.damage import UnreadableError
from scrubjay.memory.bank.file.store import select
from scrubjay.memory.bank.record import check_text

Scalar = str | float | bool | None
"""Value of a field of the provenance that a filter compares."""
_JSON_TYPES = {
    str: ("text", " AND field.value = ?"),
    int: ("integer real", " AND field.value = ?"),
    float: ("integer real", " AND field.value = ?"),
    bool: ("", ""),
    type(None): ("null", ""),
}
"""Types of a value in SQLite's JSON, and the condition on the value."""


@dataclass(frozen=True)
class Filter:
    """Filter of the records that a search may return."""

    at: float | None
    """Time at which records must be valid, in seconds since 1970; None accepts all times."""
    kinds: tuple[str, ...] | None
    """Kinds of record that the filter accepts; None accepts all kinds."""
    namespace: str | None
    """Accepted namespace, a string from `join_namespace`, with all namespaces below it; None accepts all."""
    trusts: tuple[str, ...] | None
    """Authors whose records the filter accepts; None accepts all authors."""
    needs_observation: bool = False
    """Accept a record without a start of validity only if it was observed by the time `at`."""
    where: tuple[tuple[str, Scalar], ...] = ()
    """Fields of the provenance with their values."""
    since: float | None = None
    """Earliest time of observation, in seconds since 1970."""
    until: float | None = None
    """Time before which a record was observed, in seconds since 1970."""

    def condition(self) -> tuple[str, list[object]]:
        """Return the SQL condition and the values of its placeholders."""
        has_started = "(valid_from IS NULL OR valid_from <= ?)"
        if self.needs_observation:
            has_started = "COALESCE(valid_from, observed) <= ?"
        parts: list[str] = ["1"]
        values: list[object] = []
        if self.at is not None:
            parts = [has_started, "(valid_to IS NULL OR valid_to > ?)"]
            values += [self.at, self.at]
        for column, choices in (("kind", self.kinds), ("trust", self.trusts)):
            if choices is not None:
                parts.append(f"{column} IN ({', '.join('?' * len(choices))})")
                values += choices
        if self.namespace:
            parts.append("namespace >= ? AND namespace < ?")
            values += [self.namespace, self.namespace[:-1] + "\x20"]
        for comparison, time in ((">=", self.since), ("<", self.until)):
            if time is not None:
                parts.append(f"observed {comparison} ?")
                values.append(time)
        for name, value in self.where:
            # A path such as '$.name' would give some names another meaning.
            types, equals = _JSON_TYPES[type(value)]
            if isinstance(value, bool):
                types = "true" if value else "false"
            parts.append(
                f"EXISTS (SELECT 1 FROM json_each(provenance) AS field WHERE field.key = ? "
                f"AND field.type IN ({', '.join(repr(one) for one in types.split())}){equals})"
            )
            values += [name, value] if equals else [name]
        return " AND ".join(parts), values

    def scopes(self) -> list[tuple[str, ...]]:
        """Return the names of the accepted kinds, and of the namespace, where the filter restricts them.

        An accepted record has one name of each tuple.
        """
        kinds = [] if self.kinds is None else [self.kinds]
        return [*kinds, (self.namespace,)] if self.namespace else kinds

    def allows(self, namespace: str, kind: str) -> bool:
        """Return True if records of this namespace and kind are accepted."""
        return (self.kinds is None or kind in self.kinds) and namespace.startswith(self.namespace or "")


def check_where(where: Mapping[str, Any] | None) -> tuple[tuple[str, Scalar], ...]:
    """Return the fields of a filter with their values.

    Raises TypeError or ValueError unless they are names with strings, numbers, booleans or None.
    """
    if where is None:
        return ()
    if not isinstance(where, Mapping):
        raise TypeError(f"where={where!r:.80}: pass a mapping such as {{'source': 'manual.md'}}")
    if not where:
        raise ValueError("where={}: name a field of the provenance, or omit the argument")
    for name, value in where.items():
        if not isinstance(name, str) or type(value) not in _JSON_TYPES:
            raise TypeError(
                f"where={{{name!r:.80}: {value!r:.80}}}: a field has a name, and a string, a number, a "
                "boolean or None as its value"
            )
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"where={{{name!r:.80}: {value}}}: pass an integer of at most 64 bits")
        for part in (name, value):
            if isinstance(part, str):
                check_text("where", part)
    return tuple(where.items())


_CONVERSATION = "kind = 'conversation' AND chunk > 0"
_COLUMNS = f"number, CASE WHEN {_CONVERSATION} THEN chunk ELSE -number END, place, renewed, importance"
_MAX_PAIRS = 200  # pairs per query; older SQLite versions accept at most 999 values

Row = tuple[int, int, int, float, float]
"""Record number, conversation, position in it, time of the latest statement, importance.

The conversation is a chunk. A passage of a document, and a record of another kind, has a negative number of
its own instead.
"""


class Candidates(NamedTuple):
    """Candidate records, sorted by chunk and position."""

    numbers: Int[np.ndarray, "R"]
    adjoining: Float[np.ndarray, "R-1"]
    """1 if the next candidate is the next record of the same chunk, else 0."""
    renewed: Float[np.ndarray, "R"]
    importance: Float[np.ndarray, "R"]

    @classmethod
    def from_rows(cls, rows: Iterable[Row]) -> Self:
        """Build candidates from database rows, each record once. Raises UnreadableError on an invalid row."""
        try:
            unique_rows = {row[0]: row for row in rows}.values()
            table = np.fromiter(itertools.chain.from_iterable(unique_rows), dtype=np.float64).reshape(-1, 5)
        except (TypeError, ValueError) as error:
            # A column of a damaged or manipulated SQLite file may hold any type.
            raise UnreadableError(
                f"a record's position, time or importance is not a number: {error}"
            ) from error
        table = table[np.lexsort((table[:, 2], table[:, 1]))]
        numbers, chunks, places, renewed, importance = table.T
        follows = (chunks[1:] == chunks[:-1]) & (places[1:] == places[:-1] + 1)
        return cls(numbers.astype(np.int64), follows.astype(np.float64), renewed, importance)

    def neighbour_values(self, values: Float[np.ndarray, "R"]) -> Float[np.ndarray, "2 R"]:
        """Return, for each candidate, the values of the previous and the next record in the same chunk.

        The value is 0 if the record is not a candidate.
        """
        neighbours = np.zeros((2, len(values)))
        neighbours[0, 1:] = values[:-1] * self.adjoining
        neighbours[1, :-1] = values[1:] * self.adjoining
        return neighbours


def select_rows(connection: sqlite3.Connection, numbers: Sequence[int], filter: Filter) -> list[Row]:
    """Return the rows that the filter accepts, in the order of `numbers`."""
    rows = {row[0]: row for row in select(connection, _COLUMNS, numbers, *filter.condition())}
    return [rows[number] for number in numbers if number in rows]


def select_enough(
    connection: sqlite3.Connection, best: Callable[[int], list[int]], filter: Filter, count: int
) -> list[Row]:
    """Return the rows of at least the `count` best records that the filter accepts, if there are as many.

    `best(depth)` returns the numbers of the `depth` best records, or of all if there are fewer. An index
    includes expired records: the search goes deeper until enough valid records remain.
    """
    depth = count
    while True:
        numbers = best(depth)
        rows = select_rows(connection, numbers, filter)
        if len(rows) >= count or len(numbers) < depth:
            return rows
        depth *= 4


def neighbours(
    connection: sqlite3.Connection, rows: Sequence[Row], exclude: Iterable[Row], filter: Filter
) -> list[Row]:
    """Return the rows right before and after `rows` in the same conversations, if `filter` accepts them.

    The rows of `exclude` are left out. Raises UnreadableError if a position in a chunk is not a number.
    """
    try:
        rows = [row for row in rows if row[1] > 0]
        pairs = {(chunk, place + step) for _, chunk, place, *_ in rows for step in (-1, 1)}
        pairs = pairs.difference((chunk, place) for _, chunk, place, *_ in exclude)
    except TypeError as error:
        raise UnreadableError(
            f"the table `records` has a position in a chunk that is not a number: {error}"
        ) from error
    # Most neighbours have the previous or the next number, and a look-up by number is much cheaper.
    numbers = {number + step for number, *_ in rows for step in (-1, 1)}
    result = [row for row in select_rows(connection, sorted(numbers), filter) if row[1:3] in pairs]
    pairs = list(pairs.difference(row[1:3] for row in result))
    condition, values = filter.condition()
    for first in range(0, len(pairs), _MAX_PAIRS):
        batch = pairs[first : first + _MAX_PAIRS]
        marks = ", ".join(["(?, ?)"] * len(batch))
        result += connection.execute(
            f"SELECT {_COLUMNS} FROM records WHERE (chunk, place) IN (VALUES {marks}) "
            f"AND {_CONVERSATION} AND {condition}",
            [*itertools.chain.from_iterable(batch), *values],
        )
    return result
