"""The report: interquartile means and intervals of scipy and rliable, ranks, losses first, crashed runs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scrubjay.experiments.measurements import Records
from scrubjay.experiments.scoreboard.report import FIELDS, find_losses, make_report, normalize
from scrubjay.experiments.statistics import bootstrap_interval, interquartile_mean

SCORES = {
    ("repeat-first", "gru"): (0.2, 0.1, 0.3),
    ("repeat-first", "sink"): (1.0, 0.9, 0.95),
    ("repeat-first", "recurrent_ppo"): (0.9, 0.8, 0.85),
    ("higher-lower", "gru"): (0.5, 0.5, 0.53),
    ("higher-lower", "sink"): (0.5, 0.52, 0.51),
    ("higher-lower", "recurrent_ppo"): (0.5, 0.51, 0.5),
}


def make_row(task, contender, seed, score, **fields):
    return {
        "task": task,
        "contender": contender,
        "seed": seed,
        "status": "finished",
        "error": "",
        "steps": 1000,
        "score": score,
        "training_score": score,
        "cpu_seconds": 100.0 + seed,
        "settings": {"steps": 1000},
        "versions": {"torch": "2"},
        "processor": "CPU",
        **fields,
    }


def make_failed_row(task, contender, seed):
    row = make_row(task, contender, seed, None, status="failed", error="exit code 1: a | b")
    return row | {"training_score": None, "cpu_seconds": None}


@pytest.fixture
def rows():
    return [make_row(*key, seed, score) for key, own in SCORES.items() for seed, score in enumerate(own)]


def normalized(rows, contender):
    scores = normalize(rows, contender)
    assert scores is not None
    return scores


def cells(report, beginning):
    line = next(line for line in report.splitlines() if line.startswith(f"| {beginning} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def section(report, title):
    return report.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_losses_come_first_and_only_those_beyond_the_interval(rows):
    assert find_losses(rows) == [("repeat-first", "gru", "recurrent_ppo")]
    report = make_report(list(reversed(rows)), "context")
    titles = [line for line in report.splitlines() if line.startswith("## ")]
    assert titles == ["## Losses", "## Summary", "## repeat-first", "## higher-lower"]
    ours, theirs = SCORES["repeat-first", "gru"], SCORES["repeat-first", "recurrent_ppo"]
    low, high = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    assert cells(section(report, "Losses"), "repeat-first")[1:] == [
        "gru", "recurrent_ppo", "0.200", "0.850", f"-0.650 [{low:.3f}, {high:.3f}]"
    ]  # fmt: skip


def test_a_task_has_ranks_means_intervals_and_published_scores(rows):
    table = section(make_report(rows, "context"), "repeat-first")
    names = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][2:]
    assert names == ["sink", "recurrent_ppo", "gru"]
    assert cells(table, "gru") == [
        "gru", "3", "0.200 [0.100, 0.300]", "0.200", "3", "101", "1.000 (15,000,000 frames)"
    ]  # fmt: skip
    assert "arXiv 2303.01859" in table


def test_the_summary_is_the_interquartile_mean_of_normalized_scores(rows):
    scores = normalized(rows, "sink")
    means = {key: np.mean(own) for key, own in SCORES.items()}
    for column, task in enumerate(("repeat-first", "higher-lower")):
        own = [mean for (name, _), mean in means.items() if name == task]
        expected = (np.array(SCORES[task, "sink"]) - min(own)) / (max(own) - min(own))
        np.testing.assert_allclose(scores[:, column], expected)
    summary = section(make_report(rows, "context"), "Summary")
    text = cells(summary, "sink")[1]
    assert text.startswith(f"{stats.trim_mean(scores.ravel(), 0.25):.3f} [")
    assert cells(summary, "gru")[3:] == ["1", "0", "606"]
    assert cells(summary, "recurrent_ppo")[3] == ""


def test_a_crashed_run_scores_zero_and_is_listed(rows):
    rows.remove(next(row for row in rows if (row["contender"], row["seed"]) == ("sink", 1)))
    assert "runs are missing" in section(make_report(rows, "context"), "Summary")
    rows.append(make_failed_row("repeat-first", "sink", 1))
    assert normalized(rows, "sink")[1, 0] == 0
    report = make_report(rows, "context")
    assert "runs are missing" not in report
    assert cells(section(report, "Summary"), "sink")[4] == "1"
    assert cells(section(report, "Runs that crashed"), "repeat-first")[1:3] == ["sink", "1"]
    assert r"exit code 1: a \| b" in report
    assert cells(section(report, "repeat-first"), "sink")[4] == "2"


def test_a_board_of_failed_runs_alone_has_a_report():
    report = make_report([make_failed_row("repeat-first", "gru", 0)], "context")
    assert cells(section(report, "Summary"), "gru")[1] == "runs are missing"


def test_rows_are_checked(tmp_path):
    records = Records(tmp_path / "rows.jsonl", FIELDS)
    records.append(make_failed_row("repeat-first", "sink", 1))
    records.append(make_row("repeat-first", "sink", 2, 0.5))
    assert Records(records.path, FIELDS).rows == records.rows
    records.append(make_row("repeat-first", "sink", 3, "high"))
    with pytest.raises(ValueError, match=r"line 3.*score"):
        Records(records.path, FIELDS)


@pytest.mark.slow
def test_means_and_intervals_are_those_of_rliable():
    """The formulas of rliable 1.2, whose own bootstrap does not run with the present version of arch."""
    scores = np.random.default_rng(0).normal(size=(8, 5)) + np.arange(5)
    generator, means = np.random.default_rng(1), []
    for _ in range(4000):
        columns = [generator.choice(column, size=len(column), replace=True) for column in scores.T]
        means.append(stats.trim_mean(np.ravel(columns), proportiontocut=0.25))
    assert interquartile_mean(scores) == stats.trim_mean(scores.ravel(), proportiontocut=0.25)
    # Both are estimates from random resamples.
    np.testing.assert_allclose(bootstrap_interval(scores), np.percentile(means, [2.5, 97.5]), atol=0.06)


@pytest.mark.requires("rliable")
def test_the_interquartile_mean_is_that_of_rliable(rows):
    from rliable.metrics import aggregate_iqm  # pyright: ignore[reportMissingImports]

    scores = normalized(rows, "sink")
    assert interquartile_mean(scores) == aggregate_iqm(scores)
