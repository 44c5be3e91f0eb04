"""Calendar facts of a day, and moments of the 24 solar terms."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from typing import Any

from scrubjay.agents.tools.base import ToolResult
from scrubjay.agents.tools.dates import parse_day
from scrubjay.agents.tools.lunar_date import check_year, describe_lunar, lunar_data, to_lunar
from scrubjay.agents.tools.spec import Argument, Bilingual, ToolContext, ToolSpec

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


def _run(context: ToolContext, start: str, end: str | None) -> ToolResult:
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
    description=Bilingual(
        "What a day is: weekday, week of the year, Chinese lunar date, solar term, traditional festival, "
        f"star sign. One day or up to {MAX_DAYS}.",
        f"查询日期：星期、周数、农历、节气、传统节日、星座；可查一天或最多 {MAX_DAYS} 天。",
    ),
    arguments=(
        Argument("start", str, Bilingual("YYYY-MM-DD, or today", "日期 YYYY-MM-DD，或 今天"), "today"),
        Argument("end", str | None, Bilingual("the last day, if several", "结束日期（可选）"), None),
    ),
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


def _list_terms(context: ToolContext, year: int | None) -> ToolResult:
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
    description=Bilingual(
        "Instants of the 24 solar terms of a year, with the equinoxes and solstices (1900 to 2100).",
        "查询某年二十四节气的准确时刻（1900 至 2100 年）。",
    ),
    arguments=(
        Argument("year", int | None, Bilingual("the year; this one if left out", "年份，默认今年"), None),
    ),
    run=_list_terms,
    side_effect=False,
    packages=("lunar_python",),
)
