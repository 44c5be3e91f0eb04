"""Selection of tools by English and Chinese name, online and offline."""

import subprocess
import sys
from datetime import datetime

import pytest

from scrubjay.agents.tools import list_tools, make_tools

from .asking import EXAMPLES, NETWORK, call, clock


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


def test_auto_is_all_and_none_or_notool_none():
    assert [tool.name for tool in make_tools()] == list_tools()
    assert [tool.name for tool in make_tools(["auto"])] == list_tools()
    assert make_tools("none") == make_tools("notool") == make_tools(["none"]) == make_tools([]) == []
    assert [tool.name for tool in make_tools(["calculator", "计算器"])] == ["calculator"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["calculato"]}, "did you mean 'calculator'"),
        (
            {"names": ["nosuch"]},
            "^unknown tool 'nosuch'; the tools are web_search, browse, .*, none is no tool$",
        ),
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
@pytest.mark.requires("holidays", "lunar_python", "simpleeval")
def test_tools_of_time_answer_in_both_languages(language):
    for tool in make_tools(offline=True, language=language, clock=clock):
        message = call(tool, **EXAMPLES[tool.name])
        assert message.status == "success", message.content
        assert message.artifact["data"] is not None
        if language == "en" and tool.name not in ("solar_terms", "calendar", "lunar_date"):
            assert message.content.isascii()


@pytest.mark.requires("holidays", "lunar_python", "simpleeval")
def test_the_clock_is_the_given_one():
    (calendar, delta) = make_tools(["calendar", "time_delta"], clock=clock)
    assert call(calendar).content.startswith("2026-11-25 Wednesday")
    assert "(1 day" in call(delta, start="today", end="2026-11-26").content.replace("(1 days", "(1 day")
    assert call(delta, start="now", end="2026-11-26").artifact["data"]["total_seconds"] == 7200


@pytest.mark.slow
def test_importing_the_tools_imports_nothing_that_they_are_made_with():
    code = "import sys, scrubjay.agents.tools; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    made_with = {"ddgs", "primp", "trafilatura", "lxml", "holidays", "lunar_python", "simpleeval", "torch"}
    assert made_with.isdisjoint(done.stdout.split())
