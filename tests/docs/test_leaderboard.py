"""Leaderboard: ranks over tasks, ranked tables and tables of tests."""

import json
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def board(from_docs):
    return from_docs("leaderboard")


def row(task, memory, seed, score, **more):
    source = {"command": "scrubjay compare", "file": "x.jsonl"}
    return {"task": task, "memory": memory, "seed": seed, "score": score} | source | more


def lines_of(board, scores, heading):
    """Return the lines of a section."""
    return board.leaderboard(scores).partition(f"## {heading}\n")[2].partition("\n## ")[0].splitlines()


def test_a_task_has_a_ranked_table_with_the_best_in_bold(board):
    scores = [row("parity", "gru", seed, seed / 2) for seed in range(3)]
    scores += [row("parity", name, 0, 0.25, steps=1000) for name in ("mine", "lstm")]
    lines = lines_of(board, scores, "Parity of the bits so far")
    assert "| 1 | [`gru`](memories/gru.rst) | **0.50 [0.00,\u00a01.00]** | 0, 1, 2 | 0 |" in lines
    assert "| 2 = | [`lstm`](memories/lstm.rst) | 0.25 | 0 | 1,000 |" in lines
    assert "| 2 = | `mine` | 0.25 | 0 | 1,000 |" in lines


def test_tests_have_a_column_for_each_value_and_no_empty_rows(board):
    scores = [row("a", "gru", 0, 1.0), row("a", "lstm", 0, 0.5)]
    scores += [
        row("a", "gru", 0, 0.1 * length, test={"length": length, "num_items": items})
        for length in (2, 1000, 4)
        for items in (1, 5)
    ]
    lines = lines_of(board, scores, "a")
    assert "| num items 5, length | 2 | 4 | 1,000 |" in lines
    assert "| [`gru`](memories/gru.rst) | 0.20 | 0.40 | 100.00 |" in lines
    assert sum("`lstm`" in line for line in lines) == 1  # it has no test, so no row there


def test_ranks_are_means_over_tasks_with_enough_memories(board):
    names = ["gru", "lstm", "lru", "ffm", "none"]
    scores = [row(task, name, 0, -place) for task in "abc" for place, name in enumerate(names)]
    scores += [row("d", "none", 0, 1.0), row("d", "gru", 0, 0.0)]  # too few memories
    scores += [row("a, no clock", name, 0, place) for place, name in enumerate(names)]  # variant
    lines = lines_of(board, scores, "Ranks over all tasks")
    assert "| [`gru`](memories/gru.rst) | 1.0 | 100 % | 3 |" in lines
    assert "| [`none`](memories/none.rst) | 5.0 | 0 % | 3 |" in lines
    assert next(line for line in lines if line.startswith("| [")).startswith("| [`gru`]")


def test_equal_scores_share_the_mean_of_their_ranks(board):
    assert board._rank({"a": 0.5, "b": 1.0, "c": 0.5}) == {"a": 2.5, "b": 1.0, "c": 2.5}


def test_variants_of_tasks_have_readable_titles(board):
    assert board.title_of("autoencode, no clock") == "Autoencode, 8 cards, without clock"
    assert board.title_of("CartPole-v1") == "CartPole-v1"


def test_every_score_is_on_the_leaderboard(board):
    scores = list(board.read_scores(ROOT / "experiments" / "results"))
    text = board.leaderboard(scores)
    for row in scores:
        assert row["command"] in text
        assert f"## {board.title_of(row['task'])}\n" in text
        assert f"[{row['file']}](../../{row['file']})" in text


def test_tuning_seeds_are_not_on_the_leaderboard(board, tmp_path, monkeypatch):
    monkeypatch.setattr(board, "ROOT", tmp_path)
    lines = [row("a", "gru", 0, 0.5), row("a, by half", "gru", 100, 0.9, development=True)]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert [row["task"] for row in board.read_scores(tmp_path)] == ["a"]


def test_a_seed_counts_once(board):
    """A second evaluation of a model is no second seed."""
    scores = board.read_scores(ROOT / "experiments" / "results")
    lines = Counter(
        (one["task"], one["memory"], one["seed"], json.dumps(one.get("test"), sort_keys=True))
        for one in scores
    )
    assert [line for line, times in lines.items() if times > 1] == []
