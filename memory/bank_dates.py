"""Dates in a question, as the keyword index sees them: one phrase each.

Day, month and year as words by themselves would find all that names any date: a record of another day of that month
shares two of them. A day and its month are a phrase, in either order; with its year it is one more, since nothing is
as sure a sign as the same date.
"""

from __future__ import annotations

import re

from scrubjay.memory.bank_words import index_text

_MONTHS = [
    ("january", "jan"), ("february", "feb"), ("march", "mar"), ("april", "apr"), ("may",), ("june", "jun"),
    ("july", "jul"), ("august", "aug"), ("september", "sep", "sept"), ("october", "oct"), ("november", "nov"),
    ("december", "dec"),
]  # fmt: skip
_SPELLINGS = {name: names for names in _MONTHS for name in names}
_MONTH = "|".join(sorted(_SPELLINGS, key=len, reverse=True))
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?:,? ?(\d{4}))?"
_DAY_FIRST = re.compile(rf"\b{_DAY}(?: of)? ({_MONTH})\b\.?{_YEAR}", re.IGNORECASE)
_MONTH_FIRST = re.compile(rf"\b({_MONTH})\.? {_DAY}\b{_YEAR}", re.IGNORECASE)
_MONTH_ALONE = re.compile(rf"\b({_MONTH})\.?,? (\d{{4}})\b", re.IGNORECASE)
_CHINESE = re.compile(r"(?:(\d{4}) ?年 ?)?(\d{1,2} ?月 ?\d{1,2}) ?[日号號]")


def take_dates(query: str) -> tuple[list[str], str]:
    """Return the dates of a query as expressions of FTS5, and what is left of it. Months are English or Chinese."""
    found: list[str] = []

    def take(day: str, month: str, year: str | None) -> str:
        days = [
            spelling
            for name in _SPELLINGS[month.lower()]
            for number in (day, _ordinal(day))
            for spelling in (f"{number} {name}", f"{number} of {name}", f"{name} {number}")
        ]
        found.append(_phrases(days))
        if year:
            found.append(_phrases([f"{spelling} {year}" for spelling in days]))
        return " "

    def take_month(match: re.Match[str]) -> str:
        found.append(_phrases([f"{name} {match[2]}" for name in _SPELLINGS[match[1].lower()]]))
        return " "

    def take_chinese(match: re.Match[str]) -> str:
        found.append(_phrases([match[2]]))
        if match[1]:
            found.append(_phrases([f"{match[1]}年{match[2]}"]))
        return " "

    query = _DAY_FIRST.sub(lambda match: take(match[1], match[2], match[3]), query)
    query = _MONTH_FIRST.sub(lambda match: take(match[2], match[1], match[3]), query)
    query = _MONTH_ALONE.sub(take_month, query)
    return found, _CHINESE.sub(take_chinese, query)


def _ordinal(day: str) -> str:
    teen = day.zfill(2)[0] == "1"
    return day + ("th" if teen else {"1": "st", "2": "nd", "3": "rd"}.get(day[-1], "th"))


def _phrases(spellings: list[str]) -> str:
    quoted = [f'"{" ".join(index_text(spelling).split())}"' for spelling in spellings]
    return quoted[0] if len(quoted) == 1 else f"({' OR '.join(quoted)})"
