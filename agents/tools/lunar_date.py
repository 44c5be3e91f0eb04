"""Convert between Gregorian and Chinese lunar dates."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any, Literal

from scrubjay.agents.language.prompts import Phrase
from scrubjay.agents.tools.base import ToolArgumentError, ToolResult
from scrubjay.agents.tools.dates import parse_day
from scrubjay.agents.tools.spec import Argument, Bilingual, ToolContext, ToolSpec

if TYPE_CHECKING:
    from lunar_python import Lunar

FIRST_YEAR, LAST_YEAR = 1900, 2100
"""First and last supported year; solar terms and months of these years are checked against astronomy."""

_ANIMALS = dict(
    zip(
        "鼠牛虎兔龙蛇马羊猴鸡狗猪",
        [
            "Rat",
            "Ox",
            "Tiger",
            "Rabbit",
            "Dragon",
            "Snake",
            "Horse",
            "Goat",
            "Monkey",
            "Rooster",
            "Dog",
            "Pig",
        ],
        strict=True,
    )
)


def to_lunar(day: date) -> Lunar:
    """Return the lunar date of a day. Raises ToolArgumentError if its year is not between 1900 and 2100."""
    check_year(day.year)
    from lunar_python import Solar

    return Solar.fromYmd(day.year, day.month, day.day).getLunar()


def from_lunar(year: int, month: int, day: int, leap: bool) -> date:
    """Return the Gregorian day of a lunar date. Raises ToolArgumentError if the date does not exist."""
    check_year(year)
    from lunar_python import LunarYear

    lunar_month = LunarYear.fromYear(year).getMonth(-month if leap else month)
    if lunar_month is None:
        leap_month = LunarYear.fromYear(year).getLeapMonth()
        has = Phrase("lunar_has_leap", month=leap_month) if leap_month else Phrase("lunar_has_none")
        month_name = Phrase("lunar_leap_month" if leap else "lunar_month", month=month)
        raise ToolArgumentError("lunar_no_month", year=year, month=month_name, has=has)
    if not 1 <= day <= lunar_month.getDayCount():
        raise ToolArgumentError("lunar_no_day", year=year, days=lunar_month.getDayCount(), day=day)
    from lunar_python import Lunar

    solar = Lunar.fromYmd(year, -month if leap else month, day).getSolar()
    return date.fromisoformat(solar.toYmd())


def check_year(year: int) -> None:
    """Raise ToolArgumentError if the year is outside of 1900 to 2100."""
    if not FIRST_YEAR <= year <= LAST_YEAR:
        raise ToolArgumentError("lunar_year", first=FIRST_YEAR, last=LAST_YEAR, year=year)


def describe_lunar(lunar: Lunar, context: ToolContext) -> str:
    """Return a lunar date as text, with the year's name and zodiac animal."""
    animal = lunar.getYearShengXiao()
    month = lunar.getMonth()
    return context.say(
        f"{'leap ' * (month < 0)}month {abs(month)} day {lunar.getDay()} of lunar year {lunar.getYear()} "
        f"({lunar.getYearInGanZhi()}, year of the {_ANIMALS[animal]})",
        f"农历{lunar.getYear()}年（{lunar.getYearInGanZhi()}，{animal}年）"
        f"{lunar.getMonthInChinese()}月{lunar.getDayInChinese()}",
    )


def lunar_data(lunar: Lunar) -> dict[str, Any]:
    """Return a lunar date as JSON values."""
    return {
        "year": lunar.getYear(),
        "month": abs(lunar.getMonth()),
        "day": lunar.getDay(),
        "leap": lunar.getMonth() < 0,
    }


def _run(context: ToolContext, date: str, from_calendar: str, leap_month: bool) -> ToolResult:
    if from_calendar == "solar":
        if leap_month:
            raise ToolArgumentError("lunar_leap_solar")
        day = parse_day(date, context.clock)
    else:
        pieces = date.replace("/", "-").split("-")
        if len(pieces) != 3 or not all(piece.strip().isdecimal() for piece in pieces):
            raise ToolArgumentError("lunar_form", date=repr(date))
        year, month, number = map(int, pieces)
        day = from_lunar(year, month, number, leap_month)
    lunar = to_lunar(day)
    words = describe_lunar(lunar, context)
    text = context.say(f"{day} is {words}.", f"公历 {day} 是{words}。")
    return ToolResult(text, data={"solar": day.isoformat(), "lunar": lunar_data(lunar)})


LUNAR_DATE = ToolSpec(
    name="lunar_date",
    zh_name="农历",
    description=Bilingual(
        "Convert a date to the Chinese lunar calendar, or a lunar date to the Gregorian one (1900 to 2100).",
        "公历与农历互相换算（1900 至 2100 年）。",
    ),
    arguments=(
        Argument("date", str, Bilingual("YYYY-MM-DD, or today", "日期 YYYY-MM-DD，或 今天")),
        Argument(
            "from_calendar",
            Literal["solar", "lunar"],
            Bilingual("the calendar that the date is given in", "所给日期的历法：solar 公历，lunar 农历"),
            "solar",
        ),
        Argument("leap_month", bool, Bilingual("the lunar month is the leap one", "农历月是否为闰月"), False),
    ),
    run=_run,
    side_effect=False,
    packages=("lunar_python",),
)
