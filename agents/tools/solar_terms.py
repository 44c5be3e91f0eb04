"""Moments of the 24 solar terms; at a term the sun's apparent longitude is a multiple of 15 degrees."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from scrubjay.agents.tools.base import ToolResult
from scrubjay.agents.tools.lunar_date import check_year
from scrubjay.agents.tools.spec import Argument, Bilingual, ToolContext, ToolSpec

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
        terms[name] = datetime(
            year,
            match.getMonth(),
            match.getDay(),
            match.getHour(),
            match.getMinute(),
            match.getSecond(),
            tzinfo=CHINA,
        )
    return terms


def _run(context: ToolContext, year: int | None) -> ToolResult:
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
    run=_run,
    side_effect=False,
    packages=("lunar_python",),
)
