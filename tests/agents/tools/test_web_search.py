"""The web search tool."""

import pytest

from scrubjay.agents.tools import make_tools

from .asking import call


@pytest.mark.requires("ddgs")
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
