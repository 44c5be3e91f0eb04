"""Chinese lunar dates, both ways."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any, Literal

from scrubjay.agents.language.prompts import Phrase
from scrubjay.agents.tools.base import Answer, Mistaken
from scrubjay.agents.tools.moments import parse_day
from scrubjay.agents.tools.spec import Argument, Around, Bilingual, ToolSpec

if TYPE_CHECKING:
    from lunar_python import Lunar

FIRST_YEAR, LAST_YEAR = 1900, 2100
"""Years whose solar terms and months are checked against astronomy; others are refused."""

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
    """Return the lunar date of a day. Raises Mistaken outside of 1900 to 2100."""
    check_year(day.year)
    from lunar_python import Solar

    return Solar.fromYmd(day.year, day.month, day.day).getLunar()


def from_lunar(year: int, month: int, day: int, leap: bool) -> date:
    """Return the day of a lunar date. Raises Mistaken if there is no such date, naming what the year has."""
    check_year(year)
    from lunar_python import LunarYear

    found = LunarYear.fromYear(year).getMonth(-month if leap else month)
    if found is None:
        leap_month = LunarYear.fromYear(year).getLeapMonth()
        has = Phrase("lunar_has_leap", month=leap_month) if leap_month else Phrase("lunar_has_none")
        wanted = Phrase("lunar_leap_month" if leap else "lunar_month", month=month)
        raise Mistaken("lunar_no_month", year=year, month=wanted, has=has)
    if not 1 <= day <= found.getDayCount():
        raise Mistaken("lunar_no_day", year=year, days=found.getDayCount(), day=day)
    from lunar_python import Lunar

    solar = Lunar.fromYmd(year, -month if leap else month, day).getSolar()
    return date(solar.getYear(), solar.getMonth(), solar.getDay())


def check_year(year: int) -> None:
    """Raise Mistaken outside of 1900 to 2100."""
    if not FIRST_YEAR <= year <= LAST_YEAR:
        raise Mistaken("lunar_year", first=FIRST_YEAR, last=LAST_YEAR, year=year)


def describe_lunar(lunar: Lunar, around: Around) -> str:
    """Return a lunar date in words, with the year's name and animal."""
    animal = lunar.getYearShengXiao()
    month = lunar.getMonth()
    return around.say(
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


def _run(around: Around, date: str, from_calendar: str, leap_month: bool) -> Answer:
    if from_calendar == "solar":
        if leap_month:
            raise Mistaken("lunar_leap_solar")
        day = parse_day(date, around.clock)
    else:
        pieces = date.replace("/", "-").split("-")
        if len(pieces) != 3 or not all(piece.strip().isdecimal() for piece in pieces):
            raise Mistaken("lunar_form", date=repr(date))
        year, month, number = map(int, pieces)
        day = from_lunar(year, month, number, leap_month)
    lunar = to_lunar(day)
    words = describe_lunar(lunar, around)
    text = around.say(f"{day} is {words}.", f"公历 {day} 是{words}。")
    return Answer(text, data={"solar": day.isoformat(), "lunar": lunar_data(lunar)})


LUNAR_DATE = ToolSpec(
    name="lunar_date",
    zh_name="农历",
    about=Bilingual(
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
