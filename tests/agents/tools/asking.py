"""Helpers that call one tool with a fixed clock."""

from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import strategies as st

from scrubjay.agents.tools import WebConfig, make_tools
from scrubjay.agents.tools.base import Language
from scrubjay.agents.tools.calendar import CHINA

OPEN = WebConfig(allow_private=True)
MOMENTS = st.datetimes(datetime(1583, 1, 1), datetime(9998, 12, 31)).map(lambda m: m.replace(microsecond=0))
NETWORK = ["web_search", "browse", "wikipedia", "weather"]
EXAMPLES = {
    "web_search": {"query": "scrub jay"},
    "browse": {"url": "https://example.com/"},
    "wikipedia": {"query": "scrub jay"},
    "weather": {"location": "Paris"},
    "calendar": {"start": "2026-02-17"},
    "holidays": {"country": "CN", "year": 2026},
    "solar_terms": {"year": 2026},
    "lunar_date": {"date": "2026-02-17"},
    "time_delta": {"start": "2026-01-01", "end": "2026-02-17"},
    "calculator": {"expression": "1 + 1"},
}


def now() -> datetime:
    return datetime(2026, 11, 25, 22, 30, tzinfo=CHINA)


def ask(name, language: Language = "en", **arguments):
    (tool,) = make_tools([name], language=language, clock=now, web=OPEN)
    return tool.invoke({"name": name, "args": arguments, "id": "1", "type": "tool_call"})


def clock() -> datetime:
    return datetime(2026, 11, 25, 22, 0, tzinfo=timezone(timedelta(hours=8)))


def call(tool, **arguments) -> Any:
    return tool.invoke({"name": tool.name, "args": arguments, "id": "1", "type": "tool_call"})
