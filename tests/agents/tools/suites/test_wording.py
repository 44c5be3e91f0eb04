"""Messages of failed calls, in both languages."""

import re
import sys
from datetime import UTC, datetime
from typing import Any

import pytest

from scrubjay.agents.tools import WebConfig, make_tools

CHINESE = re.compile(r"[\u4e00-\u9fff]")


def error_text(tool, **arguments) -> Any:
    message = tool.invoke({"name": tool.name, "args": arguments, "id": "1", "type": "tool_call"})
    assert message.status == "error", message.content
    return message.content


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("calculator", {"expression": "1" * 501}),
    ("calculator", {"expression": "1/0"}),
    ("calculator", {"expression": "15% of"}),
    ("calculator", {"expression": "1,000 + 1"}),
    ("calculator", {"expression": "2 +"}),
    ("calculator", {"expression": "nobody(3)"}),
    ("calculator", {"expression": "'a' * 3"}),
    ("calculator", {"expression": "9**9**9"}),
    ("calculator", {"expression": "exp(10000)"}),
    ("calculator", {"expression": "(-1) ** 0.5"}),
    ("calculator", {"expression": "round(2.5, 200)"}),
    ("calculator", {"expression": "factorial(5000)"}),
    ("calculator", {"expression": "sqrt(-1)"}),
    ("calculator", {"expression": "(" * 240 + "1" + ")" * 240}),
    ("calculator", {}),
    ("calculator", {"expression": 3, "digits": 2}),
    ("time_delta", {"start": "2026-06-31", "end": "today"}),
    ("time_delta", {"start": "2026-13-01", "end": "today"}),
    ("time_delta", {"start": "0-1-1", "end": "today"}),
    ("time_delta", {"start": "yesterday", "end": "today"}),
    ("time_delta", {"start": "2026-06-30 ten", "end": "today"}),
    ("time_delta", {"start": "2026-06-30 25:00", "end": "today"}),
    ("time_delta", {"start": "2026-06-30 10:00", "end": "now"}),
    ("lunar_date", {"date": "2026-2-3", "from_calendar": "lunar", "leap_month": True}),
    ("lunar_date", {"date": "2025-7-3", "from_calendar": "lunar", "leap_month": True}),
    ("lunar_date", {"date": "2026-13-3", "from_calendar": "lunar"}),
    ("lunar_date", {"date": "2026-1-31", "from_calendar": "lunar"}),
    ("lunar_date", {"date": "first", "from_calendar": "lunar"}),
    ("lunar_date", {"date": "today", "leap_month": True}),
    ("lunar_date", {"date": "today", "from_calendar": "moon"}),
    ("solar_terms", {"year": 1800}),
    ("solar_terms", {"year": "next"}),
    ("holidays", {"country": "Atlantis"}),
    ("holidays", {"country": "Germny"}),
    ("holidays", {"country": "US", "region": "Bavaria"}),
    ("holidays", {"country": "CN", "year": 1700}),
    ("weather", {"location": "Paris", "start": "2027-12-01"}),
    ("weather", {"location": "Paris", "start": "2026-01-01", "end": "2026-03-01"}),
    ("wikipedia", {"query": " "}),
    ("wikipedia", {"query": "jay", "count": 6}),
    ("web_search", {"query": " "}),
    ("web_search", {"query": "jay", "count": 0}),
    ("browse", {"url": "ftp://example.com"}),
    ("browse", {"url": "http://[bad"}),
    ("browse", {"url": "http://a:b@example.com"}),
    ("browse", {"url": "http://example.com:22"}),
    ("browse", {"url": "http://127.0.0.1/"}),
    ("browse", {"url": "http://169.254.169.254/latest/meta-data"}),
    ("browse", {"url": "http://example.com", "start": -1}),
]


@pytest.mark.parametrize(("name", "arguments"), WRONG, ids=lambda value: str(value)[:50])
def test_a_wrong_call_is_told_in_the_language_of_the_tools(name, arguments):
    def clock():
        return datetime(2026, 11, 25, tzinfo=UTC)

    english, chinese = (
        error_text(make_tools([name], language=language, clock=clock)[0], **arguments)
        for language in ("en", "zh")
    )
    assert not CHINESE.search(english)
    # English may remain in values: names, addresses, arguments, and messages of libraries.
    assert CHINESE.search(chinese.partition("：")[2])
    numbers = [set(re.findall(r"\d+", text)) for text in (english, chinese)]
    assert numbers[1] <= numbers[0]


def failing(serve):
    """Yield addresses that fail: routes of a server, and a host that does not exist."""
    site = serve(
        {
            "/picture": ("image/png", b"x"),
            "/busy": lambda handler: handler.send_error(503),
            "/late": lambda handler: handler.wfile.write(b"HTTP/1.1 nonsense\r\n\r\n"),
        }
    )
    yield from (site.url + path for path in ("picture", "busy", "late", "nowhere"))
    yield "http://no.such.host.invalid/"


def test_what_servers_do_is_told_in_both_languages(serve):
    web = WebConfig(allow_private=True)
    tools = [make_tools(["browse"], language=language, web=web)[0] for language in ("en", "zh")]
    for url in failing(serve):
        english, chinese = (error_text(tool, url=url) for tool in tools)
        assert not CHINESE.search(english)
        assert CHINESE.search(chinese.partition("：")[2]), chinese


def test_a_missing_package_is_told_in_both_languages(monkeypatch):
    monkeypatch.setitem(sys.modules, "simpleeval", None)
    (tool,) = make_tools(["calculator"], language="zh")
    assert error_text(tool, expression="1") == (
        'calculator 不可用：缺少软件包 simpleeval。pip install "scrubjay[agent]"'
    )
