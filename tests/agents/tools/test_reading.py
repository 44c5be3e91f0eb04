"""What browse, wikipedia and weather make of answers that a real server on this machine gives."""

import json
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import pytest

from scrubjay.agents.tools import WebConfig, make_tools, weather, wikipedia
from scrubjay.agents.tools.base import Language
from scrubjay.agents.tools.browse import choose

OPEN = WebConfig(allow_private=True)


def now() -> datetime:
    return datetime(2026, 11, 25, 22, tzinfo=UTC)


def ask(name, language: Language = "en", **arguments):
    (tool,) = make_tools([name], language=language, clock=now, web=OPEN)
    return tool.invoke({"name": name, "args": arguments, "id": "1", "type": "tool_call"})


def article(*paragraphs, charset=""):
    body = "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    return f"<html><head>{charset}<title>Jays</title><script>track()</script></head><body><nav>Home</nav>\
<article>{body}</article></body></html>"


JAY = "Scrub jays hide thousands of acorns every autumn and remember for months where each of them lies. " * 3
MOON = "The moon was full above the oaks while nobody in the whole valley was awake to look up at it. " * 3


def test_a_page_becomes_its_text(serve):
    site = serve({"/": ("text/html", article(JAY, MOON).encode()), "/raw": ("text/plain", b"plain words")})
    answer = ask("browse", url=site.url)
    assert answer.content.startswith(site.url)
    assert JAY.strip() in answer.content
    assert "track()" not in answer.content
    assert answer.artifact["urls"] == [site.url]
    assert ask("browse", url=site.url + "raw").content == f"{site.url}raw\nplain words"


def test_a_chinese_page_names_its_own_encoding(serve):
    text = "松鸦把橡子藏在许多地方，并且记得每一处的位置和时间，几个月以后仍然能够准确地找到它们。" * 5
    page = article(text, charset='<meta charset="gbk">').encode("gbk")
    site = serve({"/": ("text/html", page)})
    assert text in ask("browse", "zh", url=site.url).content


def test_a_long_page_is_read_on(serve):
    text = "\n".join(f"line {number} " + "word " * 20 for number in range(200)).strip()
    site = serve({"/": ("text/plain", text.encode())})
    seen, start = "", 0
    while True:
        shown = ask("browse", url=site.url, start=start).content.removeprefix(site.url + "\n")
        body, note, rest = shown.rpartition("\n[")
        if not note:
            break
        seen += body
        start = int(rest.partition("start=")[2].removesuffix("]"))
        assert start == len(seen)
    assert seen + shown == text
    late = ask("browse", url=site.url, start=10**6)
    assert late.status == "error"
    assert f"the page has {len(text)} characters" in late.content


def test_a_question_chooses_passages_in_order_and_shows_what_is_left_out():
    filler = [f"Paragraph {number} is about something else entirely." for number in range(50)]
    text = "\n".join(
        [*filler[:25], "The jay hides acorns.", *filler[25:], "An acorn is found again by the jay."]
    )
    shown = choose(text, "where does the jay hide acorns", 200, "[...]")
    assert shown == "[...]\nThe jay hides acorns.\n[...]\nAn acorn is found again by the jay."
    beginning = "\n".join(filler[:2]) + "\n"
    assert choose(text, "松鸦", 100, "[...]") == choose(text, None, 100, "[...]") == beginning
    chinese = "\n".join(["天气很好。"] * 30 + ["松鸦把橡子藏起来。"] + ["天气很好。"] * 30)
    assert "松鸦把橡子藏起来" in choose(chinese, "松鸦藏什么", 60, "[...]")


def test_a_page_without_text_says_so(serve):
    site = serve({"/": ("text/html", b"<html><body></body></html>")})
    assert "has no text" in ask("browse", url=site.url).content


def test_wikipedia_gives_introductions_and_sources(serve, monkeypatch):
    pages = [
        {
            "index": 2,
            "title": "Acorn",
            "fullurl": "https://en.wikipedia.org/wiki/Acorn",
            "extract": "x" * 3000,
        },
        {
            "index": 1,
            "title": "Scrub jay",
            "fullurl": "https://en.wikipedia.org/wiki/Jay",
            "extract": "A bird.",
        },
    ]
    replies = {"jay": {"query": {"pages": pages}}, "nothing": {"batchcomplete": True}}
    replies["bad"] = {"error": {"info": "no such action"}}

    def api(handler):
        asked = parse_qs(urlsplit(handler.path).query)["gsrsearch"][0]
        handler.answer("application/json", json.dumps(replies[asked]).encode())

    site = serve({"/api": api, "/page": ("text/html", b"<html>"), "/": ("text/html", b"")})
    monkeypatch.setattr(wikipedia, "API", site.url + "api")
    answer = ask("wikipedia", query="jay")
    assert answer.content.startswith("Scrub jay\nhttps://en.wikipedia.org/wiki/Jay\nA bird.\n\nAcorn")
    assert answer.content.endswith("x [...]")
    assert answer.artifact["urls"] == [page["fullurl"] for page in reversed(pages)]
    assert ask("wikipedia", "zh", query="nothing").content == "没有找到条目。"
    assert "no such action" in ask("wikipedia", query="bad").content
    monkeypatch.setattr(wikipedia, "API", site.url + "page")
    assert "not JSON" in ask("wikipedia", query="jay").content
    assert ask("wikipedia", query=" ").status == "error"


@pytest.fixture
def sky(serve, monkeypatch):
    """A weather service that knows Paris, and notes what it is asked."""

    def place(handler):
        known = "name=Paris" in handler.path
        found = {"name": "Paris", "country": "France", "latitude": 48.85, "longitude": 2.35}
        handler.answer("application/json", json.dumps({"results": [found]} if known else {}).encode())

    def days(handler):
        asked = parse_qs(urlsplit(handler.path).query)
        reply = {
            "daily": {
                "time": [asked["start_date"][0], asked["end_date"][0]],
                "weather_code": [61, 1234],
                "temperature_2m_max": [9.5, None],
                "temperature_2m_min": [3.0, None],
                "precipitation_sum": [4.2, None],
                "wind_speed_10m_max": [20.1, None],
            }
        }
        if "current" in asked:
            names = asked["current"][0].split(",")
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
        ({"location": "Nowhere"}, "no place is called 'Nowhere'"),
        ({"location": "Paris", "start": "2027-01-01"}, "to 2026-12-10"),
        ({"location": "Paris", "start": "2026-01-01", "end": "2026-02-01"}, "at most 31 days"),
        ({"location": "Paris", "start": "2026-02-30"}, "28 days"),
    ],
)
def test_weather_that_is_not_known_is_explained(sky, arguments, message):
    answer = ask("weather", **arguments)
    assert answer.status == "error"
    assert message in answer.content
