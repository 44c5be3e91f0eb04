"""Search of settings by successive halving: selection, steps per rung, and stored scores."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from scrubjay.experiments import Run
from scrubjay.experiments.cli.failures import FailedError, UsageError
from scrubjay.experiments.launch import search as searching
from scrubjay.experiments.launch.search import Search, run_searches, write_search_report
from scrubjay.experiments.launch.sweep import Sweep, parse_param
from scrubjay.experiments.progress import GracefulInterrupt
from scrubjay.experiments.training import run_training

FLAGS = (
    *("--memory", "gru", "--memory.dim", "8", "--env.num-envs", "4", "--segment-length", "8"),
    *("--set", "corridor_length=3", "--total-steps", "256", "--eval-episodes", "40", "--ppo.anneal"),
)
PARAMS = tuple(map(parse_param, ("ppo.learning-rate=1e-5,3e-2", "ppo.epochs=1,2")))


@pytest.fixture
def in_this_process(monkeypatch):
    """Train the runs sequentially in this process, since new processes take seconds to start."""

    def train(runs, jobs):
        for run in runs:
            run_training(run)

    monkeypatch.setattr(searching, "run_in_processes", train)


def make(out: Path, recipe: str = "tmaze-demo", flags: tuple[str, ...] = FLAGS, seeds=(50, 51)) -> Search:
    return Search(Sweep(recipe, PARAMS, flags), seeds, out)


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_the_better_half_goes_on_and_the_best_of_all_is_found(tmp_path):
    search = make(tmp_path / "found")
    run_searches([search], jobs=1)
    assert [len(scores_of_rung) for scores_of_rung in search.rungs] == [4, 2, 1]
    for before, after in zip(search.rungs, search.rungs[1:], strict=False):
        left = set(before) - set(after)
        assert min(before[name] for name in after) >= max(before[name] for name in left)
    runs = {path.parent.name: Run.load(path.parent) for path in tmp_path.glob("found/*/config.json")}
    assert len(runs) == 8
    for name, run in runs.items():
        rungs = sum(name.rpartition("_")[0] in scores_of_rung for scores_of_rung in search.rungs)
        assert run.step == run.config.total_steps == {1: 64, 2: 128, 3: 256}[rungs]
    scores = [runs[f"{search.best}_s{seed}"].result["success"] for seed in (50, 51)]
    assert search.rungs[-1] == {search.best: sum(scores) / 2}
    assert search.arguments == [
        *FLAGS,
        *(w for pair in search.best.split("_") for w in f"--{pair}".split("=")),
    ]
    table = write_search_report({("tmaze-demo", "gru"): search}, tmp_path).read_text()
    assert search.best.replace("_", ", ") in table
    rates = [row["charts/learning_rate"] for row in runs[f"{search.best}_s50"].metrics()]
    first = float(search.best.split("_")[0].split("=")[1])
    assert rates == pytest.approx([first * (1 - done / 8) for done in range(8)]), "a plan is of the whole run"


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_search_that_was_stopped_goes_on_and_finds_the_same(tmp_path, monkeypatch):
    whole = make(tmp_path / "whole")
    run_searches([whole], jobs=1)
    num_trained = 0

    def stop_after(runs, jobs):
        nonlocal num_trained
        for run in runs:
            if num_trained % 5 == 4:
                num_trained += 1
                raise GracefulInterrupt(2, run.resume_command)
            if not run.is_finished:
                num_trained += 1
                run_training(run)

    monkeypatch.setattr(searching, "run_in_processes", stop_after)
    for attempt in range(9):
        search = make(tmp_path / "stopped")
        assert len(search.rungs) >= attempt // 4
        try:
            run_searches([search], jobs=1)
            break
        except GracefulInterrupt:
            continue
    assert attempt > 1
    assert search.rungs == whole.rungs
    again = make(tmp_path / "stopped")
    assert again.is_finished
    assert again.runs() == []
    assert again.arguments == whole.arguments


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_setting_whose_losses_are_no_numbers_any_more_does_not_go_on(tmp_path):
    """Both have the same low return, so scores alone would select the first of the grid."""
    params = (parse_param("ppo.learning-rate=1e30,1e29,1e-5"),)
    flags = (*FLAGS, "--set", "corridor_length=9", "--eval-episodes", "2")
    search = Search(Sweep("tmaze-demo", params, flags), (50,), tmp_path / "found")
    run_searches([search], jobs=1)
    assert [list(scores_of_rung) for scores_of_rung in search.rungs[1:]] == [["ppo.learning-rate=1e-5"]] * 2
    again = Search(Sweep("tmaze-demo", params, flags), (50,), tmp_path / "found")
    assert again.rungs == search.rungs
    again.rungs = again.rungs[:1]
    report = write_search_report({("tmaze-demo", "gru"): again}, tmp_path).read_text()
    assert report.endswith("| ppo.learning-rate=1e-5 | 0.000 | ppo.learning-rate=1e30 | NaN |\n")
    none = Search(
        Sweep("tmaze-demo", (parse_param("ppo.learning-rate=1e30,1e29"),), flags), (50,), tmp_path / "none"
    )
    for _ in range(2):
        with pytest.raises(FailedError, match="losses are NaN for all settings"):
            run_searches([none], jobs=1)


@pytest.mark.slow
def test_another_search_or_a_damaged_one_is_refused(tmp_path):
    note = tmp_path / "found" / "search.json"
    note.parent.mkdir()
    spec = {"recipe": "tmaze-demo", "params": PARAMS, "flags": FLAGS, "seeds": [50, 51]}
    for text in ("[]", "{", '{"rungs": 3}', json.dumps({**spec, "rungs": [3]})):
        note.write_text(text)
        with pytest.raises(UsageError, match=r"search\.json"):
            make(tmp_path / "found")
    note.write_text(json.dumps({**spec, "rungs": []}))
    assert make(tmp_path / "found").rungs == []
    with pytest.raises(UsageError, match="another search"):
        make(tmp_path / "found", seeds=(50,))
    note.write_text(json.dumps({**spec, "rungs": [{"ppo.learning-rate=1": 0.5}]}))
    with pytest.raises(UsageError, match="another search"):
        make(tmp_path / "found")


@pytest.mark.parametrize(
    ("params", "output"),
    [
        (("memory=gru,none",), r"memory=none changes label from 'gru' to 'none'"),
        (("set.corridor_length=3,4",), r"changes set\.corridor_length from 3 to 4"),
        (("set.cue_noise=0.1",), r"no setting 'cue_noise'|changes set\.cue_noise from None to 0\.1"),
        (("env=CartPole-v1",), "changes env from 'scrubjay/TMaze-v0' to 'CartPole-v1'"),
        (("total-steps=256,512",), "total-steps=512 changes total_steps from 256 to 512"),
        (("eval-episodes=40,1",), "changes eval_episodes from 40 to 1"),
        (("ppo.epochs=1,1",), "ppo.epochs=1: duplicate setting"),
        (("ppo.gamma=0.9,0.90",), r"ppo\.gamma=0\.90: duplicate setting"),
        (("seed=7,8",), "seed=8: duplicate setting"),
    ],
)
def test_a_search_leaves_who_is_compared_and_how_as_it_is(tmp_path, params, output):
    with pytest.raises(UsageError, match=output):
        Search(Sweep("tmaze-demo", tuple(map(parse_param, params)), FLAGS), (50,), tmp_path / "found")
    assert not any(tmp_path.iterdir())


def test_settings_that_nobody_scores_are_not_searched(tmp_path):
    with pytest.raises(UsageError, match="eval_episodes=0: must be at least 1"):
        make(tmp_path, flags=(*FLAGS, "--eval-episodes", "0"))


def test_settings_are_told_as_they_were_asked_for(tmp_path):
    params = (parse_param("policy.auxiliary=next_observation,verifier"),)
    search = Search(Sweep("tmaze-demo", params, FLAGS), (50,), tmp_path)
    scores = {"policy.auxiliary=verifier": 0.5, "policy.auxiliary=next_observation": 0.25}
    search.rungs = [scores]
    (line,) = write_search_report({("tmaze-demo", "gru"): search}, tmp_path).read_text().splitlines()[2:]
    cells = ("policy.auxiliary=verifier", "0.500", "policy.auxiliary=next_observation", "0.250")
    assert line == f"| tmaze-demo | gru | {' | '.join(cells)} |"
    search.rungs = [{"policy.auxiliary=verifier": 0.5}]
    assert (
        write_search_report({("tmaze-demo", "gru"): search}, tmp_path)
        .read_text()
        .endswith("| 0.500 | - | - |\n")
    )


def test_what_learns_under_supervision_is_not_searched_by_halves(tmp_path):
    with pytest.raises(UsageError, match="--search does not support 'mqar'"):
        Search(Sweep("mqar", (parse_param("learning-rate=1e-3,1e-2"),)), (50,), tmp_path)


def test_seeds_that_chose_settings_do_not_compare_them(usage_error):
    output = usage_error("compare", "--recipes", "tmaze-demo", "--search", "--search-seeds", "2", "3")
    assert "seeds [2] are in both --seeds and --search-seeds" in output


@pytest.mark.slow
def test_compare_searches_first_and_says_what_it_found(here, tmp_path):
    words = ["--memories", "none", "gru", "--recipes", "tmaze-demo", "--seeds", "0", "--out", "out"]
    words += [
        "--search",
        "ppo.learning-rate=1e-3,1e-2",
        "--",
        "--total-steps",
        "4096",
        "--eval-episodes",
        "8",
    ]
    code, out, err = here("compare", *words)
    assert code == 0, err
    assert "out/search.md" in out
    for memory in ("none", "gru"):
        search = json.loads((tmp_path / f"out/search/tmaze-demo-{memory}/search.json").read_text())
        (best,) = search["rungs"][-1]
        run = Run.load(tmp_path / f"out/tmaze-demo-{memory}-s0")
        assert run.config.learner.learning_rate == float(best.split("=")[1])  # pyright: ignore[reportAttributeAccessIssue]
        assert f"| tmaze-demo | {memory} | {best} |" in (tmp_path / "out/search.md").read_text()
    assert (
        "--search ppo.learning-rate=1e-3,1e-2 --search-seeds 1000" in (tmp_path / "out/table.md").read_text()
    )
    assert here("compare", *words)[0] == 0, "nothing is left to do"
    words.remove("none")
    assert here("compare", *words)[0] == 0
    for file, memory in itertools.product(("search.md", "table.md"), ("none", "gru")):
        assert f"| tmaze-demo | {memory} |" in (tmp_path / "out" / file).read_text()
