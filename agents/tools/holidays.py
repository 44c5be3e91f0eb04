"""Public holidays of a country in a year."""

from __future__ import annotations

import difflib

from scrubjay.agents.language.prompts import Phrase
from scrubjay.agents.tools.base import ToolArgumentError, ToolResult
from scrubjay.agents.tools.dates import parse_day
from scrubjay.agents.tools.spec import ToolContext, ToolSpec

_CHINESE = {
    "中国": "CN",
    "美国": "US",
    "英国": "GB",
    "日本": "JP",
    "韩国": "KR",
    "德国": "DE",
    "法国": "FR",
    "俄罗斯": "RU",
    "印度": "IN",
    "加拿大": "CA",
    "澳大利亚": "AU",
    "意大利": "IT",
    "西班牙": "ES",
    "巴西": "BR",
    "新加坡": "SG",
    "马来西亚": "MY",
    "泰国": "TH",
    "越南": "VN",
    "中国香港": "HK",
    "香港": "HK",
    "中国澳门": "MO",
    "澳门": "MO",
    "中国台湾": "TW",
    "台湾": "TW",
}
_SHORT = {"UK": "GB", "USA": "US", "AMERICA": "US", "BRITAIN": "GB", "ENGLAND": "GB", "HOLLAND": "NL"}


def country_code(country: str) -> str:
    """Return the two-letter code of a country, given its code or its English or Chinese name.

    Raises ToolArgumentError with the closest known name if the country is unknown.
    """
    from holidays.registry import COUNTRIES

    if country.strip() in _CHINESE:
        return _CHINESE[country.strip()]
    code_of_name: dict[str, str] = {}
    for words, (name, *codes) in COUNTRIES.items():
        code_of_name |= dict.fromkeys((_plain(words), _plain(name), *codes), codes[0])
    name_key = _plain(country)
    name_key = _SHORT.get(name_key, name_key)
    if name_key in code_of_name:
        return code_of_name[name_key]
    close = difflib.get_close_matches(name_key, code_of_name, n=1)
    hint = Phrase("holidays_hint", code=code_of_name[close[0]]) if close else ""
    raise ToolArgumentError("holidays_country", country=repr(country), hint=hint)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.upper() if letter.isalnum())


def _run(
    context: ToolContext, country: str, year: int | None = None, region: str | None = None
) -> ToolResult:
    import holidays

    code = country_code(country)
    year = parse_day("today", context.clock).year if year is None else year
    place = getattr(holidays, code)
    if region is not None and region not in place.subdivisions:
        choices = ", ".join(place.subdivisions) or Phrase("holidays_none")
        raise ToolArgumentError("holidays_region", code=code, region=repr(region), regions=choices)
    if not place.start_year <= year <= place.end_year:
        raise ToolArgumentError(
            "holidays_year", code=code, first=place.start_year, last=place.end_year, year=year
        )
    preferred_language = context.say("en_US", "zh_CN")
    # Pass the language even if there is no choice: the library's default is the machine's locale.
    choices = (preferred_language, "en_US", place.default_language)
    language = next((name for name in choices if name in place.supported_languages), None)
    holiday_calendar = holidays.country_holidays(code, subdiv=region, years=year, language=language)
    days = dict(sorted(holiday_calendar.items()))
    workdays = sorted(day for day in getattr(holiday_calendar, "weekend_workdays", ()) if day.year == year)
    where = f"{code}-{region}" if region else code
    lines = [context.say(f"Public holidays of {where} in {year}:", f"{where} {year} 年公众假日：")]
    lines += [f"{day} {name}" for day, name in days.items()]
    if workdays:
        workday_list = ", ".join(map(str, workdays))
        lines.append(
            context.say(f"Weekend days that are worked: {workday_list}", f"调休上班：{workday_list}")
        )
    if code == "CN" and not workdays:
        lines.append(
            context.say(
                "Days moved by the State Council's notice for that year are not known here.",
                "该年国务院调休安排此处未知，仅列法定节日。",
            )
        )
    data = {
        "country": code,
        "region": region,
        "holidays": {day.isoformat(): name for day, name in days.items()},
        "weekend_workdays": [day.isoformat() for day in workdays],
    }
    return ToolResult("\n".join(lines), data=data)


HOLIDAYS = ToolSpec(
    name="holidays",
    zh_name="节假日",
    description=(
        "Public holidays of a country in a year, with the weekend days that are worked in exchange.",
        "查询某国某年的公众假日及调休上班日。",
    ),
    arguments={
        "country": ("ISO code or English name, such as CN or Germany", "国家代码或名称，如 CN、中国"),
        "year": ("the year; this one if left out", "年份，默认今年"),
        "region": ("code of a state or province, such as CA in the US", "州、省代码（可选），如美国 CA"),
    },
    run=_run,
    side_effect=False,
    packages=("holidays",),
)
