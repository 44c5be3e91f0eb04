"""State of a question: events, steps, and the addresses that a call may contain."""

from datetime import UTC, datetime
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from scrubjay.agents.kwai.limits import Limits, Meter
from scrubjay.agents.kwai.turn import Passage, Step, Turn
from scrubjay.memory import MemoryBank


def make_turn(question="Where is it?", **fields):
    defaults = {"dialogue": [], "window": [], "knowledge": (), "meter": Meter(Limits(), len)}
    return Turn(
        user_message=HumanMessage(question),
        clock=lambda: datetime(2026, 11, 30, tzinfo=UTC),
        **defaults | fields,
    )


def make_step(result, status: Any = "success", trusted=False, **arguments):
    return Step(1, "read", "browse", arguments, "call_1", result, status, ("json",), trusted)


def test_events_are_counted_and_shortened():
    turn = make_turn()
    (first,) = turn.make_event("thought", "x" * 100)["events"]
    (second,) = turn.make_event("finish", "x" * 101)["events"]
    assert (first.index, second.index) == (0, 1)
    assert first.short_text == "x" * 100
    assert second.short_text == "x" * 99 + "…"


def test_events_of_plans_and_answers_have_the_recalled_records():
    bank = MemoryBank(":memory:")
    bank.add("The key is blue.")
    turn = make_turn(recalled_records=list(bank.search("key")))
    counts = {
        action: len(turn.make_event(action, "")["events"][0].recalled_records)
        for action in ("thinking", "conclusion", "execute")
    }
    assert counts == {"thinking": 1, "conclusion": 1, "execute": 0}


@pytest.mark.parametrize("result", ["", " ", "null", "[]", "{}", '""'])
def test_empty_results_are_not_sufficient(result):
    assert not make_step(result).sufficient
    assert make_step(result + "x").sufficient
    assert not make_step(result + "x", status="error").sufficient


def test_addresses_of_users_and_sources_are_allowed_and_those_of_the_model_are_not():
    turn = make_turn(
        "Read a.org/page",
        dialogue=[HumanMessage("b.org"), AIMessage("https://model.org")],
        knowledge=(Passage("c.org", True), Passage("d.org https://e.org/x", False)),
        steps=[make_step("https://f.org https://g.org", url="https://g.org")],
    )
    addresses = turn.allowed_addresses()
    for address in ("https://a.org/page", "b.org", "c.org", "https://e.org/x", "https://f.org"):
        assert address in addresses
    for address in ("https://model.org", "d.org", "https://g.org", "https://a.org/other"):
        assert address not in addresses
