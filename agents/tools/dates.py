"""Parse dates and times in the formats that people and models write, and compute the time between two."""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable
from datetime import date, datetime, timezone

from scrubjay.agents.tools.base import ToolArgumentError, ToolResult
from scrubjay.agents.tools.spec import ToolContext, ToolSpec

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


def _run(context: ToolContext, start: str, end: str) -> ToolResult:
    from dateutil.relativedelta import relativedelta

    first, last = parse_moment(start, context.clock), parse_moment(end, context.clock)
    days_only = not isinstance(first, datetime) and not isinstance(last, datetime)
    begin, finish = _moments(first, last)
    is_swapped = begin > finish
    if is_swapped:
        first, last, begin, finish = last, first, finish, begin
    # Whole years and months, then the remainder. One month after the 31st is the last day of a shorter month.
    # One year after 29 February is 28 February.
    span = relativedelta(finish, begin)
    total = finish - begin
    parts = [
        (span.years, "year", "年"),
        (span.months, "month", "个月"),
        (span.days, "day", "天"),
        (span.hours, "hour", "小时"),
        (span.minutes, "minute", "分"),
        (span.seconds, "second", "秒"),
    ]
    nonzero_parts = [part for part in parts if part[0]] or [(0, "day", "天")]
    between = context.say(
        ", ".join(f"{count} {unit}{'s' * (count != 1)}" for count, unit, _ in nonzero_parts),
        "".join(f"{count}{unit}" for count, _, unit in nonzero_parts),
    )
    text = context.say(
        f"From {_name(first)} to {_name(last)}: {between} ({total.days:,} days in all"
        + (")." if days_only else f", {total.total_seconds():,.0f} seconds)."),
        f"从 {_name(first)} 到 {_name(last)}：{between}（共 {total.days} 天"
        + ("）。" if days_only else f"，{total.total_seconds():.0f} 秒）。"),
    )
    if is_swapped:
        text += context.say(
            " The start given was the later of the two: they were swapped.",
            "所给开始时间晚于结束时间，已对调。",
        )
    data = {
        "years": span.years,
        "months": span.months,
        "days": span.days,
        "seconds": (span.hours * 60 + span.minutes) * 60 + span.seconds,
        "total_days": total.days,
        "total_seconds": total.total_seconds(),
        "swapped": is_swapped,
    }
    return ToolResult(text, data=data)


def _moments(first: date | datetime, last: date | datetime) -> tuple[datetime, datetime]:
    """Return both arguments as datetimes with the same UTC offset.

    Raises ToolArgumentError if only one argument has a time zone.
    """
    zones = [moment.tzinfo for moment in (first, last) if isinstance(moment, datetime)]
    if any(zones) and not all(zones):
        raise ToolArgumentError("moment_one_offset")
    # Use a fixed offset: with a time zone, a difference across a clock change would be one hour off.
    moment = next((moment for moment in (first, last) if isinstance(moment, datetime)), None)
    offset = moment.utcoffset() if moment else None
    zone = timezone(offset) if offset is not None else None
    # A date without time is midnight at the other moment's offset.
    begin, finish = (
        moment if isinstance(moment, datetime) else datetime.combine(moment, datetime.min.time(), tzinfo=zone)
        for moment in (first, last)
    )
    return (begin.astimezone(zone), finish.astimezone(zone)) if zone else (begin, finish)


def _name(moment: date | datetime) -> str:
    return moment.isoformat(" ", "seconds") if isinstance(moment, datetime) else moment.isoformat()


TIME_DELTA = ToolSpec(
    name="time_delta",
    zh_name="时间差",
    description=(
        (
            "Exact time between two dates or times, in calendar years, months and days and in days in all: "
            "ages, durations."
        ),
        "计算两个日期或时间之间的准确间隔（年、月、日及总天数），可用于年龄、时长。",
    ),
    arguments={
        "start": (
            "YYYY-MM-DD, or with HH:MM[:SS][+08:00]; or today, now",
            "开始：YYYY-MM-DD，可加 HH:MM[:SS][+08:00]；或 今天、现在",
        ),
        "end": ("the other moment, written likewise", "结束：写法同上"),
    },
    run=_run,
    side_effect=False,
)
