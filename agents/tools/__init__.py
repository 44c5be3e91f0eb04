"""Tools that an agent can call: facts from the web, exact time and arithmetic."""

from scrubjay.agents.language.declarations import tool
from scrubjay.agents.tools.base import Replay, ToolUnavailable
from scrubjay.agents.tools.registry import list_tools, make_tools
from scrubjay.agents.tools.web import WebConfig

__all__ = ["Replay", "ToolUnavailable", "WebConfig", "list_tools", "make_tools", "tool"]
