"""The tools used by the agent, on the example of KwaiAgents: a difference between two ages."""

from datetime import UTC, date, datetime

from scrubjay.agents.kwai import KwaiAgent
from scrubjay.agents.tools import Replay, make_tools
from scrubjay.agents.tools.base import ToolResult

from ...kwai.scripted_model import ScriptedModel, call


def now() -> datetime:
    return datetime(2026, 11, 25, tzinfo=UTC)


def test_a_gap_between_two_ages_from_recorded_pages_and_exact_time(tmp_path):
    replay = Replay(tmp_path / "answers.jsonl")
    for name, birth_date in (("Ada Lovelace", "10 December 1815"), ("Alan Turing", "23 June 1912")):
        answer = ToolResult(f"{name} was born on {birth_date}.", (f"https://example.org/{name}",))
        replay.add("wikipedia", "en", {"query": name, "count": 2}, answer, date(2026, 11, 1))
    script = [
        call("web_search", id="a", query="Ada Lovelace"),
        call("wikipedia", id="b", query="Ada Lovelace"),
        call("wikipedia", id="c", query="Alan Turing"),
        call("time_delta", id="d", start="1815-12-10", end="1912-06-23"),
        "I know both.",
        "96 years, 6 months and 13 days.",
    ]
    tools = make_tools("auto", offline=True, replay=replay, clock=now)
    agent = KwaiAgent(ScriptedModel(replies=script), tools, clock=now)
    result = agent.invoke("How much older was Ada Lovelace than Alan Turing?")
    search, ada, alan, gap = [message for message in result["messages"] if message.type == "tool"]
    assert (search.status, ada.status, alan.status, gap.status) == ("error", "success", "success", "success")
    assert "web_search is unavailable (offline)" in search.text
    assert "[recorded on 2026-11-01] Ada Lovelace was born on 10 December 1815." in ada.text
    assert "https://example.org/Alan Turing" in alan.text
    assert "96 years, 6 months, 13 days" in gap.text
    assert "trusted tool" in gap.text
    assert "trusted tool" not in ada.text
    assert result["messages"][-1].text == "96 years, 6 months and 13 days."
