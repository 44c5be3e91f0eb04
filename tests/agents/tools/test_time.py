"""Time tools against independent references: dateutil, ephem's sun and moon, published instants."""

import itertools
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from dateutil.relativedelta import relativedelta
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.agents.tools import make_tools
from scrubjay.agents.tools.base import Language
from scrubjay.agents.tools.lunar_date import from_lunar, to_lunar
from scrubjay.agents.tools.moments import parse_day, parse_moment
from scrubjay.agents.tools.solar_terms import CHINA, TERMS, solar_terms
from scrubjay.agents.tools.time_delta import add_months, span

ephem = pytest.importorskip("ephem")

MOMENTS = st.datetimes(datetime(1583, 1, 1), datetime(9998, 12, 31)).map(lambda m: m.replace(microsecond=0))
LUNAR_DAYS = st.dates(date(1900, 2, 1), date(2100, 12, 31))


def now() -> datetime:
    return datetime(2026, 11, 25, 22, 30, tzinfo=CHINA)


def ask(name, language: Language = "en", **arguments):
    (tool,) = make_tools([name], language=language, clock=now)
    return tool.invoke({"name": name, "args": arguments, "id": "1", "type": "tool_call"})


@given(MOMENTS, MOMENTS)
def test_a_span_leads_from_its_start_to_its_end(one, other):
    start, end = min(one, other), max(one, other)
    years, months, rest = span(start, end)
    assert 0 <= months < 12
    assert timedelta(0) <= rest < timedelta(31)
    assert add_months(start, years * 12 + months) + rest == end


@given(MOMENTS, MOMENTS)
def test_a_span_is_that_of_dateutil(one, other):
    start, end = min(one, other), max(one, other)
    years, months, rest = span(start, end)
    reference = relativedelta(end, start)
    assert (years, months) == (reference.years, reference.months)
    left = timedelta(reference.days, reference.hours * 3600 + reference.minutes * 60 + reference.seconds)
    assert rest == left


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("2000-02-29", "2001-02-28", (1, 0, 0, 365)),  # 365/30 would say the same, the next would not
        ("2000-02-29", "2001-03-01", (1, 0, 1, 366)),
        ("2024-01-31", "2024-02-29", (0, 1, 0, 29)),
        ("2024-01-31", "2024-03-01", (0, 1, 1, 30)),
        ("2023-12-31", "2024-12-31", (1, 0, 0, 366)),
        ("1900-01-01", "2000-01-01", (100, 0, 0, 36524)),
        ("1955-02-24", "2011-10-05", (56, 7, 11, 20677)),
        ("2026-11-25", "2026-11-25", (0, 0, 0, 0)),
    ],
)
def test_spans_that_people_know(start, end, expected):
    data = ask("time_delta", start=start, end=end).artifact["data"]
    assert (data["years"], data["months"], data["days"], data["total_days"]) == expected
    assert not data["swapped"]
    back = ask("time_delta", start=end, end=start)
    assert back.artifact["data"] | {"swapped": False} == data
    assert ("swapped" in back.content) == (start != end)
    assert ("对调" in ask("time_delta", "zh", start=end, end=start).content) == (start != end)


def test_the_words_of_a_span():
    text = ask("time_delta", start="2025-01-01", end="2026-03-02 01:01:01").content
    assert "1 year, 2 months, 1 day, 1 hour, 1 minute, 1 second (425 days in all" in text
    assert (
        "1年2个月1天1小时1分1秒（共 425 天"
        in ask("time_delta", "zh", start="2025-01-01", end="2026-03-02 01:01:01").content
    )


def test_time_zones_count_and_are_not_mixed_with_none():
    data = ask("time_delta", start="2026-01-01 00:00+08:00", end="2026-01-01T00:00Z").artifact["data"]
    assert data["total_seconds"] == 8 * 3600
    mixed = ask("time_delta", start="2026-01-01 00:00", end="2026-01-01 00:00Z")
    assert mixed.status == "error"
    assert "both or neither" in mixed.content
    assert ask("time_delta", start="2026-11-25", end="now").artifact["data"]["total_seconds"] == 22.5 * 3600


@pytest.mark.parametrize("start", ["now", "2026-03-28T23:00Z"])
def test_a_change_of_the_clock_is_no_time(start):
    def spring() -> datetime:
        return datetime(2026, 3, 29, 12, tzinfo=ZoneInfo("Europe/Berlin"))

    (tool,) = make_tools(["time_delta"], clock=spring)
    arguments = {"start": start, "end": {"now": "2026-03-28T23:00Z"}.get(start, "now")}
    answer = tool.invoke({"args": arguments, "name": "time_delta", "id": "1", "type": "tool_call"})
    assert answer.artifact["data"]["total_seconds"] == 11 * 3600  # by the wall it would be 12


