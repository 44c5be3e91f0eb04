"""Dates in a question: phrases for the keyword index, and the days whose records are meant.

Day, month and year as words by themselves would find all that names any date: a record of another day of that month
shares two of them. So a day and its month are one phrase, in any spelling, and with their year one more, since nothing
is as sure a sign as the same date. And what was observed then is meant, though it does not say so, unless the question
names the date as a bound ("as of", "until").
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from scrubjay.memory.bank_words import index_text

_MONTHS = (
    ("january", "jan"), ("february", "feb"), ("march", "mar"), ("april", "apr"), ("may",), ("june", "jun"),
    ("july", "jul"), ("august", "aug"), ("september", "sep", "sept"), ("october", "oct"), ("november", "nov"),
    ("december", "dec"),
)  # fmt: skip
_MONTH_OF = {name: month for month, names in enumerate(_MONTHS, 1) for name in names}
_MONTH = rf"(?P<month>{'|'.join(sorted(_MONTH_OF, key=len, reverse=True))})\b\.?"
_DAY = r"\b(?P<day>\d{1,2})(?:st|nd|rd|th)?\b"
_YEAR = r"\b(?P<year>\d{4})\b"
_PATTERNS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_DAY}(?: of)? {_MONTH}(?:,? {_YEAR})?",
        rf"\b{_MONTH} {_DAY}(?:,? {_YEAR})?",
        rf"\b{_MONTH},? {_YEAR}",
        rf"{_YEAR}-(?P<month>\d\d)-(?P<day>\d\d)\b",
        r"(?:(?P<year>\d{4}) ?年 ?)?(?P<month>\d{1,2}) ?月 ?(?P<day>\d{1,2}) ?[日号號]",
        r"(?P<year>\d{4}) ?年 ?(?P<month>\d{1,2}) ?月",
    )
]
_BOUND = re.compile(
    r"(?:\b(?:as of|until|till?|up to|before|after|since|by)(?: the)?|截至|截止|直到) ?(?:到|于)? ?$",
    re.IGNORECASE,
)


class Day(NamedTuple):
    """A day, or a month without one; of any year where none is named."""

    year: int | None
    month: int
    day: int | None

    def spans(self, first: float, last: float) -> Iterator[tuple[float, float]]:
        """Yield begin and end in seconds since 1970 (UTC) of each such day or month between two moments."""
        years = range(datetime.fromtimestamp(first, UTC).year, datetime.fromtimestamp(last, UTC).year + 1)
        for year in years if self.year is None else (self.year,):
            with contextlib.suppress(ValueError):  # 29 February, or a year beyond all calendars
                begin = datetime(year, self.month, self.day or 1, tzinfo=UTC)
                if self.day is None:
                    end = datetime(year + self.month // 12, self.month % 12 + 1, 1, tzinfo=UTC).timestamp()
                else:
                    end = begin.timestamp() + 86400
                yield begin.timestamp(), end


class Dates(NamedTuple):
    """What a question says about time."""

    phrases: list[str]
    """Expressions of FTS5."""
    days: list[Day]
    """Whose records are meant."""
    rest: str
    """The question without its dates."""


def read_dates(query: str) -> Dates:
    """Return the dates that a question names: in English, in Chinese or as 2025-03-23."""
    phrases: list[str] = []
    days: list[Day] = []

    def take(match: re.Match[str]) -> str:
        told = match.groupdict()
        month = _MONTH_OF.get(told["month"].lower()) or int(told["month"])
        day, year = (int(told[name]) if told.get(name) else None for name in ("day", "year"))
        if not (1 <= month <= 12 and (day is None or 1 <= day <= 31)):
            return match[0]
        phrases.extend(_phrases(month, day, year))
        if not _BOUND.search(match.string[: match.start()]):
            days.append(Day(year, month, day))
        return " "

    for pattern in _PATTERNS:
        query = pattern.sub(take, query)
    return Dates(phrases, days, query)


def _phrases(month: int, day: int | None, year: int | None) -> Iterator[str]:
    names = _MONTHS[month - 1]
    if day is None:
        yield _any_of([*(f"{name} {year}" for name in names), f"{year}年{month}"])
        return
    english = [
        spelling
        for name in names
        for number in (str(day), _ordinal(day))
        for spelling in (f"{number} {name}", f"{name} {number}")
    ] + [f"{_ordinal(day)} of {name}" for name in names]
    yield _any_of([*english, f"{month}月{day}"])
    if year is not None:
        dated = [f"{spelling} {year}" for spelling in english]
        yield _any_of([*dated, f"{year}年{month}月{day}", f"{year} {month:02} {day:02}"])


def _ordinal(day: int) -> str:
    return f"{day}{'th' if 10 < day < 14 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"


def _any_of(spellings: list[str]) -> str:
    quoted = (f'"{" ".join(index_text(spelling).split())}"' for spelling in spellings)
    return f"({' OR '.join(quoted)})"
