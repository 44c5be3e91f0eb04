"""Dates in a question: phrases for the keyword index, and the days whose records are meant.

Day, month and year as words by themselves would find all that names any date: a record of another day of
that month shares two of them. So a day and its month are one phrase, and with their year one more, since
nothing is as sure a sign as the same date. And what was observed then is meant, though it does not say so,
unless the question names the date as a bound ("as of", "until").

A date has digits and an English month, or is written 2025-03-23 or 2025年3月23日; each finds the others,
but for 2025-03-23, which is found by dates with a year alone.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import NamedTuple

from scrubjay.memory.bank.search.words import index_text

_MONTHS = (
    ("january", "jan"), ("february", "feb"), ("march", "mar"), ("april", "apr"), ("may",), ("june", "jun"),
    ("july", "jul"), ("august", "aug"), ("september", "sep", "sept"), ("october", "oct"), ("november", "nov"),
    ("december", "dec"),
)  # fmt: skip
_MONTH_OF = {name: month for month, names in enumerate(_MONTHS, 1) for name in names}
_MONTH = rf"(?P<month>{'|'.join(sorted(_MONTH_OF, key=len, reverse=True))})\b\.?"
_DAY = r"\b(?P<day>\d{1,2})(?P<ordinal>st|nd|rd|th)?\b"
_YEAR = r"\b(?P<year>\d{4})\b"
_PATTERNS = [
    # ASCII: else the Turkish dotless i is an i, too.
    re.compile(pattern, re.IGNORECASE | re.ASCII)
    for pattern in (
        rf"{_DAY}(?: of)? {_MONTH}(?:,? {_YEAR})?",
        rf"\b{_MONTH} {_DAY}(?:,? {_YEAR})?",
        rf"\b{_MONTH},? {_YEAR}",
        r"\b(?P<year>\d{4})(?P<sign>[-/])(?P<month>\d{1,2})(?P=sign)(?P<day>\d{1,2})(?!\d)",
        r"(?:(?P<year>\d{4}) ?年 ?)?(?P<month>\d{1,2}) ?月 ?(?P<day>\d{1,2}) ?[日号號]",
        r"(?P<year>\d{4}) ?年 ?(?P<month>\d{1,2}) ?月",
    )
]
_BOUND_BEFORE = re.compile(
    r"(?:\b(?:as of|until|till?|up to|before|after|since|by)(?: the)?|截至|截止|直到|自从|自從)"
    r" ?(?:到|于)? ?$",
    re.IGNORECASE,
)
_BOUND_AFTER = re.compile(r" ?(?:之前|以前|之后|以后|之後|以後|以来|以來|为止|為止|前|[后後](?![来來]))")
_BEFORE_MONTHS = re.compile(
    r"\b(?:on|in|of|from|to|since|by|until|till?|before|after|this|last|next|the) $", re.IGNORECASE
)
_VERBS = ("may", "march", "mar")
_FIRST_MOMENT, _LAST_MOMENT = (datetime(year, 1, 1, tzinfo=UTC).timestamp() for year in (2, 9999))
_MOST_PHRASES = 16
_LONGEST_BEFORE = 32  # more letters than those of any phrase before a date


class Day(NamedTuple):
    """A day, or a month without one; of any year where none is named."""

    year: int | None
    month: int
    day: int | None

    def spans(self, first: float, last: float, zone: tzinfo) -> Iterator[tuple[float, float]]:
        """Yield begin and end of each such day or month between two moments, in seconds since 1970."""
        years = range(_year(first, zone), _year(last, zone) + 1) if self.year is None else (self.year,)
        for year in years:
            # 29 February, or a year beyond all calendars.
            with contextlib.suppress(ValueError, OverflowError):
                begin = datetime(year, self.month, self.day or 1, tzinfo=zone)
                if self.day is None:
                    end = datetime(year + self.month // 12, self.month % 12 + 1, 1, tzinfo=zone)
                else:
                    end = begin + timedelta(days=1)
                yield begin.timestamp(), end.timestamp()


class Dates(NamedTuple):
    """What a question says about time."""

    phrases: list[str]
    """Expressions of FTS5."""
    days: list[Day]
    """Whose records are meant."""
    rest: str
    """The question without its dates."""


def read_dates(query: str) -> Dates:
    """Return the dates that a question names, the first eight or so from the left, and each day once."""
    phrases: list[str] = []
    days: list[Day] = []
    rest, kept = "", 0
    # Each pattern's next match, looked for again only when it is passed: the query is read once by each.
    coming = {pattern: pattern.search(query) for pattern in _PATTERNS}
    while len(phrases) < _MOST_PHRASES and (found := [*filter(None, coming.values())]):
        match = min(found, key=re.Match.start)
        day, begin = _day(match), match.start() + 1
        if day is not None:
            phrases += _phrases(*day)
            if not (_stands_before(match, _BOUND_BEFORE) or _BOUND_AFTER.match(query, match.end())):
                days.append(day)
            rest += query[kept : match.start()] + " "
            kept = begin = match.end()
        for pattern, one in coming.items():
            if one is not None and one.start() < begin:
                coming[pattern] = pattern.search(query, begin)
    return Dates(list(dict.fromkeys(phrases)), list(dict.fromkeys(days)), rest + query[kept:])


def _day(match: re.Match[str]) -> Day | None:
    """Return what is written, None if it is no date."""
    told = match.groupdict()
    name = told["month"].lower()
    month = _MONTH_OF.get(name) or int(name)
    day, year = (int(told[part]) if told.get(part) else None for part in ("day", "year"))
    if not 1 <= month <= 12 or not (day is None or 1 <= day <= 31):
        return None
    surely = told["month"] not in _VERBS or year is not None or told.get("ordinal")
    if not surely and not _stands_before(match, _BEFORE_MONTHS):
        return None  # "we may 3 times"
    return Day(year, month, day)


def _stands_before(match: re.Match[str], pattern: re.Pattern[str]) -> bool:
    """Return whether a pattern, which ends in `$`, ends where `match` begins."""
    start = match.start()
    return pattern.search(match.string, max(0, start - _LONGEST_BEFORE), start) is not None


def _year(seconds: float, zone: tzinfo) -> int:
    # A file may hold moments that no calendar has.
    return datetime.fromtimestamp(min(max(seconds, _FIRST_MOMENT), _LAST_MOMENT), zone).year


def _phrases(year: int | None, month: int, day: int | None) -> Iterator[str]:
    names = _MONTHS[month - 1]
    if day is None:
        yield _any_of([*(f"{name} {year}" for name in names), f"{year}年{month}"])
        return
    english = [
        spelling
        for name in names
        for number in dict.fromkeys((str(day), f"{day:02}", _ordinal(day)))
        for spelling in (f"{number} {name}", f"{name} {number}")
    ] + [f"{_ordinal(day)} of {name}" for name in names]
    chinese = dict.fromkeys((f"{month}月{day}", f"{month:02}月{day:02}"))
    yield _any_of([*english, *chinese])
    if year is not None:
        dated = [f"{spelling} {year}" for spelling in english]
        digits = dict.fromkeys((f"{year} {month:02} {day:02}", f"{year} {month} {day}"))
        yield _any_of([*dated, *(f"{year}年{spelling}" for spelling in chinese), *digits])


def _ordinal(day: int) -> str:
    return f"{day}{'th' if 10 < day < 14 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"


def _any_of(spellings: list[str]) -> str:
    quoted = (f'"{" ".join(index_text(spelling).split())}"' for spelling in spellings)
    return f"({' OR '.join(quoted)})"
