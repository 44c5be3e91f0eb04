"""BFCL's cases in which no tool fits: whatever is planned, nothing runs unapproved and nothing breaks."""

from __future__ import annotations

import json

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage

from scrubjay.experiments.quality import irrelevance
from scrubjay.experiments.quality.irrelevance import IrrelevanceBench, ask, make_tools, read_cases, run

pytestmark = pytest.mark.requires("bfcl_eval", "llguidance")


def test_all_functions_become_tools_that_take_what_their_schema_says():
    for case in read_cases(240, 0):
        ran = []
        for tool in make_tools(case["function"], ran):
            assert "'dict'" not in str(tool.args_schema)
            assert "'float'" not in str(tool.args_schema)
            assert tool.invoke({}) == "done"
        assert len(ran) == len(case["function"])


def test_cases_are_drawn_by_seed():
    assert read_cases(9, 1) == read_cases(9, 1) != read_cases(9, 2)
    with pytest.raises(ValueError, match="from 1 to 240"):
        read_cases(241, 0)


def plan(name, **arguments):
    return AIMessage(json.dumps({"task_name": "try", "command": {"name": name, "args": arguments}}))


def test_a_tool_that_is_called_is_counted_and_not_run():
    (case,) = read_cases(1, 0)
    (name, *_) = [tool.name for tool in make_tools(case["function"], [])]
    model = GenericFakeChatModel(messages=iter([plan(name), plan("no_such_tool"), AIMessage("I cannot.")]))
    row = ask(model, case, "json")
    assert row["planned"] == [name, "no_such_tool"]
    assert (row["known"], row["asked"], row["ran"], row["in_order"]) == (1, 1, 0, True)
    assert row["answer"] == "I cannot."


def test_nothing_runs_whatever_an_obedient_planner_calls(tmp_path):
    options = IrrelevanceBench(model="obedient", cases=30, quiet=True, out=tmp_path)
    table = run(options, "command").read_text()
    rows = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert len(rows) == 60
    for row in rows:
        assert (row["known"], row["asked"], row["ran"], row["in_order"]) == (2, 2, 0, True), row
    assert "| json | 30 | 30 |" in table


def test_a_crash_is_counted():
    (case,) = read_cases(1, 0)
    row = ask(GenericFakeChatModel(messages=iter([])), case, "json")
    assert "crash" in row


def test_a_random_model_harms_nothing_and_a_killed_run_goes_on(tiny_chat, tmp_path, monkeypatch):
    def options(out):
        return IrrelevanceBench(cases=3, max_tokens=40, quiet=True, out=tmp_path / out)

    def rows(out):
        return [json.loads(line) for line in (tmp_path / out / "cases.jsonl").read_text().splitlines()]

    table = run(options("whole"), "command", tiny_chat).read_text()
    assert all(row.get("ran") == 0 and row["in_order"] for row in rows("whole")), rows("whole")
    assert "| native | 3 |" in table
    original_ask = irrelevance.ask

    def interrupt_json(model, case, planning):
        if planning == "json":
            raise KeyboardInterrupt
        return original_ask(model, case, planning)

    with monkeypatch.context() as patch:
        patch.setattr(irrelevance, "ask", interrupt_json)
        with pytest.raises(KeyboardInterrupt):
            run(options("killed"), "command", tiny_chat)
    run(options("killed"), "command", tiny_chat)
    # What it says hangs on the numbers of the marks around outside text, which nobody may foresee.
    cases = [[(row["planning"], row["id"]) for row in rows(out)] for out in ("killed", "whole")]
    assert cases[0] == cases[1]
