"""Exact time between two moments, in calendar years, months and days."""

from __future__ import annotations

import calendar
from datetime import date, datetime, timedelta, timezone
from typing import NamedTuple

from scrubjay.agents.tools.base import ToolArgumentError, ToolResult
from scrubjay.agents.tools.dates import parse_moment
from scrubjay.agents.tools.spec import Argument, Bilingual, ToolContext, ToolSpec


class Span(NamedTuple):
    """Calendar time between two moments: whole years, then whole months, then the remainder."""

    years: int
    months: int
    rest: timedelta
    """Time after the whole months: less than a month, never negative."""


def span(start: datetime, end: datetime) -> Span:
    """Return the calendar time from `start` to a later `end`.

    One month after the 31st is the last day of a shorter month. One year after 29 February is 28 February.
    The whole years and months are added to `start` first (`add_months`). `rest` is the time from the
    resulting moment to `end`.
    """
    months = (end.year - start.year) * 12 + end.month - start.month
    if add_months(start, months) > end:
        months -= 1
    years, left = divmod(months, 12)
    return Span(years, left, end - add_months(start, months))


def add_months(moment: datetime, months: int) -> datetime:
    """Return the same day of the month, `months` months later; in a shorter month, return its last day."""
    year, month = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    day = min(moment.day, calendar.monthrange(year, month + 1)[1])
    return moment.replace(year=year, month=month + 1, day=day)


def _run(context: ToolContext, start: str, end: str) -> ToolResult:
    first, last = parse_moment(start, context.clock), parse_moment(end, context.clock)
    days_only = not isinstance(first, datetime) and not isinstance(last, datetime)
    begin, finish = _moments(first, last)
    is_swapped = begin > finish
    if is_swapped:
        first, last, begin, finish = last, first, finish, begin
    years, months, rest = span(begin, finish)
    total = finish - begin
    parts = [
        (years, "year", "年"),
        (months, "month", "个月"),
        (rest.days, "day", "天"),
        (rest.seconds // 3600, "hour", "小时"),
        (rest.seconds // 60 % 60, "minute", "分"),
        (rest.seconds % 60, "second", "秒"),
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
        "years": years,
        "months": months,
        "days": rest.days,
        "seconds": rest.seconds,
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
    description=Bilingual(
        "Exact time between two dates or times, in calendar years, months and days and in days in all: "
        "ages, durations.",
        "计算两个日期或时间之间的准确间隔（年、月、日及总天数），可用于年龄、时长。",
    ),
    arguments=(
        Argument(
            "start",
            str,
            Bilingual(
                "YYYY-MM-DD, or with HH:MM[:SS][+08:00]; or today, now",
                "开始：YYYY-MM-DD，可加 HH:MM[:SS][+08:00]；或 今天、现在",
            ),
        ),
        Argument("end", str, Bilingual("the other moment, written likewise", "结束：写法同上")),
    ),
    run=_run,
    side_effect=False,
)