@given(MOMENTS, st.sampled_from(["-", "/", "."]))
def test_written_moments_are_read_back(moment, mark):
    day = f"{moment.year}{mark}{moment.month}{mark}{moment.day}"
    assert parse_moment(day, now) == moment.date()
    assert parse_moment(f" {day} {moment:%H:%M:%S}", now) == moment
    assert parse_moment(moment.isoformat(), now) == moment
    assert parse_moment(
        f"{moment.year}年{moment.month}月{moment.day}日 {moment:%H:%M}", now
    ) == moment.replace(second=0)
    assert parse_moment(f"{moment.isoformat()}+05:30", now).isoformat() == f"{moment.isoformat()}+05:30"  # type: ignore[union-attr]
    assert parse_day(moment.isoformat(), now) == moment.date()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2026-06-31", "month 6 of 2026 has 30 days"),
        ("2025-02-29", "month 2 of 2025 has 28 days"),
        ("2026-13-01", "no month 13"),
        ("25/12/2026", "year first"),
        ("0000-01-01", "years from 1 to 9999"),
        ("2026-01-01 25:00", "not a time"),
        ("2026-01-01 noon", "not a time"),
        ("tomorrow", "not a date"),
        ("", "not a date"),
    ],
)
def test_what_is_no_date_is_explained(text, message):
    with pytest.raises(ValueError, match=message):
        parse_moment(text, now)


@given(st.text(st.sampled_from("0123456789-/.: 年月日TZ+now今天\0٣"), max_size=30))
def test_any_text_is_a_moment_or_an_explanation(text):
    try:
        assert isinstance(parse_moment(text, now), date)
    except ValueError as caught:
        error = caught
    else:
        return
    assert repr(text) in str(error)


def sun_longitude(moment: datetime) -> float:
    """Return the sun's apparent ecliptic longitude in degrees, as ephem computes it."""
    when = ephem.Date(moment.astimezone(UTC).replace(tzinfo=None))
    sun = ephem.Sun(when)
    return float(ephem.Ecliptic(ephem.Equatorial(sun.ra, sun.dec, epoch=when)).lon) * 180 / ephem.pi


@pytest.mark.parametrize("year", [1900, 1930, 1950, 1979, 2000, 2012, 2026, 2049, 2075, 2100])
def test_at_every_solar_term_the_sun_is_where_it_should_be(year):
    """Within a minute, in which the sun moves by 1/1440 of 0.9856 degrees."""
    terms = solar_terms(year)
    assert list(terms) == list(TERMS)
    for number, moment in enumerate(terms.values()):
        off = (sun_longitude(moment) - 285 - 15 * number + 180) % 360 - 180
        assert abs(off) / 0.9856 * 1440 < 1, (year, number, off)


@pytest.mark.parametrize(
    ("name", "published"),
    [  # by the United States Naval Observatory, to the minute, in universal time
        ("春分", "2024-03-20 03:06"),
        ("夏至", "2024-06-20 20:51"),
        ("秋分", "2024-09-22 12:44"),
        ("冬至", "2024-12-21 09:21"),
        ("春分", "2025-03-20 09:01"),
        ("夏至", "2025-06-21 02:42"),
        ("秋分", "2025-09-22 18:19"),
        ("冬至", "2025-12-21 15:03"),
    ],
)
def test_equinoxes_and_solstices_are_those_published(name, published):
    moment = datetime.fromisoformat(published).replace(tzinfo=UTC)
    assert abs(solar_terms(moment.year)[name] - moment) <= timedelta(minutes=1)


@pytest.mark.slow
def test_terms_are_in_order_every_year():
    for year in range(1900, 2101):
        moments = list(solar_terms(year).values())
        assert all(14 <= (b - a).days <= 16 for a, b in itertools.pairwise(moments)), year
        assert {moment.year for moment in moments} == {year}


@given(LUNAR_DAYS)
@settings(max_examples=30)
def test_lunar_dates_lead_back(day):
    lunar = to_lunar(day)
    if 1900 <= lunar.getYear() <= 2100:
        assert from_lunar(lunar.getYear(), abs(lunar.getMonth()), lunar.getDay(), lunar.getMonth() < 0) == day


