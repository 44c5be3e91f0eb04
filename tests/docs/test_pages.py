"""Generated pages: the leaderboard and the pages of memories."""

import json
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.requires("transformers")


@pytest.fixture(scope="module")
def pages(from_docs):
    return from_docs("pages")


def row(task, memory, seed, score, **more):
    source = {"command": "scrubjay compare", "file": "x.jsonl"}
    return {"task": task, "memory": memory, "seed": seed, "score": score} | source | more


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


def test_every_score_is_on_the_leaderboard(pages):
    scores = list(pages.read_scores(ROOT / "experiments" / "results"))
    board = pages.leaderboard(scores)
    for row in scores:
        assert row["command"] in board
        assert f"## {row['task']}\n" in board
        assert f"[{row['file']}](../../{row['file']})" in board


def test_tuning_seeds_are_not_on_the_leaderboard(pages, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    lines = [row("a", "gru", 0, 0.5), row("a, by half", "gru", 100, 0.9, development=True)]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert [row["task"] for row in pages.read_scores(tmp_path)] == ["a"]


def test_a_seed_counts_once(pages):
    """A second evaluation of a model is no second seed."""
    scores = pages.read_scores(ROOT / "experiments" / "results")
    lines = Counter(
        (one["task"], one["memory"], one["seed"], json.dumps(one.get("test"), sort_keys=True))
        for one in scores
    )
    assert [line for line, times in lines.items() if times > 1] == []


def test_a_page_of_a_memory_has_its_differences_from_the_paper(pages):
    page = pages._memory("agalite", [])
    assert "Differs from the paper in\n-----" in page
    assert "   * - number in the denominator\n     - 1e-5 in the published code\n     - 1e-3\n" in page
    assert "gives the defaults" in pages.differences("mingru")


def test_a_page_of_a_memory_says_of_how_many_seeds(pages):
    page = pages._memory("gru", [row("a", "gru", 0, 0.5), *(row("b", "gru", seed, 1.0) for seed in range(2))])
    assert "0.50, 1 seed\n" in page
    assert "1.00 [1.00,\u00a01.00], 2 seeds\n" in page
