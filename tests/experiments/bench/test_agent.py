"""An agent's own cost: every contestant runs as many tools, and a further step is what steps add."""

import sys

import pytest

pytest.importorskip("langgraph")
pytest.importorskip("langchain_core")

from langchain_core.messages import ToolMessage

from scrubjay.experiments.bench import agent


@pytest.mark.parametrize("steps", [1, 3])
def test_every_contestant_runs_the_same_tools_to_the_same_answer(steps):
    told = {}
    for name, answer in agent.contestants(steps).items():
        messages = answer()["messages"]
        # Ours stand between marks, as what a tool says is not to be obeyed.
        said = [str(message.content).splitlines() for message in messages if isinstance(message, ToolMessage)]
        ran = [lines[len(lines) // 2] for lines in said]
        told[name] = (ran, messages[-1].content)
    assert len(told) == 4
    first = next(iter(told.values()))
    assert len(first[0]) == steps
    assert all(one == first for one in told.values())


def test_a_contestant_that_runs_too_few_tools_is_no_result(monkeypatch):
    monkeypatch.setattr(agent, "contestants", lambda steps: {"lazy": lambda: {"messages": []}})
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
