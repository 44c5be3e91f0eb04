"""The exact time between two moments, in years, months and days of the calendar."""

from __future__ import annotations

import calendar
from datetime import date, datetime, timedelta, timezone
from typing import NamedTuple

from scrubjay.agents.tools.base import Answer, Mistaken
from scrubjay.agents.tools.moments import parse_moment
from scrubjay.agents.tools.spec import Argument, Around, Bilingual, ToolSpec


class Span(NamedTuple):
    """Calendar time between two moments: whole years, then whole months, then what is left."""

    years: int
    months: int
    rest: timedelta
    """Less than a month, never negative."""


def span(start: datetime, end: datetime) -> Span:
    """Return the calendar time from `start` to a later `end`.

    A month after the 31st is the last day of a shorter month, so that 29 February is a year before 28
    February. Adding the years and months to `start` in this sense, and then the rest, gives `end` again.
    """
    months = (end.year - start.year) * 12 + end.month - start.month
    if add_months(start, months) > end:
        months -= 1
    years, left = divmod(months, 12)
    return Span(years, left, end - add_months(start, months))


def add_months(moment: datetime, months: int) -> datetime:
    """Return the same day of another month, or its last if it is shorter."""
    year, month = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    day = min(moment.day, calendar.monthrange(year, month + 1)[1])
    return moment.replace(year=year, month=month + 1, day=day)


def _run(around: Around, start: str, end: str) -> Answer:
    first, last = parse_moment(start, around.clock), parse_moment(end, around.clock)
    days_only = not isinstance(first, datetime) and not isinstance(last, datetime)
    begin, finish = _moments(first, last)
    swapped = begin > finish
    if swapped:
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
    shown = [part for part in parts if part[0]] or [(0, "day", "天")]
    between = around.say(
        ", ".join(f"{count} {unit}{'s' * (count != 1)}" for count, unit, _ in shown),
        "".join(f"{count}{unit}" for count, _, unit in shown),
    )
    text = around.say(
        f"From {_name(first)} to {_name(last)}: {between} ({total.days:,} days in all"
        + (")." if days_only else f", {total.total_seconds():,.0f} seconds)."),
        f"从 {_name(first)} 到 {_name(last)}：{between}（共 {total.days} 天"
        + ("）。" if days_only else f"，{total.total_seconds():.0f} 秒）。"),
    )
    if swapped:
        text += around.say(
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
        "swapped": swapped,
    }
    return Answer(text, data=data)


def _moments(first: date | datetime, last: date | datetime) -> tuple[datetime, datetime]:
    """Return both as datetimes of one clock. Raises Mistaken if only one has a time zone."""
    zones = [moment.tzinfo for moment in (first, last) if isinstance(moment, datetime)]
    if any(zones) and not all(zones):
        raise Mistaken("moment_one_offset")
    # An offset rather than a zone, across whose changes of clock a difference would be an hour off.
    moment = next((moment for moment in (first, last) if isinstance(moment, datetime)), None)
    offset = moment.utcoffset() if moment else None
    zone = timezone(offset) if offset is not None else None
    # A day alone begins at midnight of the other's clock.
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
    about=Bilingual(
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
