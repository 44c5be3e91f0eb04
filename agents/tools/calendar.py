"""Calendar facts of a day, dates of the Chinese lunar calendar, and moments of the 24 solar terms."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Literal

from scrubjay.agents.language.prompts import Phrase
from scrubjay.agents.tools.base import ToolArgumentError, ToolResult
from scrubjay.agents.tools.dates import parse_day
from scrubjay.agents.tools.spec import ToolContext, ToolSpec

if TYPE_CHECKING:
    from lunar_python import Lunar

FIRST_YEAR, LAST_YEAR = 1900, 2100
"""First and last supported year; solar terms and months of these years are checked against astronomy."""
MAX_DAYS = 31

_WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_FESTIVALS = {
    "除夕": "Chinese New Year's Eve",
    "春节": "Chinese New Year",
    "元宵节": "Lantern Festival",
    "龙头节": "Dragon Head Raising",
    "端午节": "Dragon Boat Festival",
    "七夕节": "Qixi Festival",
    "中秋节": "Mid-Autumn Festival",
    "重阳节": "Double Ninth Festival",
    "腊八节": "Laba Festival",
}
_SIGNS = {
    "白羊": "Aries",
    "金牛": "Taurus",
    "双子": "Gemini",
    "巨蟹": "Cancer",
    "狮子": "Leo",
    "处女": "Virgo",
    "天秤": "Libra",
    "天蝎": "Scorpio",
    "射手": "Sagittarius",
    "摩羯": "Capricorn",
    "水瓶": "Aquarius",
    "双鱼": "Pisces",
}
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


CHINA = timezone(timedelta(hours=8), "UTC+8")

TERMS = {
    "小寒": "Minor Cold",
    "大寒": "Major Cold",
    "立春": "Start of Spring",
    "雨水": "Rain Water",
    "惊蛰": "Awakening of Insects",
    "春分": "Spring Equinox",
    "清明": "Pure Brightness",
    "谷雨": "Grain Rain",
    "立夏": "Start of Summer",
    "小满": "Grain Buds",
    "芒种": "Grain in Ear",
    "夏至": "Summer Solstice",
    "小暑": "Minor Heat",
    "大暑": "Major Heat",
    "立秋": "Start of Autumn",
    "处暑": "End of Heat",
    "白露": "White Dew",
    "秋分": "Autumn Equinox",
    "寒露": "Cold Dew",
    "霜降": "Frost Descent",
    "立冬": "Start of Winter",
    "小雪": "Minor Snow",
    "大雪": "Major Snow",
    "冬至": "Winter Solstice",
}
"""Chinese and English names in the order of the year; the first term is at 285 degrees."""

# The library's table runs from one winter to the next; it names the terms of the second winter in Latin
# letters.
_SECOND = {"大雪": "DA_XUE", "冬至": "DONG_ZHI", "小寒": "XIAO_HAN", "大寒": "DA_HAN"}


def _day(day: date, context: ToolContext, year: dict[str, datetime]) -> tuple[str, dict[str, Any]]:
    lunar = to_lunar(day)
    week = day.isocalendar().week
    sign = lunar.getSolar().getXingZuo()
    terms = [name for name, instant in year.items() if instant.date() == day]
    festivals = [name for name in lunar.getFestivals() if name in _FESTIVALS]
    marks = context.say(
        ", ".join([TERMS[name] for name in terms] + [_FESTIVALS[name] for name in festivals]),
        "，".join(terms + festivals),
    )
    weekday = context.say(_WEEKDAYS[day.weekday()], "星期" + "一二三四五六日"[day.weekday()])
    words = context.say(
        f"{day} {weekday}, week {week}, {describe_lunar(lunar, context)}, {_SIGNS[sign]}",
        f"{day} {weekday}，第{week}周，{describe_lunar(lunar, context)}，{sign}座",
    )
    data = {
        "date": day.isoformat(),
        "weekday": day.isoweekday(),
        "week": week,
        "lunar": lunar_data(lunar),
        "solar_terms": terms,
        "festivals": festivals,
        "sign": sign,
    }
    return words + (context.say(f"; {marks}", f"；{marks}") if marks else ""), data


def _run(context: ToolContext, start: str = "today", end: str | None = None) -> ToolResult:
    first = parse_day(start, context.clock)
    last = first if end is None else parse_day(end, context.clock)
    first, last = min(first, last), max(first, last)
    count = (last - first).days + 1
    days = [first + timedelta(number) for number in range(min(count, MAX_DAYS))]
    years = {year: solar_terms(year) for year in {day.year for day in days}}
    entries = [_day(day, context, years[day.year]) for day in days]
    lines = [words for words, _ in entries]
    if count > MAX_DAYS:
        lines.append(
            context.say(
                f"({count - MAX_DAYS} more days are left out; ask for at most {MAX_DAYS} at once)",
                f"（其余 {count - MAX_DAYS} 天未列出；每次最多查询 {MAX_DAYS} 天）",
            )
        )
    return ToolResult("\n".join(lines), data=[data for _, data in entries])


CALENDAR = ToolSpec(
    name="calendar",
    zh_name="日历",
    description=(
        (
            "What a day is: weekday, week of the year, Chinese lunar date, solar term, traditional festival, "
            f"star sign. One day or up to {MAX_DAYS}."
        ),
        f"查询日期：星期、周数、农历、节气、传统节日、星座；可查一天或最多 {MAX_DAYS} 天。",
    ),
    arguments={
        "start": ("YYYY-MM-DD, or today", "日期 YYYY-MM-DD，或 今天"),
        "end": ("the last day, if several", "结束日期（可选）"),
    },
    run=_run,
    side_effect=False,
    packages=("lunar_python",),
)


def solar_terms(year: int) -> dict[str, datetime]:
    """Return the times of the solar terms of a year in chronological order, with Chinese names as keys.

    Times are in UTC+8 and accurate to the second. Raises ToolArgumentError if the year is not between 1900
    and 2100.
    """
    check_year(year)
    from lunar_python import Solar

    table = Solar.fromYmd(year, 7, 1).getLunar().getJieQiTable()
    terms = {}
    for name in TERMS:
        candidates = [table[key] for key in (name, _SECOND.get(name)) if key in table]
        (match,) = [solar for solar in candidates if solar.getYear() == year]
        terms[name] = datetime.fromisoformat(match.toYmdHms()).replace(tzinfo=CHINA)
    return terms


def _list_terms(context: ToolContext, year: int | None = None) -> ToolResult:
    terms = solar_terms(context.clock().astimezone(CHINA).year if year is None else year)
    lines = [
        f"{instant:%Y-%m-%d %H:%M:%S} {context.say(f'{TERMS[name]} ({name})', name)}"
        for name, instant in terms.items()
    ]
    head = context.say("Solar terms, UTC+8:", "二十四节气（北京时间）：")
    return ToolResult(
        "\n".join([head, *lines]), data={name: instant.isoformat() for name, instant in terms.items()}
    )


SOLAR_TERMS = ToolSpec(
    name="solar_terms",
    zh_name="节气",
    description=(
        "Instants of the 24 solar terms of a year, with the equinoxes and solstices (1900 to 2100).",
        "查询某年二十四节气的准确时刻（1900 至 2100 年）。",
    ),
    arguments={
        "year": ("the year; this one if left out", "年份，默认今年"),
    },
    run=_list_terms,
    side_effect=False,
    packages=("lunar_python",),
)


def to_lunar(day: date) -> Lunar:
    """Return the lunar date of a day. Raises ToolArgumentError if its year is not between 1900 and 2100."""
    check_year(day.year)
    from lunar_python import Solar

    return Solar.fromYmd(day.year, day.month, day.day).getLunar()


def from_lunar(year: int, month: int, day: int, leap: bool) -> date:
    """Return the Gregorian day of a lunar date. Raises ToolArgumentError if the date does not exist."""
    check_year(year)
    from lunar_python import Lunar, LunarYear

    lunar_year, signed_month = LunarYear.fromYear(year), -month if leap else month
    lunar_month = lunar_year.getMonth(signed_month)
    if lunar_month is None:
        leap_month = lunar_year.getLeapMonth()
        has = Phrase("lunar_has_leap", month=leap_month) if leap_month else Phrase("lunar_has_none")
        month_name = Phrase("lunar_leap_month" if leap else "lunar_month", month=month)
        raise ToolArgumentError("lunar_no_month", year=year, month=month_name, has=has)
    if not 1 <= day <= lunar_month.getDayCount():
        raise ToolArgumentError("lunar_no_day", year=year, days=lunar_month.getDayCount(), day=day)
    return date.fromisoformat(Lunar.fromYmd(year, signed_month, day).getSolar().toYmd())


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


def _convert(
    context: ToolContext,
    date: str,
    from_calendar: Literal["solar", "lunar"] = "solar",
    leap_month: bool = False,
) -> ToolResult:
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
    description=(
        "Convert a date to the Chinese lunar calendar, or a lunar date to the Gregorian one (1900 to 2100).",
        "公历与农历互相换算（1900 至 2100 年）。",
    ),
    arguments={
        "date": ("YYYY-MM-DD, or today", "日期 YYYY-MM-DD，或 今天"),
        "from_calendar": ("the calendar that the date is given in", "所给日期的历法：solar 公历，lunar 农历"),
        "leap_month": ("the lunar month is the leap one", "农历月是否为闰月"),
    },
    run=_convert,
    side_effect=False,
    packages=("lunar_python",),
)
