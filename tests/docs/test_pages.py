"""Pages that are made: the leaderboard sets memories against tasks."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages(from_docs):
    return from_docs("pages")


def row(task, memory, seed, score, **more):
    told = {"command": "scrubjay compare", "file": "x.jsonl"}
    return {"task": task, "memory": memory, "seed": seed, "score": score} | told | more


def test_a_leaderboard_begins_with_memories_by_tasks(pages):
    scores = [row("a", "gru", seed, seed / 2) for seed in range(3)]
    scores += [
        row("b", "gru", 0, 0.25),
        row("b", "mine", 0, 0.75),
        row("b", "gru", 0, 1.0, test={"length": 9}),
    ]
    overview = pages.leaderboard(scores).partition("## ")[0].splitlines()
    assert "| memory | a | b |" in overview
    assert "| [`gru`](memories/gru.rst) | 0.50 [0.00,\u00a01.00] | 0.25 |" in overview
    assert "| `mine` |  | 0.75 |" in overview


def test_all_that_was_scored_is_on_the_leaderboard(pages):
    scores = list(pages.read_scores(ROOT / "experiments" / "results"))
    board = pages.leaderboard(scores)
    for scored in scores:
        assert scored["command"] in board
        assert f"## {scored['task']}\n" in board