@settings(max_examples=30)
@given(st.dates(date(1930, 1, 1), date(2100, 11, 30)))
def test_a_lunar_month_begins_on_the_day_of_the_new_moon(day):
    first = day - timedelta(to_lunar(day).getDay() - 1)
    noon = datetime(first.year, first.month, first.day, 12, tzinfo=CHINA).astimezone(UTC)
    moon = ephem.previous_new_moon(noon.replace(tzinfo=None) + timedelta(hours=12)).datetime()
    moment = moon.replace(tzinfo=UTC).astimezone(CHINA)
    # A new moon within half a minute of midnight is as good as on either day.
    assert first in {(moment + timedelta(seconds=shift)).date() for shift in (-30, 0, 30)}


@pytest.mark.parametrize(
    ("day", "words"),
    [
        ("2026-02-17", "month 1 day 1 of lunar year 2026 (丙午, year of the Horse)"),
        ("2025-07-25", "leap month 6 day 1 of lunar year 2025"),
        ("2024-02-09", "month 12 day 30 of lunar year 2023"),
    ],
)
def test_lunar_dates_that_people_know(day, words):
    assert words in ask("lunar_date", date=day).content


def test_lunar_dates_become_days():
    festival = ask("lunar_date", date="2026-8-15", from_calendar="lunar")
    assert festival.artifact["data"]["solar"] == "2026-09-25"
    leap = ask("lunar_date", date="2025-6-1", from_calendar="lunar", leap_month=True)
    assert leap.artifact["data"]["solar"] == "2025-07-25"
    plain = ask("lunar_date", date="2025-6-1", from_calendar="lunar")
    assert plain.artifact["data"]["solar"] == "2025-06-25"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"date": "2026-6-1", "from_calendar": "lunar", "leap_month": True}, "no leap month 6"),
        ({"date": "2025-5-1", "from_calendar": "lunar", "leap_month": True}, "its leap month is 6"),
        ({"date": "2026-13-1", "from_calendar": "lunar"}, "no month 13"),
        ({"date": "2026-0-1", "from_calendar": "lunar"}, "no month 0"),
        ({"date": "2026-1-31", "from_calendar": "lunar"}, "has 30 days, not 31"),
        ({"date": "2026-01-01", "leap_month": True}, "leap_month is for lunar dates"),
        ({"date": "1582-01-01"}, "1900 to 2100"),
        ({"date": "first of May", "from_calendar": "lunar"}, "YEAR-MONTH-DAY"),
    ],
)
def test_lunar_dates_that_do_not_exist_are_explained(arguments, message):
    answer = ask("lunar_date", **arguments)
    assert answer.status == "error"
    assert message in answer.content


def test_a_calendar_of_days():
    festival = ask("calendar", start="2026-02-17").content
    assert festival.startswith("2026-02-17 Tuesday, week 8, month 1 day 1")
    assert festival.endswith("Aquarius; Chinese New Year")
    assert "Pure Brightness" in ask("calendar", start="2026-04-05").content
    assert "除夕" in ask("calendar", "zh", start="2026年2月16日").content
    week = ask("calendar", start="2026-03-07", end="2026-03-01")
    assert [day["date"][-2:] for day in week.artifact["data"]] == [f"{n:02}" for n in range(1, 8)]
    year = ask("calendar", start="2026-01-01", end="2026-12-31")
    assert len(year.artifact["data"]) == 31
    assert "334 more days are left out" in year.content


def test_holidays_of_countries():
    china = ask("holidays", "zh", country="中国", year=2026)
    assert "2026-02-17 春节" in china.content
    assert "2026-02-14" in china.artifact["data"]["weekend_workdays"]
    assert china.artifact["data"] == ask("holidays", "zh", country="china", year=2026).artifact["data"]
    later = ask("holidays", country="CN", year=2027)
    assert later.status == "success"
    assert "are not known here" in later.content
    assert "Epiphany" in ask("holidays", country="Germany", region="BY", year=2026).content
    assert "Epiphany" not in ask("holidays", country="Germany", year=2026).content
    assert ask("holidays", country="United States").content.startswith("Public holidays of US in 2026")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"country": "Germny"}, "did you mean DE"),
        ({"country": "US", "region": "ZZ"}, "no region 'ZZ'"),
        ({"country": "CN", "year": 1800}, "from 1950 to 2100"),
    ],
)
def test_holidays_that_are_not_known_are_explained(arguments, message):
    answer = ask("holidays", **arguments)
    assert answer.status == "error"
    assert message in answer.content
