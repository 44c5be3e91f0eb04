"""The old name of `scrubjay.agents.tools`, kept for one release."""

from scrubjay.agents.tools import Replay, ToolUnavailable, WebConfig, list_tools, make_tools

__all__ = ["Replay", "ToolUnavailable", "WebConfig", "list_tools", "make_tools"]
