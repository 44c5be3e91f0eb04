"""Parse dates and times in the formats that people and models write."""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable
from datetime import date, datetime

from scrubjay.agents.tools.base import ToolArgumentError

_NOW = {"now", "现在", "此刻"}
_TODAY = {"today", "今天", "今日"}
_DATE = re.compile(r"(\d{1,4})\s*(?:[-/.]|年)\s*(\d{1,2})\s*(?:[-/.]|月)\s*(\d{1,2})\s*日?(?=\D|$)")
_TIME = re.compile(r"[T\s]*(\d{1,2}):(\d{2})(?::(\d{2})(\.\d{1,6})?)?\s*(Z|[+-]\d{2}:?\d{2})?$", re.ASCII)


def parse_moment(text: str, now: Callable[[], datetime]) -> date | datetime:
    """Return the date, or the date and time, in `text`.

    Accepted dates are `2026-02-17`, `2026/2/17`, `2026年2月17日`, `today` and `今天`. A numeric date may be
    followed by a time (`10:30` or `10:30:15`) and a UTC offset (`Z` or `+08:00`). `now` and `现在` are the
    current date and time. Raises ToolArgumentError on an invalid date or time, such as 31 June.
    """
    word = text.strip().lower()
    if word in _NOW:
        return now()
    if word in _TODAY:
        return now().date()
    match = _DATE.match(word)
    if not match:
        raise ToolArgumentError("moment_no_date", text=repr(text))
    year, month, day = map(int, match.groups())
    if not year >= 1:
        raise ToolArgumentError("moment_year", text=repr(text))
    if not 1 <= month <= 12:
        raise ToolArgumentError("moment_month", text=repr(text), month=month)
    last = calendar.monthrange(year, month)[1]
    if not 1 <= day <= last:
        raise ToolArgumentError("moment_day", text=repr(text), month=month, year=year, last=last)
    rest = word[match.end() :].strip()
    if not rest:
        return date(year, month, day)
    clock = _TIME.fullmatch(rest.upper())
    if not clock:
        raise ToolArgumentError("moment_time_form", text=repr(text), rest=repr(rest))
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
        raise ToolArgumentError("moment_time", text=repr(text), error=error) from None


def parse_day(text: str, now: Callable[[], datetime]) -> date:
    """Return the date in `text` without its time. Raises ToolArgumentError like `parse_moment`."""
    moment = parse_moment(text, now)
    return moment.date() if isinstance(moment, datetime) else moment
