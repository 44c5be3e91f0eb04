"""The calendar tool."""

import pytest

from .asking import ask


@pytest.mark.requires("lunar_python", "holidays")
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
