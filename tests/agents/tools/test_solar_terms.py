"""Solar terms compared with ephem's sun and published instants."""

import itertools
import math
from datetime import UTC, datetime, timedelta

import ephem
import pytest

from scrubjay.agents.tools.calendar import TERMS, solar_terms

pytestmark = pytest.mark.requires("ephem", "lunar_python")


def sun_longitude(moment: datetime) -> float:
    """Return the sun's apparent ecliptic longitude in degrees, as ephem computes it."""
    when = ephem.Date(moment.astimezone(UTC).replace(tzinfo=None))
    sun = ephem.Sun(when)
    return math.degrees(float(ephem.Ecliptic(ephem.Equatorial(sun.ra, sun.dec, epoch=when)).lon))


@pytest.mark.parametrize("year", [1900, 1930, 1950, 1979, 2000, 2012, 2026, 2049, 2075, 2100])
def test_at_every_solar_term_the_sun_is_where_it_should_be(year):
    """The tolerance is one minute, in which the sun moves by 1/1440 of 0.9856 degrees."""
    terms = solar_terms(year)
    assert list(terms) == list(TERMS)
    for number, moment in enumerate(terms.values()):
        off = (sun_longitude(moment) - 285 - 15 * number + 180) % 360 - 180
        assert abs(off) / 0.9856 * 1440 < 1, (year, number, off)


@pytest.mark.parametrize(
    ("name", "published_time"),
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
def test_equinoxes_and_solstices_are_those_published(name, published_time):
    moment = datetime.fromisoformat(published_time).replace(tzinfo=UTC)
    assert abs(solar_terms(moment.year)[name] - moment) <= timedelta(minutes=1)


@pytest.mark.slow
def test_terms_are_in_order_every_year():
    for year in range(1900, 2101):
        moments = list(solar_terms(year).values())
        assert all(14 <= (b - a).days <= 16 for a, b in itertools.pairwise(moments)), year
        assert {moment.year for moment in moments} == {year}
