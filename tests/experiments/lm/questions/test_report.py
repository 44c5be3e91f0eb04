"""Tests of the tables of questions: means and intervals by text, order, and policies that keep all tokens."""

import math

import pytest

from scrubjay.experiments.lm.options import QuestionsOptions
from scrubjay.experiments.lm.questions.report import make_sections, score_interval


def row(method, share, sample, score, time="later", kind="number"):
    fields = {"passage": "facts", "sample": sample, "time": time, "kind": kind, "text": "", "steps": 2}
    costs = {"cpu": 0.01, "read_cpu": 1.0, "cache_bytes": 2**20}
    return fields | costs | {"method": method, "share": share, "score": score}


def test_the_interval_draws_texts_and_not_questions():
    """Questions about one text that are all right or all wrong are one draw."""
    rows = [row("full", 1.0, sample, float(sample < 2)) for sample in range(4) for _ in range(10)]
    mean, low, high = score_interval(rows)
    assert (mean, low, high) == (0.5, 0.0, 1.0)
    assert score_interval(rows[:10]) == (1.0, 1.0, 1.0)


def test_texts_with_more_questions_weigh_more():
    rows = [row("full", 1.0, 0, 1.0) for _ in range(3)] + [row("full", 1.0, 1, 0.0)]
    assert score_interval(rows)[0] == 0.75


def test_policies_are_sorted_by_budget_and_score_and_divided_by_what_they_keep(tmp_path):
    options = QuestionsOptions(text=(tmp_path / "text.txt",))
    answers = [row("poor", 0.5, 0, 0.0), row("good", 0.5, 0, 1.0), row("good", 0.1, 0, 1.0, "known")]
    answers.append(row("whole", 1.0, 0, 1.0))
    streams = [{"method": "good", "share": 0.5, "length": 4096, "nats": math.log(20), "cpu": 1.0}]
    refusals = {("longheads", 0.1): "budget=409: must be at least 1024"}
    text = "\n".join(make_sections(options, answers, streams, {"whole"}, refusals))
    drops, keeps = text.split("## Policies that keep all tokens")
    assert "whole" not in drops
    assert "| whole, 100 % | 100 [100, 100] |" in keeps
    table = drops.split("## Policies that drop tokens\n")[1].splitlines()
    assert [line.split(" | ")[0] for line in table[2:5]] == [
        "| good, 50 %",
        "| poor, 50 %",
        "| good, 10 %",
    ]
    assert "| good, 50 % | 1.0 | 5.0 | 1.0 | 20.00 |" in drops
    assert "| longheads, 10 % | budget=409: must be at least 1024 |" in keeps


@pytest.mark.parametrize("time", ["known", "later"])
def test_the_time_per_token_prefers_questions_that_are_part_of_the_prompt(time, tmp_path):
    options = QuestionsOptions(text=(tmp_path / "text.txt",))
    answers = [row("good", 0.5, 0, 1.0, time), row("good", 0.5, 0, 1.0) | {"cpu": 1.0}]
    text = "\n".join(make_sections(options, answers, [], set(), {}))
    assert ("| good, 50 % | 1.0 | 5.0 |" in text) == (time == "known")
