"""Lunar dates compared with ephem's new moons and with well-known dates."""

from datetime import UTC, date, datetime, timedelta

import ephem
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.agents.tools.calendar import CHINA, from_lunar, to_lunar

from .asking import ask

pytestmark = pytest.mark.requires("ephem", "lunar_python")

LUNAR_DAYS = st.dates(date(1900, 2, 1), date(2100, 12, 31))


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
    # A new moon within half a minute of midnight counts for both days.
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
        ({"date": "2026-01-01", "leap_month": True}, "leap_month is only for lunar dates"),
        ({"date": "1582-01-01"}, "1900 to 2100"),
        ({"date": "first of May", "from_calendar": "lunar"}, "YEAR-MONTH-DAY"),
    ],
)
def test_lunar_dates_that_do_not_exist_are_explained(arguments, message):
    answer = ask("lunar_date", **arguments)
    assert answer.status == "error"
    assert message in answer.content
