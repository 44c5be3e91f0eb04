"""Dates and times as people and models write them."""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable
from datetime import date, datetime

from scrubjay.agents.tools.base import Mistaken

_NOW = {"now", "现在", "此刻"}
_TODAY = {"today", "今天", "今日"}
_DATE = re.compile(r"(\d{1,4})\s*(?:[-/.]|年)\s*(\d{1,2})\s*(?:[-/.]|月)\s*(\d{1,2})\s*日?(?=\D|$)")
_TIME = re.compile(r"[T\s]*(\d{1,2}):(\d{2})(?::(\d{2})(\.\d{1,6})?)?\s*(Z|[+-]\d{2}:?\d{2})?$", re.ASCII)


def parse_moment(text: str, now: Callable[[], datetime]) -> date | datetime:
    """Return the date, or the date and time, that `text` names.

    Knows `2026-02-17`, `2026/2/17`, `2026年2月17日`, each with or without `10:30`, `10:30:15` and an offset
    (`Z`, `+08:00`), and `today`, `now`, `今天`, `现在`. Raises Mistaken that says what is wrong, as a 31st
    of June.
    """
    word = text.strip().lower()
    if word in _NOW:
        return now()
    if word in _TODAY:
        return now().date()
    found = _DATE.match(word)
    if not found:
        raise Mistaken("moment_no_date", text=repr(text))
    year, month, day = map(int, found.groups())
    if not year >= 1:
        raise Mistaken("moment_year", text=repr(text))
    if not 1 <= month <= 12:
        raise Mistaken("moment_month", text=repr(text), month=month)
    last = calendar.monthrange(year, month)[1]
    if not 1 <= day <= last:
        raise Mistaken("moment_day", text=repr(text), month=month, year=year, last=last)
    rest = word[found.end() :].strip()
    if not rest:
        return date(year, month, day)
    clock = _TIME.fullmatch(rest.upper())
    if not clock:
        raise Mistaken("moment_time_form", text=repr(text), rest=repr(rest))
    hour, minute, second, fraction, offset = clock.groups()
    try:
        zone = datetime.strptime(offset, "%z").tzinfo if offset else None
        return datetime(
            year,
            month,
            day,
            int(hour),
            int(minute),
            int(second or 0),
            round(float(fraction or 0) * 1_000_000) % 1_000_000,
            zone,
        )
    except ValueError as error:
        raise Mistaken("moment_time", text=repr(text), error=error) from None


def parse_day(text: str, now: Callable[[], datetime]) -> date:
    """Return the day that `text` names, whatever its time. Raises Mistaken as `parse_moment`."""
    moment = parse_moment(text, now)
    return moment.date() if isinstance(moment, datetime) else moment
