"""Parsing of plans from a model's text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents.kwai.planner import PlanError, read_plan

PLAN = {
    "task_name": "find it",
    "command": {"name": "look_up", "args": {"url": "https://a.example:80/x", "at": "12:30"}},
}


@pytest.mark.parametrize(
    ("text", "method"),
    [
        (json.dumps(PLAN), "json"),
        (json.dumps([PLAN, {"task_name": "later"}]), "json"),
        (f"Here it is:\n```json\n{json.dumps(PLAN)}\n```\nI hope it helps.", "prose"),
        (f"A set is {{1, 2}}. {json.dumps(PLAN)} And that {{is}} all.", "prose"),
        (json.dumps(PLAN)[:-2], "repaired"),
        (json.dumps(PLAN).replace('"', "'"), "repaired"),
        (json.dumps(PLAN).replace('"task_name"', "task_name").replace('"command"', "command"), "repaired"),
        (json.dumps(PLAN)[:-1] + ",}", "repaired"),
        (json.dumps(PLAN).replace('"command"', "command") + " So far.", "repaired"),
    ],
)
@pytest.mark.requires("json_repair")
def test_a_plan_is_read_whole_whatever_surrounds_it(text, method):
    plan = read_plan(text)
    assert (plan.task_name, plan.call.name, plan.call.arguments) == (
        "find it",
        "look_up",
        PLAN["command"]["args"],
    )
    assert plan.parse_method == method


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1).filter(
        str.strip
    ),
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")),
        st.integers() | st.booleans(),
    ),
)
def test_a_plan_survives_writing_and_reading(name, arguments):
    text = json.dumps({"task_name": "x", "command": {"name": name, "args": arguments}})
    call = read_plan(text).call
    assert (call.name, call.arguments) == (name.strip(), arguments)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("I would look it up.", "no JSON object"),
        ('{"task_name": "x"}', "command has no name"),
        ('{"command": {"name": "f", "args": [1]}}', "args must be a JSON object, not list"),
        ('{"command": 4}', "command must be a JSON object"),
        ('{"command": {"name": "f", "args": {"x": Infinity}}}', "JSON cannot represent"),
    ],
)
def test_what_is_no_plan_is_refused_with_a_reason(text, problem):
    with pytest.raises(PlanError, match=problem):
        read_plan(text)
