"""Spans of time obey the calendar."""

import calendar
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given

from scrubjay.agents.tools import make_tools

from .asking import MOMENTS, ask


@given(MOMENTS, MOMENTS)
def test_a_span_leads_from_its_start_to_its_end(one, other):
    start, end = min(one, other), max(one, other)
    data = ask("time_delta", start=str(start), end=str(end)).artifact["data"]
    rest = timedelta(data["days"], data["seconds"])
    assert 0 <= data["months"] < 12
    assert 0 <= data["seconds"] < 86_400
    assert timedelta(0) <= rest < timedelta(31)
    assert add_months(start, data["years"] * 12 + data["months"]) + rest == end


def add_months(moment, months):
    """Return the same day of the month, `months` months later; in a shorter month, return its last day."""
    year, month = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    day = min(moment.day, calendar.monthrange(year, month + 1)[1])
    return moment.replace(year=year, month=month + 1, day=day)


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
    answer = ask("time_delta", start="2026-01-01 00:00", end="2026-01-01 00:00Z")
    assert answer.status == "error"
    assert "to both or to neither" in answer.content
    assert ask("time_delta", start="2026-11-25", end="now").artifact["data"]["total_seconds"] == 22.5 * 3600


@pytest.mark.parametrize("start", ["now", "2026-03-28T23:00Z"])
def test_a_change_of_the_clock_is_no_time(start):
    def spring() -> datetime:
        return datetime(2026, 3, 29, 12, tzinfo=ZoneInfo("Europe/Berlin"))

    (tool,) = make_tools(["time_delta"], clock=spring)
    arguments = {"start": start, "end": {"now": "2026-03-28T23:00Z"}.get(start, "now")}
    answer = tool.invoke({"args": arguments, "name": "time_delta", "id": "1", "type": "tool_call"})
    assert answer.artifact["data"]["total_seconds"] == 11 * 3600  # by the wall it would be 12
