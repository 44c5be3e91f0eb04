"""The weather tool on answers of a local server."""

import json
from urllib.parse import parse_qs, urlsplit

import pytest

from scrubjay.agents.tools import weather

from .asking import ask


@pytest.fixture
def sky(serve, monkeypatch):
    """Return a weather service that knows Paris and records its requests."""

    def place(handler):
        is_paris = "name=Paris" in handler.path
        paris = {"name": "Paris", "country": "France", "latitude": 48.85, "longitude": 2.35}
        handler.answer("application/json", json.dumps({"results": [paris]} if is_paris else {}).encode())

    def days(handler):
        query = parse_qs(urlsplit(handler.path).query)
        reply = {
            "daily": {
                "time": [query["start_date"][0], query["end_date"][0]],
                "weather_code": [61, 1234],
                "temperature_2m_max": [9.5, None],
                "temperature_2m_min": [3.0, None],
                "precipitation_sum": [4.2, None],
                "wind_speed_10m_max": [20.1, None],
            }
        }
        if "current" in query:
            names = query["current"][0].split(",")
            reply["current"] = dict.fromkeys(names, 3) | {"time": "2026-11-25T22:00"}
        handler.answer("application/json", json.dumps(reply).encode())

    site = serve({"/places": place, "/forecast": days, "/archive": days})
    for name in ("places", "forecast", "archive"):
        monkeypatch.setattr(weather, name.upper(), site.url + name)
    return site


def test_weather_of_now_of_past_days_and_of_days_to_come(sky):
    answer = ask("weather", location="Paris")
    assert "now (2026-11-25T22:00): overcast, 3 °C, humidity 3%, wind 3 km/h" in answer.content
    assert answer.content.endswith("Source: Open-Meteo.com")
    answer = ask("weather", location="Paris", start="2026-12-01", end="2026-12-10")
    assert (
        "2026-12-01: light rain, 3.0 to 9.5 °C, precipitation 4.2 mm, wind up to 20.1 km/h" in answer.content
    )
    assert "2026-12-10: no data" in answer.content
    assert "小雨，3.0 至 9.5 °C" in ask("weather", "zh", location="Paris", start="2026-12-01").content
    ask("weather", location="Paris", start="2020-01-02", end="2020-01-01")
    assert [path.partition("?")[0] for path in sky.paths[1::2]] == ["/forecast"] * 3 + ["/archive"]
    assert "start_date=2020-01-01&end_date=2020-01-02" in sky.paths[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"location": "Nowhere"}, "no place is named 'Nowhere'"),
        ({"location": "Paris", "start": "2027-01-01"}, "on 2026-12-10"),
        ({"location": "Paris", "start": "2026-01-01", "end": "2026-02-01"}, "at most 31 days"),
        ({"location": "Paris", "start": "2026-02-30"}, "28 days"),
    ],
)
def test_weather_that_is_not_known_is_explained(sky, arguments, message):
    answer = ask("weather", **arguments)
    assert answer.status == "error"
    assert message in answer.content


PLACE = {"name": "Paris", "latitude": 48.85, "longitude": 2.35}
DAY = {
    "time": "2026-11-25",
    "weather_code": 61,
    "temperature_2m_max": 9.5,
    "temperature_2m_min": 3.0,
    "precipitation_sum": 4.2,
    "wind_speed_10m_max": 20.1,
}


def to_columns(day, count=1):
    return {name: [value] * count for name, value in day.items()}


@pytest.mark.parametrize(
    ("place", "forecast"),
    [
        (5, {}),
        ({"name": "Paris"}, {}),
        (PLACE, {"daily": 5}),
        (PLACE, {"daily": to_columns(DAY | {"time": "soon"})}),
        (PLACE, {"daily": to_columns(DAY | {"weather_code": []})}),
        (PLACE, {"daily": to_columns(DAY | {"temperature_2m_max": "x" * 100_000})}),
        (PLACE, {"daily": to_columns(DAY, 10_000)}),
        (PLACE, {"daily": {"time": ["2026-11-25"]}}),
        (PLACE, {"current": ["x"]}),
        (PLACE, {"current": {"time": "x" * 100_000}}),
    ],
)
def test_an_answer_of_another_form_is_explained(serve, monkeypatch, place, forecast):
    bodies = {"/places": {"results": [place]}, "/forecast": forecast}
    site = serve({path: ("application/json", json.dumps(body).encode()) for path, body in bodies.items()})
    for name in ("places", "forecast"):
        monkeypatch.setattr(weather, name.upper(), site.url + name)
    answer = ask("weather", location="Paris")
    assert answer.status == "error"
    assert "an answer of another form" in answer.content
    assert len(answer.content) < 1000
