"""Records that a search may return, with those that stand before and after them in their chunk."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Float, Int

from scrubjay.memory.bank.file.damage import Unreadable
from scrubjay.memory.bank.file.store import select
from scrubjay.memory.bank.search.filter import Filter

_COLUMNS = "number, chunk, place, renewed, importance"
_AT_ONCE = 200  # pairs; older SQLites take at most 999 values

Row = tuple[int, int, int, float, float]
"""A record's number, chunk, place there, when it was last said, importance."""


class Candidates(NamedTuple):
    """Records by chunk, in order."""

    numbers: Int[np.ndarray, "R"]
    adjoining: Float[np.ndarray, "R-1"]
    """1 where a record and the one after it follow each other in a chunk, else 0."""
    renewed: Float[np.ndarray, "R"]
    importance: Float[np.ndarray, "R"]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Self:
        """Return the candidates that rows tell of, each once. Raises Unreadable on what is no row."""
        try:
            once = {row[0]: row for row in rows}.values()
            table = np.fromiter(itertools.chain.from_iterable(once), dtype=np.float64).reshape(-1, 5)
        except (TypeError, ValueError) as error:
            # SQLite lets a column of a damaged or foreign file hold anything.
            raise Unreadable(f"a record's place, time or importance is no number: {error}") from error
        table = table[np.lexsort((table[:, 2], table[:, 1]))]
        numbers, chunks, places, renewed, importance = table.T
        follows = (chunks[1:] == chunks[:-1]) & (places[1:] == places[:-1] + 1)
        return cls(numbers.astype(np.int64), follows.astype(np.float64), renewed, importance)

    def before(self, values: Float[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
        """Return of each record the value of the one before it, 0 if that is no candidate."""
        return np.concatenate([[0.0], values[:-1] * self.adjoining])[: len(values)]

    def after(self, values: Float[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
        """Return of each record the value of the one after it, 0 if that is no candidate."""
        return np.concatenate([values[1:] * self.adjoining, [0.0]])[: len(values)]


def held(connection: sqlite3.Connection, numbers: Sequence[int], filter: Filter) -> list[Row]:
    """Return the rows of those that the filter lets through, in the order of `numbers`."""
    rows = {row[0]: row for row in select(connection, _COLUMNS, numbers, *filter.condition())}
    return [rows[number] for number in numbers if number in rows]


def neighbours(
    connection: sqlite3.Connection, rows: Iterable[Row], known: Iterable[Row], filter: Filter
) -> list[Row]:
    """Return the rows right before and after others in their chunks, if the filter lets them through.

    Not those that are `known`. Raises Unreadable on what is no place.
    """
    try:
        pairs = {(chunk, place + step) for _, chunk, place, *_ in rows for step in (-1, 1)}
        pairs = list(pairs.difference((chunk, place) for _, chunk, place, *_ in known))
    except TypeError as error:
        raise Unreadable(f"a record's place is no number: {error}") from error
    condition, values = filter.condition()
    found: list[Row] = []
    for first in range(0, len(pairs), _AT_ONCE):
        some = pairs[first : first + _AT_ONCE]
        marks = ", ".join(["(?, ?)"] * len(some))
        found += connection.execute(
            f"SELECT {_COLUMNS} FROM records WHERE (chunk, place) IN (VALUES {marks}) AND {condition}",
            [*itertools.chain.from_iterable(some), *values],
        )
    return found
