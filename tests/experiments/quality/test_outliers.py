"""Outliers among values: what a memory recalls of the rest, in closed cases, and a table that is kept."""

from __future__ import annotations

import dataclasses

import pytest

from scrubjay.experiments.quality.outliers import (
    METHODS,
    OutliersBench,
    make_memory_config,
    recall_accuracy,
    run,
)


def sizes(**changes):
    return OutliersBench(
        **{"pairs": 8, "chunk_size": 4, "rows": 4, "seeds": (0,), "times": (1, 1e6)} | changes
    )


@pytest.mark.parametrize("method", ["titans", "yaad", "yaad, by coordinate"])
def test_of_few_pairs_all_are_recalled(method):
    assert recall_accuracy(sizes(), make_memory_config(sizes(), method), 1, 0) == 1


def test_an_outlier_drowns_squared_errors_and_is_held_by_a_threshold():
    bench = sizes(share=0.25)
    right = {name: recall_accuracy(bench, make_memory_config(bench, name), 1e6, 0) for name in METHODS}
    assert right["yaad"] == 1
    assert right["titans"] < 0.5


def test_where_none_is_an_outlier_length_changes_nothing():
    bench = sizes(share=0.0)
    for name in METHODS:
        config = make_memory_config(bench, name)
        assert recall_accuracy(bench, config, 1e6, 0) == recall_accuracy(bench, config, 1, 0)


@pytest.mark.parametrize(("changes", "message"), [({"share": 1.0}, "share=1.0"), ({"pairs": 9}, "pairs=9")])
def test_sizes_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sizes(**changes)


def test_scores_are_kept_and_not_measured_again(tmp_path):
    bench = sizes(out=tmp_path)
    table = run(bench, "outliers").read_text()
    assert all(f"| {name} |" in table for name in METHODS)
    rows = (tmp_path / "scores.jsonl").read_text()
    assert len(rows.splitlines()) == 2 * len(METHODS)
    assert run(bench, "outliers").read_text() == table
    assert (tmp_path / "scores.jsonl").read_text() == rows
    with pytest.raises(ValueError, match="rows=4, now 5"):
        run(dataclasses.replace(bench, rows=5), "outliers")
