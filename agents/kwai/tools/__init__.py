"""Tools that an agent can call: facts from the web, exact time and arithmetic."""

from scrubjay.agents.kwai.tools.base import ToolUnavailable
from scrubjay.agents.kwai.tools.registry import list_tools, make_tools
from scrubjay.agents.kwai.tools.replay import Replay
from scrubjay.agents.kwai.tools.web import WebConfig

__all__ = ["Replay", "ToolUnavailable", "WebConfig", "list_tools", "make_tools"]
