"""Benchmark of agents: all run the same tools; the cost per step is a difference of two answers."""

import sys

import pytest
from langchain_core.messages import ToolMessage

from scrubjay.experiments.bench import agent

pytestmark = pytest.mark.requires("langgraph")


@pytest.mark.parametrize("steps", [1, 3])
def test_every_agent_runs_the_same_tools_to_the_same_answer(steps):
    results = {}
    for name, answer in agent.build_methods(steps).items():
        messages = answer()["messages"]
        # Our agent puts tool output between marks, as untrusted text.
        tool_lines = [
            str(message.content).splitlines() for message in messages if isinstance(message, ToolMessage)
        ]
        outputs = [lines[len(lines) // 2] for lines in tool_lines]
        results[name] = (outputs, messages[-1].content)
    assert len(results) == 4
    first = next(iter(results.values()))
    assert len(first[0]) == steps
    assert all(one == first for one in results.values())


def test_an_agent_that_runs_too_few_tools_raises(monkeypatch):
    monkeypatch.setattr(agent, "build_methods", lambda steps: {"lazy": lambda: {"messages": []}})
    with pytest.raises(RuntimeError, match="lazy ran 0 tools instead of 2"):
        agent.measure(2, 1)


def test_rows_tell_an_answer_and_a_further_step_as_ratios_to_the_first(monkeypatch, capsys):
    monkeypatch.setattr(
        agent, "measure", lambda steps, repeats: {"peer": 1.0 + steps, "ours": (1.0 + steps) / 2}
    )
    monkeypatch.setattr(sys, "argv", ["agent", "--steps", "5", "--repeats", "1"])
    agent.main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()][-2:]
    assert rows[0] == ["peer", "6000.00 (1.00x)", "1000.00 (1.00x)"]
    assert rows[1] == ["ours", "3000.00 (0.50x)", "500.00 (0.50x)"]
