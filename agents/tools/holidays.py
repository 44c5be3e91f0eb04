"""Public holidays of a country in a year."""

from __future__ import annotations

import difflib

from scrubjay.agents.language.prompts import Phrase
from scrubjay.agents.tools.base import Answer, Mistaken
from scrubjay.agents.tools.moments import parse_day
from scrubjay.agents.tools.spec import Argument, Around, Bilingual, ToolSpec

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
    """Return the two-letter code of a country given by code or by English or Chinese name.

    Raises Mistaken with the closest known name.
    """
    from holidays.registry import COUNTRIES

    if country.strip() in _CHINESE:
        return _CHINESE[country.strip()]
    known: dict[str, str] = {}
    for words, (name, *codes) in COUNTRIES.items():
        known |= dict.fromkeys((_plain(words), _plain(name), *codes), codes[0])
    wanted = _plain(country)
    wanted = _SHORT.get(wanted, wanted)
    if wanted in known:
        return known[wanted]
    close = difflib.get_close_matches(wanted, known, n=1)
    hint = Phrase("holidays_hint", code=known[close[0]]) if close else ""
    raise Mistaken("holidays_country", country=repr(country), hint=hint)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.upper() if letter.isalnum())


def _run(around: Around, country: str, year: int | None, region: str | None) -> Answer:
    import holidays

    code = country_code(country)
    year = parse_day("today", around.clock).year if year is None else year
    place = getattr(holidays, code)
    if region is not None and region not in place.subdivisions:
        choices = ", ".join(place.subdivisions) or Phrase("holidays_none")
        raise Mistaken("holidays_region", code=code, region=repr(region), regions=choices)
    if not place.start_year <= year <= place.end_year:
        raise Mistaken("holidays_year", code=code, first=place.start_year, last=place.end_year, year=year)
    wanted = around.say("en_US", "zh_CN")
    # Named even where there is no choice, or the machine's own language would count.
    languages = [
        name for name in (wanted, "en_US", place.default_language) if name in place.supported_languages
    ]
    language = next(iter(languages), None)
    found = holidays.country_holidays(code, subdiv=region, years=year, language=language)
    days = dict(sorted(found.items()))
    worked = sorted(day for day in getattr(found, "weekend_workdays", ()) if day.year == year)
    where = f"{code}-{region}" if region else code
    lines = [around.say(f"Public holidays of {where} in {year}:", f"{where} {year} 年公众假日：")]
    lines += [f"{day} {name}" for day, name in days.items()]
    if worked:
        listed = ", ".join(map(str, worked))
        lines.append(around.say(f"Weekend days that are worked: {listed}", f"调休上班：{listed}"))
    if code == "CN" and not worked:
        lines.append(
            around.say(
                "Days moved by the State Council's notice for that year are not known here.",
                "该年国务院调休安排此处未知，仅列法定节日。",
            )
        )
    data = {
        "country": code,
        "region": region,
        "holidays": {day.isoformat(): name for day, name in days.items()},
        "weekend_workdays": [day.isoformat() for day in worked],
    }
    return Answer("\n".join(lines), data=data)


HOLIDAYS = ToolSpec(
    name="holidays",
    zh_name="节假日",
    about=Bilingual(
        "Public holidays of a country in a year, with the weekend days that are worked in exchange.",
        "查询某国某年的公众假日及调休上班日。",
    ),
    arguments=(
        Argument(
            "country",
            str,
            Bilingual("ISO code or English name, such as CN or Germany", "国家代码或名称，如 CN、中国"),
        ),
        Argument("year", int | None, Bilingual("the year; this one if left out", "年份，默认今年"), None),
        Argument(
            "region",
            str | None,
            Bilingual("code of a state or province, such as CA in the US", "州、省代码（可选），如美国 CA"),
            None,
        ),
    ),
    run=_run,
    side_effect=False,
    packages=("holidays",),
)
