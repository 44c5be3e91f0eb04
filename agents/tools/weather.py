"""Weather from Open-Meteo, without an API key.

The data have the license CC BY 4.0. The service is free for non-commercial use only.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from scrubjay.agents.language.address import RequestError
from scrubjay.agents.tools.base import ToolArgumentError, ToolResult
from scrubjay.agents.tools.dates import parse_day
from scrubjay.agents.tools.spec import ToolContext, ToolSpec
from scrubjay.agents.tools.web import expect_format

PLACES = "https://geocoding-api.open-meteo.com/v1/search"
FORECAST = "https://api.open-meteo.com/v1/forecast"
ARCHIVE = "https://archive-api.open-meteo.com/v1/archive"
AHEAD, BEHIND = 15, 90
"""Days after and before today that the forecast service covers; the archive has older ones, from 1940."""
MAX_DAYS = 31
MAX_NAME = 100
"""Maximum characters of the name of a place, a region or a country."""

_DAILY = "weather_code,temperature_2m_max,temperature_2m_min,precipitation_sum,wind_speed_10m_max"
_CURRENT = "temperature_2m,relative_humidity_2m,precipitation,weather_code,wind_speed_10m"
_CODES = {
    0: ("clear", "晴"),
    1: ("mainly clear", "大致晴朗"),
    2: ("partly cloudy", "多云"),
    3: ("overcast", "阴"),
    45: ("fog", "雾"),
    48: ("freezing fog", "雾凇"),
    51: ("light drizzle", "小毛毛雨"),
    53: ("drizzle", "毛毛雨"),
    55: ("heavy drizzle", "大毛毛雨"),
    56: ("light freezing drizzle", "小冻毛毛雨"),
    57: ("freezing drizzle", "冻毛毛雨"),
    61: ("light rain", "小雨"),
    63: ("rain", "中雨"),
    65: ("heavy rain", "大雨"),
    66: ("light freezing rain", "小冻雨"),
    67: ("freezing rain", "冻雨"),
    71: ("light snow", "小雪"),
    73: ("snow", "中雪"),
    75: ("heavy snow", "大雪"),
    77: ("snow grains", "米雪"),
    80: ("light showers", "小阵雨"),
    81: ("showers", "阵雨"),
    82: ("violent showers", "强阵雨"),
    85: ("light snow showers", "小阵雪"),
    86: ("snow showers", "阵雪"),
    95: ("thunderstorm", "雷暴"),
    96: ("thunderstorm with hail", "雷暴伴冰雹"),
    99: ("thunderstorm with heavy hail", "雷暴伴大冰雹"),
}
"""Weather codes of the World Meteorological Organization (table 4677), in English and Chinese."""


def _run(context: ToolContext, location: str, start: str | None = None, end: str | None = None) -> ToolResult:
    today = parse_day("today", context.clock)
    first = today if start is None else parse_day(start, context.clock)
    last = first if end is None else parse_day(end, context.clock)
    first, last = min(first, last), max(first, last)
    if last > today + timedelta(AHEAD):
        raise ToolArgumentError("weather_ahead", ahead=AHEAD, last=today + timedelta(AHEAD), day=last)
    if (last - first).days >= MAX_DAYS:
        raise ToolArgumentError("weather_days", most=MAX_DAYS, count=(last - first).days + 1)
    with expect_format():
        return _describe(context, location, first, last, is_now=start is None and end is None)


def _describe(context: ToolContext, location: str, first: date, last: date, is_now: bool) -> ToolResult:
    place = _find(context, location)
    parameters = {
        "latitude": place["latitude"],
        "longitude": place["longitude"],
        "daily": _DAILY,
        "timezone": "auto",
        "start_date": first,
        "end_date": last,
    }
    if is_now:
        parameters["current"] = _CURRENT
    is_old = first < parse_day("today", context.clock) - timedelta(BEHIND)
    service = ARCHIVE if is_old else FORECAST
    response = _ask(context, service, parameters)
    names = [str(place[key]) for key in ("name", "admin1", "country") if place.get(key)]
    name = ", ".join(each[:MAX_NAME] for each in names)
    lines = [name]
    if "current" in response:
        _check_numbers(response["current"])
        lines.append(_now(response["current"], context))
    daily = response.get("daily", {})
    rows = [dict(zip(daily, values, strict=True)) for values in zip(*daily.values(), strict=True)]
    if len(rows) > MAX_DAYS:
        raise ValueError(f"{len(rows)} days")
    for row in rows:
        _check_numbers(row)
    lines += [_day(row, context) for row in rows]
    lines.append(context.say("Source: Open-Meteo.com", "数据来源：Open-Meteo.com"))
    return ToolResult("\n".join(lines), ("https://open-meteo.com/",), {"place": name, "days": rows})


def _find(context: ToolContext, location: str) -> dict[str, Any]:
    """Return the first place that matches the name. Raises RequestError if no place matches."""
    parameters = {"name": location.strip(), "count": 1, "language": context.language, "format": "json"}
    places = _ask(context, PLACES, parameters).get("results")
    if not places:
        raise RequestError("weather_place", location=repr(location))
    return places[0]


def _ask(context: ToolContext, service: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return context.web.get(f"{service}?{urlencode(parameters)}").read_json()


def _check_numbers(row: dict[str, Any]) -> None:
    """Raise an error unless all values are numbers or None, and the time is a time."""
    datetime.fromisoformat(row["time"])
    for name, value in row.items():
        if name != "time" and not isinstance(value, int | float | None):
            raise TypeError(f"{name} is not a number")


def _now(now: dict[str, Any], context: ToolContext) -> str:
    return context.say(
        f"now ({now['time']}): {_sky(now, context)}, {now['temperature_2m']} °C, "
        f"humidity {now['relative_humidity_2m']}%, wind {now['wind_speed_10m']} km/h",
        f"现在（{now['time']}）：{_sky(now, context)}，{now['temperature_2m']} °C，"
        f"湿度 {now['relative_humidity_2m']}%，风速 {now['wind_speed_10m']} 公里/时",
    )


def _day(row: dict[str, Any], context: ToolContext) -> str:
    day = date.fromisoformat(row["time"])
    if row["temperature_2m_max"] is None:
        return context.say(f"{day}: no data", f"{day}：无数据")
    return context.say(
        f"{day}: {_sky(row, context)}, {row['temperature_2m_min']} to {row['temperature_2m_max']} °C, "
        f"precipitation {row['precipitation_sum']} mm, wind up to {row['wind_speed_10m_max']} km/h",
        f"{day}：{_sky(row, context)}，{row['temperature_2m_min']} 至 {row['temperature_2m_max']} °C，"
        f"降水 {row['precipitation_sum']} 毫米，最大风速 {row['wind_speed_10m_max']} 公里/时",
    )


def _sky(row: dict[str, Any], context: ToolContext) -> str:
    return context.say(*_CODES.get(row["weather_code"], ("unknown sky", "天气未知")))


WEATHER = ToolSpec(
    name="weather",
    zh_name="天气",
    description=(
        f"Weather of a city: now, on past days, or forecast up to {AHEAD} days ahead.",
        f"查询城市天气：现在、过去或未来 {AHEAD} 天内。",
    ),
    arguments={
        "location": ("name of the city", "城市名"),
        "start": ("first day, YYYY-MM-DD or today; now if left out", "开始日期，默认现在"),
        "end": ("last day, YYYY-MM-DD", "结束日期（可选）"),
    },
    run=_run,
    side_effect=False,
    network=True,
)
