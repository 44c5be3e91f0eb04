"""Benchmark of checkpointers: same conversation for every saver; rows have medians and ratios."""

import pytest

from scrubjay.experiments.bench import checkpoints
from scrubjay.experiments.bench.checkpoints import (
    CHECKPOINTER,
    SQLITE_SAVER,
    SQLITE_SAVER_NORMAL,
    CheckpointsBench,
    ConversationCost,
    main,
)

pytestmark = pytest.mark.requires("langgraph")


def test_ours_keeps_every_turn_and_tells_what_it_took():
    """The measurement itself asserts that the last state holds three messages a turn."""
    few, many = (
        checkpoints._measure(CHECKPOINTER, turns, CheckpointsBench(words=50, reads=1)) for turns in (2, 30)
    )
    assert min(few.write, few.read, few.size) > 0
    assert many.size > few.size


def test_rows_are_medians_and_ratios_to_ours(monkeypatch, capsys):
    costs = {
        SQLITE_SAVER: iter([4.0, 100.0, 6.0]),
        SQLITE_SAVER_NORMAL: iter([4.0] * 3),
        CHECKPOINTER: iter([1.0, 2.0, 9.0]),
    }

    def measure(name, turns, bench):
        cost = next(costs[name])
        return ConversationCost(cost, 10 * cost, cost / 2)

    monkeypatch.setattr(checkpoints, "_measure", measure)
    monkeypatch.setattr(checkpoints, "version", lambda package: "1")
    main(CheckpointsBench(turns=(7,), repeats=3))
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if "| 7 |" in line]
    assert [row[1] for row in rows] == [SQLITE_SAVER, SQLITE_SAVER_NORMAL, CHECKPOINTER]
    assert rows[0][2:] == ["6.00", "3.00", "60.00", "3.00", "3.00", "3.00"]
    assert rows[2][2:] == ["2.00", "1.00", "20.00", "1.00", "1.00", "1.00"]
