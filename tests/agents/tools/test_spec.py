"""Messages for the planner if a call fails."""

import socket
import sys

import pytest
from langchain_core.tools import ToolException

from scrubjay.agents.tools import ToolUnavailable, make_tools

from .asking import EXAMPLES, NETWORK, call


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", NETWORK[1:])
def test_without_network_the_planner_is_told(name, language, no_network):
    (tool,) = make_tools([name], language=language)
    message = call(tool, **EXAMPLES[name])
    assert message.status == "error"
    assert ("offline" if language == "en" else "离线") in message.content
    assert "Traceback" not in message.content
    tool.handle_tool_error = False
    with pytest.raises(ToolUnavailable) as raises:
        tool.invoke(EXAMPLES[name])
    assert isinstance(raises.value, ToolException)
    assert raises.value.tool == name
    assert raises.value.offline
    assert ("could not be resolved" if language == "en" else "无法解析域名") in raises.value.cause


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
