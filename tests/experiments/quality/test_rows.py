"""Stored rows and tables of results, and figures of their seeds."""

import json

import numpy as np
import pytest

from scrubjay.experiments.quality.rows import Results, draw_seeds, make_axes, mark_level, sort_scores


def row(memory, seed, score, **more):
    return {"task": "parity", "memory": memory, "seed": seed, "score": score, "test": {}} | more


@pytest.fixture
def results(tmp_path):
    rows = [
        row("gru", 0, 0.5),
        row("gru", 1, 1.0),
        row("none", 0, 0.1),
        row("lstm", 0, 0.9, development=True),
    ]
    rows += [
        row("gru", seed, 0.1 * length, test={"length": length, "num_items": 1})
        for seed in (0, 1)
        for length in (2, 4)
    ]
    rows += [row("gru", 0, 0.0, test={"length": 2, "num_items": 9})]
    (tmp_path / "mine.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    (tmp_path / "mine.md").write_text(
        "| a | b |\n| --- | --- |\n| 1 | 2 |\n\nSecond\n\n| a | c |\n| --- | --- |\n| 3 | 4 |\n"
    )
    return Results(tmp_path)


def test_scores_are_those_of_the_test_and_of_no_tuning(results):
    assert results.read_scores("mine", "parity") == {"gru": [0.5, 1.0], "none": [0.1]}
    curves = results.read_curves("mine", "parity", "length", num_items=1)
    assert curves == {"gru": {2: [0.2, 0.2], 4: [0.4, 0.4]}}


def test_a_table_is_found_by_its_head(results):
    assert results.read_table("mine", "a") == (["a", "b"], [["1", "2"]])
    assert results.read_table("mine", "a", "Second") == (["a", "c"], [["3", "4"]])
    with pytest.raises(ValueError, match=r"mine.md has no table that begins with 'x'"):
        results.read_table("mine", "x")


def test_seeds_are_dots_with_a_bar_at_their_mean_and_the_baseline_is_last(results):
    scores = sort_scores(results.read_scores("mine", "parity") | {"lru": [0.9]})
    assert list(scores) == ["lru", "gru", "none"]
    _, (axes,) = make_axes(1)
    draw_seeds(axes, scores, "title", "success rate")
    mark_level(axes, 0.25, "chance")
    bars, dots = (np.asarray(line.get_xdata()) for line in axes.lines[2:4])
    np.testing.assert_allclose(bars, [0.75, 0.75])
    assert list(dots) == [0.5, 1.0]
    assert [text.get_text() for text in axes.texts] == ["chance (0.25)"]
