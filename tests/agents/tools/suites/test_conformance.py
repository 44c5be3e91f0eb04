"""Langchain's standard tests for every tool, with recorded answers in place of the network."""

from datetime import date

import pytest
from langchain_core.tools import BaseTool
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests

from scrubjay.agents.tools import Replay, list_tools, make_tools
from scrubjay.agents.tools.base import ToolResult

pytestmark = pytest.mark.requires("langchain_tests")

EXAMPLES = {
    "web_search": {"query": "scrub jay", "count": 3},
    "browse": {"url": "https://example.com/", "question": None, "start": 0},
    "wikipedia": {"query": "scrub jay", "count": 1},
    "weather": {"location": "Paris", "start": None, "end": None},
    "calendar": {"start": "2026-02-17"},
    "holidays": {"country": "CN", "year": 2026},
    "solar_terms": {"year": 2026},
    "lunar_date": {"date": "2026-02-17"},
    "time_delta": {"start": "2026-01-01", "end": "2026-02-17"},
    "calculator": {"expression": "1 + 1"},
}
PACKAGES = {
    "calendar": ["holidays", "lunar_python"],
    "holidays": ["holidays", "lunar_python"],
    "solar_terms": ["lunar_python"],
    "lunar_date": ["lunar_python"],
    "calculator": ["simpleeval"],
}


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    answers = Replay(tmp_path_factory.mktemp("tools") / "answers.jsonl")
    result = ToolResult("As recorded.", ("https://example.com/",), [])
    for name, arguments in EXAMPLES.items():
        answers.add(name, "en", arguments, result, date(2026, 11, 25))
    return answers


class Standard:
    name = ""

    @pytest.fixture
    def tool(self, replay):
        (tool,) = make_tools([self.name], offline=True, replay=replay)
        tool.handle_tool_error = False  # otherwise a failure would look like an answer
        return tool

    @property
    def tool_constructor(self) -> BaseTool:
        (tool,) = make_tools([self.name])
        return tool

    @property
    def tool_invoke_params_example(self):
        return EXAMPLES[self.name]


def test_every_tool_has_an_example():
    assert list(EXAMPLES) == list_tools()


for _name in EXAMPLES:
    for _suite in (ToolsUnitTests, ToolsIntegrationTests):
        _title = f"Test{_name.title().replace('_', '')}{_suite.__name__}"
        # Without its package a tool is unavailable, which is an error.
        _mark = pytest.mark.requires(*PACKAGES.get(_name, ()))
        globals()[_title] = _mark(type(_title, (Standard, _suite), {"name": _name}))
