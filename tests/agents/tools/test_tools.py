"""Tools as a planner meets them: chosen by name, called, refused, without network."""

import socket
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from langchain_core.tools import ToolException

from scrubjay.agents.tools import Replay, ToolUnavailable, WebConfig, list_tools, make_tools

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


def clock() -> datetime:
    return datetime(2026, 11, 25, 22, 0, tzinfo=timezone(timedelta(hours=8)))


def call(tool, **arguments) -> Any:
    return tool.invoke({"name": tool.name, "args": arguments, "id": "1", "type": "tool_call"})


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


def test_names_in_both_languages_choose_the_same_tools():
    assert list_tools() == list(EXAMPLES)
    for name, zh_name in zip(list_tools(), list_tools("zh"), strict=True):
        (english,), (chinese,) = make_tools([name]), make_tools([zh_name], language="zh")
        assert english.name == chinese.name == name
        assert english.description != chinese.description
        assert english.args.keys() == chinese.args.keys()
        assert [a.get("description") for a in english.args.values()] != [
            a.get("description") for a in chinese.args.values()
        ]


def test_auto_is_all_and_notool_none():
    assert [tool.name for tool in make_tools()] == list_tools()
    assert [tool.name for tool in make_tools(["auto"])] == list_tools()
    assert make_tools("notool") == make_tools(["notool"]) == make_tools([]) == []
    assert [tool.name for tool in make_tools(["calculator", "计算器"])] == ["calculator"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["calculato"]}, "did you mean 'calculator'"),
        ({"language": "fr"}, "unknown language 'fr'"),
        ({"clock": datetime.now}, "time zone"),
    ],
)
def test_impossible_choices_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_tools(**arguments)


def test_only_tools_that_read_strangers_words_are_untrusted():
    untrusted = {tool.name for tool in make_tools() if (tool.metadata or {})["untrusted"]}
    assert untrusted == set(NETWORK)
    assert not any((tool.metadata or {})["side_effect"] for tool in make_tools())


def test_offline_leaves_network_tools_out_unless_they_are_named():
    assert not {tool.name for tool in make_tools(offline=True)} & set(NETWORK)
    for tool in make_tools(NETWORK, offline=True):
        message = call(tool, **EXAMPLES[tool.name])
        assert message.status == "error"
        assert message.content.startswith(f"{tool.name} is unavailable (offline)")


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", NETWORK[1:])
def test_without_network_the_planner_is_told(name, language, no_network):
    (tool,) = make_tools([name], language=language)
    message = call(tool, **EXAMPLES[name])
    assert message.status == "error"
    assert ("offline" if language == "en" else "离线") in message.content
    assert "Traceback" not in message.content
    tool.handle_tool_error = False
    with pytest.raises(ToolUnavailable) as caught:
        tool.invoke(EXAMPLES[name])
    assert isinstance(caught.value, ToolException)
    assert caught.value.tool == name
    assert caught.value.offline
    assert ("could not be resolved" if language == "en" else "无法解析域名") in caught.value.cause


def test_search_without_an_engine_in_reach_is_unavailable():
    (tool,) = make_tools(["web_search"])
    from ddgs import DDGS
    from ddgs.exceptions import DDGSException

    def fail(*_, **__):
        raise DDGSException("DNSError: error resolving DNS")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(DDGS()), "text", fail)
        message = call(tool, query="scrub jay")
    assert message.status == "error"
    assert "unavailable (offline)" in message.content


def test_a_wrong_call_is_answered_with_the_arguments():
    (tool,) = make_tools(["time_delta"])
    message = call(tool, begin="2026-01-01")
    assert message.status == "error"
    assert "start" in message.content
    assert "begin: Extra inputs" in message.content


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "simpleeval", None)
    (tool,) = make_tools(["calculator"])
    message = call(tool, expression="1 + 1")
    assert message.status == "error"
    assert "simpleeval" in message.content
    assert 'pip install "scrubjay[agent]"' in message.content
    assert "offline" not in message.content


@pytest.mark.parametrize("language", ["en", "zh"])
def test_tools_of_time_answer_in_both_languages(language):
    for tool in make_tools(offline=True, language=language, clock=clock):
        message = call(tool, **EXAMPLES[tool.name])
        assert message.status == "success", message.content
        assert message.artifact["data"] is not None
        if language == "en" and tool.name not in ("solar_terms", "calendar", "lunar_date"):
            assert message.content.isascii()


def test_the_clock_is_the_given_one():
    (calendar, delta) = make_tools(["calendar", "time_delta"], clock=clock)
    assert call(calendar).content.startswith("2026-11-25 Wednesday")
    assert "(1 day" in call(delta, start="today", end="2026-11-26").content.replace("(1 days", "(1 day")
    assert call(delta, start="now", end="2026-11-26").artifact["data"]["total_seconds"] == 7200


def test_limits_that_let_nothing_through_are_refused():
    with pytest.raises(ValueError, match="total_seconds must be above 0"):
        WebConfig(total_seconds=0)
    with pytest.raises(ValueError, match="most_redirects"):
        WebConfig(most_redirects=-1)


def test_answers_are_recorded_and_given_again_without_network(tmp_path, serve):
    site = serve({"/": ("text/plain", b"Jays cache food.")})
    path = tmp_path / "deep" / "answers.jsonl"
    web = WebConfig(allow_private=True)
    (live,) = make_tools(["browse"], clock=clock, replay=path, web=web)
    first = call(live, url=site.url)
    assert first.artifact["recorded"] is None
    site.stop()
    for tools in (
        make_tools(["browse"], replay=path, web=web),
        make_tools(["browse"], replay=Replay(path), offline=True),
    ):
        again = call(tools[0], url=site.url)
        assert again.content == f"[recorded on 2026-11-25] {first.content}"
        assert again.artifact == first.artifact | {"recorded": "2026-11-25"}
    (chinese,) = make_tools(["browse"], replay=path, offline=True, language="zh")
    assert call(chinese, url=site.url).status == "error"  # recorded in another language
    assert call(tools[0], url=site.url + "other").status == "error"
    assert site.paths == ["/"]


def test_importing_the_tools_imports_nothing_that_they_are_made_with():
    code = "import sys, scrubjay.agents.tools; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    made_with = {"ddgs", "primp", "trafilatura", "lxml", "holidays", "lunar_python", "simpleeval", "torch"}
    assert made_with.isdisjoint(done.stdout.split())
