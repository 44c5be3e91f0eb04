"""Candidate records of a search, and the records before and after each in its conversation or document."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Float, Int

from scrubjay.memory.bank.file.damage import UnreadableError
from scrubjay.memory.bank.file.store import select
from scrubjay.memory.bank.search.filter import Filter

_COLUMNS = "number, chunk, place, renewed, importance"
_MAX_PAIRS = 200  # pairs per query; older SQLite versions accept at most 999 values

Row = tuple[int, int, int, float, float]
"""Record number, chunk, position in the chunk, time of the latest statement, importance."""


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

    def before(self, values: Float[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
        """Return, for each candidate, the value of the previous record in the same chunk.

        The value is 0 if the previous record is not a candidate.
        """
        return np.concatenate([[0.0], values[:-1] * self.adjoining])[: len(values)]

    def after(self, values: Float[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
        """Return, for each candidate, the value of the next record in the same chunk.

        The value is 0 if the next record is not a candidate.
        """
        return np.concatenate([values[1:] * self.adjoining, [0.0]])[: len(values)]


def select_rows(connection: sqlite3.Connection, numbers: Sequence[int], filter: Filter) -> list[Row]:
    """Return the rows that the filter accepts, in the order of `numbers`."""
    rows = {row[0]: row for row in select(connection, _COLUMNS, numbers, *filter.condition())}
    return [rows[number] for number in numbers if number in rows]


def neighbours(
    connection: sqlite3.Connection, rows: Iterable[Row], exclude: Iterable[Row], filter: Filter
) -> list[Row]:
    """Return the rows right before and after `rows` in the same chunks, if `filter` accepts them.

    The rows of `exclude` are left out. Raises UnreadableError if a position in a chunk is not a number.
    """
    try:
        pairs = {(chunk, place + step) for _, chunk, place, *_ in rows for step in (-1, 1)}
        pairs = list(pairs.difference((chunk, place) for _, chunk, place, *_ in exclude))
    except TypeError as error:
        raise UnreadableError(
            f"the table `records` has a position in a chunk that is not a number: {error}"
        ) from error
    condition, values = filter.condition()
    result: list[Row] = []
    for first in range(0, len(pairs), _MAX_PAIRS):
        batch = pairs[first : first + _MAX_PAIRS]
        marks = ", ".join(["(?, ?)"] * len(batch))
        result += connection.execute(
            f"SELECT {_COLUMNS} FROM records WHERE (chunk, place) IN (VALUES {marks}) AND {condition}",
            [*itertools.chain.from_iterable(batch), *values],
        )
    return result
