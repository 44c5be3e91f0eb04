"""The table of a comparison matches the results."""

import json

import pytest

from scrubjay.experiments import EnvConfig, Run
from scrubjay.experiments.viz import comparison
from scrubjay.experiments.viz.comparison import LONGER_FILE, score_longer_tasks, write_report

from .results import create_answer_run, create_finished_run


def cells(text, first):
    """Return the table rows that start with `first`."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[: len(first)] == list(first)]


def scores_in(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_row_is_the_mean_over_seeds_with_its_interval(tiny, tmp_path):
    runs = [
        create_finished_run(
            tmp_path / f"{memory}{seed}", tiny(memory, seed=seed), success=score, seconds=seconds
        )
        for memory, seed, score, seconds in (
            ("gru", 0, 0.5, 2.0),
            ("gru", 1, 1.0, 4.0),
            ("none", 0, 0.25, 5.0),
        )
    ]
    paths = write_report(runs, tmp_path, "the command")
    assert [path.name for path in paths] == ["table.md", "scores.jsonl", "curves.png"]
    table = paths[0].read_text()
    assert table.startswith("`the command`\n\n")
    assert cells(table, ["tiny", "gru"]) == [["tiny", "gru", "0.75 [0.50, 1.00]", "100", "3", "33"]]
    assert cells(table, ["tiny", "none"]) == [["tiny", "none", "0.25", "100", "5", "20"]]
    assert "Scores: mean and range over 1 to 2 seeds." in table
    rows = scores_in(paths[1])
    assert [(line["memory"], line["seed"], line["score"]) for line in rows] == [
        ("gru", 0, 0.5),
        ("gru", 1, 1.0),
        ("none", 0, 0.25),
    ]
    about = {"task": "tiny", "steps": 100, "test": {}, "measure": "success", "command": "the command"}
    assert all({name: line[name] for name in about} == about for line in rows)
    assert all(line["commit"].startswith("scrubjay ") for line in rows)


def test_a_run_whose_losses_are_no_numbers_is_rows(tiny, tmp_path):
    runs = [create_finished_run(tmp_path / f"seed{seed}", tiny(seed=seed), success=0.0) for seed in range(2)]
    with (runs[1].path / "metrics.jsonl").open("a") as rows:
        rows.write(json.dumps({"step": 150, "losses/policy_loss": float("nan")}) + "\n")
    table = write_report(runs, tmp_path, "the command")[0].read_text()
    assert "\n\nseed1 is LOST: its losses are not finite.\n" in table
    assert "seed0" not in table


def test_runs_too_short_for_a_curve_are_tabulated_and_named(tiny, tmp_path):
    """Runs without a training episode are in the table, and curves show the other runs."""
    runs = [
        create_finished_run(tmp_path / memory, tiny(memory), episodic_return=3.0)
        for memory in ("none", "gru")
    ]
    for count, curves in ((1, ["curves.png"]), (2, [])):
        (runs[count - 1].path / "metrics.jsonl").write_text('{"step": 100, "charts/SPS": 5.0}\n')
        out = tmp_path / f"out{count}"
        out.mkdir()
        paths = write_report(runs, out, "c")
        assert [path.name for path in paths] == ["table.md", "scores.jsonl", *curves]
        rows = (out / "table.md").read_text()
        assert len(cells(rows, ["tiny"])) == 2
        names = ", ".join(["none", "gru"][:count])
        assert f"\n\nNo curve, since no training episode ended: {names}.\n" in rows


@pytest.mark.slow
def test_the_scores_over_training_are_tabulated_where_they_are_known(tiny, tmp_path):
    success_at_60 = {"solved_at": 0.95, "solved_step": 50, "best_step": 60}
    results = {
        ("gru", 0): {"final": 0.5, "best": 1.0, "lowest_after_solved": 0.25, "lost": 1, **success_at_60},
        ("gru", 1): {"final": 1.0, "best": 1.0, "lowest_after_solved": 0.75, "lost": 0, **success_at_60},
        ("gru", 2): {"final": 0.75, "best": 0.75, "best_step": 100, "solved_at": 0.95},
        ("none", 0): {"final": 0.5, "best": 0.75, "best_step": 80},
        ("lstm", 0): {},
    }
    runs = [
        create_finished_run(
            tmp_path / f"{memory}{seed}",
            tiny(memory, seed=seed),
            success=0.5,
            **fields,
            **({"evaluations": 0 if memory == "none" else 9} if fields else {}),
        )
        for (memory, seed), fields in results.items()
    ]
    text = write_report(runs, tmp_path, "c")[0].read_text()
    section = text.partition("\n\nScores over training:\n\n")[2]
    scores = ["0.75 [0.50, 1.00]", "0.92 [0.75, 1.00]", "0.50 [0.25, 0.75]"]
    assert cells(section, ["tiny", "gru"]) == [["tiny", "gru", *scores, "2 of 3", "1 of 3", "evaluations"]]
    assert cells(section, ["tiny", "none"]) == [
        ["tiny", "none", "0.50", "0.75", "", "", "", "training episodes"]
    ]
    assert not cells(section, ["tiny", "lstm"])
    assert scores_in(tmp_path / "scores.jsonl")[0]["lowest_after_solved"] == 0.25
    assert "Scores over training" not in write_report(runs[-1:], tmp_path, "c")[0].read_text()


def test_scores_are_returns_where_nobody_tells_success(tiny, tmp_path):
    run = create_finished_run(tmp_path / "run", tiny(), episodic_return=-3.5)
    table, *_ = write_report([run], tmp_path, "c")
    assert cells(table.read_text(), ["tiny", "gru", "-3.50"])
    assert "Scores are from a single seed" in table.read_text()
    (rows,) = scores_in(tmp_path / "scores.jsonl")
    assert (rows["measure"], rows["score"], rows["return"]) == ("episodic_return", -3.5, -3.5)


def test_accuracies_are_tabulated_by_amount_and_length_with_what_models_weigh(tmp_path):
    right = {(2, 16): 10, (4, 16): 8, (2, 32): 9, (4, 32): 4}
    runs = [
        create_answer_run(tmp_path, "gru", 0, right, 2048),
        create_answer_run(tmp_path, "none", 0, right, 64),
    ]
    paths = write_report(runs, tmp_path, "c")
    assert [path.name for path in paths] == [
        "table.md",
        "scores.jsonl",
        "curves.png",
        "lengths.png",
        "items.png",
        "state.png",
    ]
    table = paths[0].read_text()
    assert cells(table, ["gru"]) == [["gru", "2", "1.00", "0.90"], ["gru", "4", "0.80", "0.40"]]
    tests = {
        (line["memory"], *line["test"].values()): line["score"]
        for line in scores_in(paths[1])
        if line["test"]
    }
    assert len(tests) == 8
    assert tests["gru", 4, 32] == 0.4
    assert cells(table, ["tiny-mqar", "gru", "1,234"]) == [["tiny-mqar", "gru", "1,234", "2,048"]]


@pytest.fixture
def evaluations(monkeypatch):
    """Mock the evaluation: success falls with the corridor length. Return the list of calls."""
    calls = []

    class Scores:
        def __init__(self, env):
            self.env = env

        def summary(self):
            return {"episodic_return": 0.0, "success": 10 / self.env.kwargs["corridor_length"]}

    def evaluate(policy, env, episodes, seed):
        calls.append((env.kwargs["corridor_length"], episodes, seed))
        return Scores(env)

    monkeypatch.setattr(comparison, "evaluate", evaluate)
    monkeypatch.setattr("scrubjay.experiments.runs.run.Run.policy_for", lambda run, env: None)
    return calls


def test_longer_tasks_are_multiples_of_the_trained_one_and_played_once(tiny, tmp_path, evaluations):
    env = EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 10}, num_envs=4)
    run = create_finished_run(tmp_path / "run", tiny(recipe="tmaze-demo", env=env), success=1.0)
    scores = score_longer_tasks(run, episodes=7)
    assert scores == {10: 1.0, 20: 0.5, 50: 0.2, 100: 0.1}
    assert [length for length, _, _ in evaluations] == list(scores)
    assert len({(episodes, seed) for _, episodes, seed in evaluations}) == 1
    assert score_longer_tasks(run) == scores
    assert len(evaluations) == 4
    assert json.loads((run.path / LONGER_FILE).read_text()) == {str(k): v for k, v in scores.items()}
    paths = write_report([run], tmp_path, "c")
    assert paths[-1].name == "longer.png"
    table = paths[0].read_text()
    assert "tmaze-demo, trained with corridor_length 10, tested with:" in table
    assert cells(table, ["gru"]) == [["gru", "1.00", "0.50", "0.20", "0.10"]]
    test_settings = [line["test"] for line in scores_in(paths[1])]
    assert test_settings == [{}, *({"corridor_length": length} for length in scores)]


def test_recipes_that_nothing_makes_longer_are_not_played(tiny, tmp_path, evaluations):
    assert score_longer_tasks(create_finished_run(tmp_path / "a", tiny(), success=1.0)) == {}
    assert score_longer_tasks(create_answer_run(tmp_path, "gru", 0, {(4, 16): 1}, 1)) == {}
    assert evaluations == []


def test_unfinished_runs_are_named(tiny, tmp_path):
    run = create_finished_run(tmp_path / "done", tiny(), success=0.5)
    left = Run.create(tiny("none"), tmp_path / "tiny-none-s0")
    table = write_report([run], tmp_path, "the command", [left])[0].read_text()
    assert "Left out, since training has not finished: tiny-none-s0." in table
    assert "not finished" not in write_report([run], tmp_path, "the command")[0].read_text()
