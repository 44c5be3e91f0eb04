"""Soak of a run directory in small: it passes, and it finds lost rows, failures and other results."""

import shutil
import subprocess
import sys

import pytest

from scrubjay.experiments import Run
from scrubjay.experiments.bench.soak import SoakError
from scrubjay.experiments.bench.soak.runs import (
    STEPS_PER_UPDATE,
    Child,
    Contest,
    RunsSoak,
    compare_runs,
    run_contest,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def end(tmp_path, code, err, was_killed=False):
    """Return how a command ended that printed `err`."""
    process = subprocess.Popen([sys.executable, "-c", f"import os; os._exit({code})"])
    process.wait()
    (tmp_path / "1.out").touch()
    (tmp_path / "1.err").write_text(err)
    return Child(["resume"], process, tmp_path / "1", was_killed).outcome()


def test_a_refusal_is_one_line(tmp_path):
    refusal = "scrubjay: runs/a is being trained by another process; wait for it or stop it\n"
    assert end(tmp_path, 2, refusal) == "refused"
    assert end(tmp_path, 2, "scrubjay: runs/a has no checkpoint yet; to train it\n") == "nothing yet"
    assert end(tmp_path, 0, "") == "finished"
    for code, err in ((2, 2 * refusal), (1, refusal), (2, "scrubjay: other\n"), (1, "Traceback")):
        with pytest.raises(SoakError, match="resume ended with"):
            end(tmp_path, code, err)


@pytest.mark.parametrize("steps", [(1, 3), (1, 2, 2), (2, 3)])
def test_lost_and_double_rows_are_found(steps, tmp_path):
    contest = Contest(RunsSoak(), tmp_path)
    contest.run_dir.mkdir()
    metrics = contest.run_dir / "metrics.jsonl"
    metrics.write_text("".join(f'{{"step": {step * STEPS_PER_UPDATE}}}\n' for step in (1, 2, 3)))
    contest._check_metrics()
    metrics.write_text("".join(f'{{"step": {step * STEPS_PER_UPDATE}}}\n' for step in steps))
    with pytest.raises(SoakError, match="lost or doubled rows"):
        contest._check_metrics()


def test_other_results_are_found(finished_run, tmp_path):
    def copy(name):
        return Run.load(shutil.copytree(finished_run.path, tmp_path / name))

    compare_runs(copy("same"), finished_run)
    run = copy("metrics")
    lines = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run.path / "metrics.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(SoakError, match="has other metrics"):
        compare_runs(run, finished_run)
    run = copy("scores")
    result = (run.path / "result.json").read_text()
    (run.path / "result.json").write_text(result.replace('"step": ', '"step": 1'))
    with pytest.raises(SoakError, match="has other scores"):
        compare_runs(run, finished_run)


@pytest.mark.slow
@pytest.mark.matrix
def test_a_small_contest_ends_with_the_undisturbed_result(tmp_path):
    soak = RunsSoak(kills=3, updates=60)
    rows, growths = run_contest(soak, tmp_path)
    assert len(growths) <= 1
    assert {"killed", "finished"} <= {row["outcome"] for row in rows}
    assert run_contest(soak, tmp_path)[0] == rows
