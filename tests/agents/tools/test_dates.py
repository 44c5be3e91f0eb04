"""Parsing of dates and times."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents.tools.dates import parse_day, parse_moment

from .asking import MOMENTS, now


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
        ("0000-01-01", "the year must be from 1 to 9999"),
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
    except ValueError as raised_error:
        error = raised_error
    else:
        return
    assert repr(text) in str(error)
