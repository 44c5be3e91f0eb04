from __future__ import annotations

import math
import signal
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import tune

from scrubjay.experiments import Run, resume
from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.launch.sweep import Sweep, _make_scheduler, _table, _tuner, parse_param
from scrubjay.experiments.recipes.overrides import override

names = st.text("abcdef.", min_size=1, max_size=8).filter(lambda name: not name.startswith("set."))
values = st.lists(st.text("0123456789e-", min_size=1, max_size=4), min_size=1, max_size=4, unique=True)


@given(st.dictionaries(names, values, min_size=1, max_size=3))
def test_trials_are_every_combination_once(params):
    parsed_params = [parse_param(f"{name}={','.join(choices)}") for name, choices in params.items()]
    assert dict(parsed_params) == {name: tuple(choices) for name, choices in params.items()}
    trials = Sweep("tmaze", tuple(parsed_params)).trials()
    expected = 1
    for choices in params.values():
        expected *= len(choices)
    assert len({tuple(trial.items()) for trial in trials}) == len(trials) == expected


@pytest.mark.parametrize("setting", ["memory.chunk-size", "policy.memory.chunk-size"])
def test_a_setting_that_a_memory_lacks_does_not_multiply_its_trials(setting, tmp_path):
    params = ("memory", ("none", "hcam")), (setting, ("4", "8")), ("seed", ("0", "1"))
    sweep = Sweep("tmaze-demo", params)
    trials = [tuple(trial.values()) for trial in sweep.trials()]
    assert trials[:2] == [("none", "-", "0"), ("none", "-", "1")]
    assert trials[2:] == [("hcam", size, seed) for size in ("4", "8") for seed in ("0", "1")]
    first, *_, last = sweep.trials()
    assert sweep.arguments(first) == ["--memory", "none", "--seed", "0"]
    assert sweep.arguments(last) == ["--memory", "hcam", f"--{setting}", "8", "--seed", "1"]
    assert sweep.folder(tmp_path, first).name == "memory=none_seed=0"
    assert read_means(sweep, [0.1, 0.3, 0.5, 0.5, 0.7, 0.7], tmp_path) == [
        "| memory=none | 0.200 | 2 |",
        f"| memory=hcam {setting}=4 | 0.500 | 2 |",
        f"| memory=hcam {setting}=8 | 0.700 | 2 |",
        "| memory=none | 0.200 | 2 |",
        "| memory=hcam | 0.600 | 4 |",
        f"| {setting}=4 | 0.500 | 2 |",
        f"| {setting}=8 | 0.700 | 2 |",
    ]


def test_tune_gets_short_names():
    """Its tables cut names at 20 characters."""
    names = ("memory", "learner.learning-rate", "set.corridor_length", "memory.dim", "policy.dim")
    sweep = Sweep("tmaze", tuple((name, ("1",)) for name in names))
    short = ["memory", "learning-rate", "corridor_length", "memory.dim", "policy.dim"]
    assert list(sweep.short_names) == short
    config = {name: str(number) for number, name in enumerate(short)}
    assert list(sweep.from_tune(config).items()) == [(name, str(n)) for n, name in enumerate(names)]
    assert sweep.from_tune({}) == {}


def test_words_are_flags_of_train():
    sweep = Sweep(
        "tmaze", (("ppo.gamma", ("0.9",)), ("set.corridor_length", ("5",))), ("--total-steps", "10")
    )
    (trial,) = sweep.trials()
    assert sweep.arguments(trial) == [
        "--total-steps",
        "10",
        "--ppo.gamma",
        "0.9",
        "--set",
        "corridor_length=5",
    ]


TINY = ("--total-steps", "64", "--env.num-envs", "4", "--segment-length", "8", "--eval-episodes", "2")
PARAMS = (("memory", ("none", "gru")), ("seed", ("0", "1")), ("learner.learning-rate", ("1e-7", "1e-3")))


@pytest.mark.parametrize("compare_memories", [False, True])
def test_early_stopping_compares_no_seeds_and_memories_only_if_asked(compare_memories, tmp_path):
    """ASHA ends a trial that is worse than the median of the earlier ones in its group, at the first rung."""
    sweep = Sweep("tmaze", PARAMS, (), "asha", compare_memories)
    scheduler = _make_scheduler(sweep, 100, tmp_path)
    trials = [
        SimpleNamespace(trial_id=str(number), config=config) for number, config in enumerate(sweep.trials())
    ]
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    # The best trials report first, so that each later one of their group ends.
    decisions = {}
    for trial in reversed(trials):
        score = int(trial.trial_id)
        decisions[score] = scheduler.on_trial_result(None, trial, {"score": score, "step": 25})
    stops = {score for score, decision in decisions.items() if decision == "STOP"}
    assert stops == ({0, 1, 2, 3, 4, 6} if compare_memories else {0, 2, 4, 6})


@pytest.mark.parametrize(
    ("param", "is_apart", "is_apart_if_asked"),
    [
        ("seed=0,1", True, True),
        ("set.corridor_length=10,20", True, True),
        ("env=CartPole-v1,Acrobot-v1", True, True),
        ("memory=gru,none", True, False),
        ("memory.parts=gru+hcam,hcam", True, False),
        ("method=mappo,hatrpo", True, False),
        ("learner.learning-rate=1e-3,1e-4", False, False),
    ],
)
def test_early_stopping_compares_only_trials_of_one_task(param, is_apart, is_apart_if_asked):
    """A harder task has lower scores, so its trials would all end early."""
    params = parse_param(param), parse_param("segment-length=8,16")
    for compare_memories, expected in ((False, is_apart), (True, is_apart_if_asked)):
        sweep = Sweep("ppo", params, (), "asha", compare_memories)
        assert len({sweep.group(trial) for trial in sweep.trials()}) == (2 if expected else 1)


def test_without_early_stopping_nothing_is_compared(tmp_path):
    assert _make_scheduler(Sweep("tmaze", PARAMS), 100, tmp_path) is None


def test_a_stopped_trial_gets_a_result_that_says_so(tmp_path):
    sweep = Sweep("tmaze-demo", PARAMS[2:], TINY, "asha")
    scheduler = _make_scheduler(sweep, 64, tmp_path)
    runs = {}
    for trial in reversed(sweep.trials()):  # the better one first
        config = override(sweep.recipe, sweep.arguments(trial))
        score = float(trial["learner.learning-rate"])
        folder = sweep.folder(tmp_path, trial)
        runs[score] = Run.create(config, folder)
        tune_trial = SimpleNamespace(
            trial_id=str(score), config={"learning-rate": trial["learner.learning-rate"], "more": 1}
        )
        scheduler.on_trial_add(None, tune_trial)
        scheduler.on_trial_result(None, tune_trial, {"score": score, "step": 16})
    assert {score: run.status for score, run in runs.items()} == {1e-3: "unfinished", 1e-7: "stopped early"}
    finished_run = resume(runs[1e-3].path)
    result = (finished_run.path / "result.json").read_text()
    last = {"score": 1.0, "step": 64, "finished": True}
    scheduler.on_trial_result(None, SimpleNamespace(trial_id="0.001", config={"learning-rate": "1e-3"}), last)
    assert finished_run.status == "finished"
    assert (finished_run.path / "result.json").read_text() == result


def test_the_table_marks_trials_that_were_stopped(tmp_path):
    sweep = Sweep("tmaze-demo", PARAMS[:2], ("--total-steps", "40960"))
    whole = {"score": 0.3, "step": 40_960, "finished": True}
    results = [
        (trial, metrics, error)
        for trial, (metrics, error) in zip(
            sweep.trials(),
            [
                ({"score": 0.9, "step": 12_288}, None),
                (whole, None),
                ({}, "error"),
                (whole, None),
            ],
            strict=True,
        )
    ]
    lines = _table(sweep, tmp_path, results).splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith(("| none", "| gru"))]
    assert [row[4] for row in rows] == ["finished", "finished", "stopped early", "failed"]
    assert rows[2][2:4] == ["0.900", "12,288 of 40,960"]
    assert any("Do not compare" in line for line in lines)
    assert not any("Do not compare" in line for line in _table(sweep, tmp_path, results[1:2]).splitlines())


def read_means(sweep, scores, tmp_path):
    """Return the rows of the table of means for trials with these scores; None is a failed trial."""
    results = [
        (trial, {} if score is None else {"score": score, "step": 1, "finished": True}, score is None)
        for trial, score in zip(sweep.trials(), scores, strict=True)
    ]
    text = _table(sweep, tmp_path, results)
    assert ("| settings | mean | trials |" in text) == ("Mean score" in text)
    return text.partition("| settings | mean | trials |\n| --- | --- | --- |\n")[2].splitlines()


def test_the_table_has_a_mean_for_each_setting(tmp_path):
    assert read_means(Sweep("tmaze-demo", PARAMS), [0.1, 0.3, 0.2, 0.6, 0.7, None, 0.8, 0.9], tmp_path) == [
        "| memory=none learner.learning-rate=1e-7 | 0.150 | 2 |",
        "| memory=none learner.learning-rate=1e-3 | 0.450 | 2 |",
        "| memory=gru learner.learning-rate=1e-7 | 0.750 | 2 |",
        "| memory=gru learner.learning-rate=1e-3 | 0.900 | 1 |",
        "| memory=none | 0.300 | 4 |",
        "| memory=gru | 0.800 | 3 |",
        "| learner.learning-rate=1e-7 | 0.450 | 4 |",
        "| learner.learning-rate=1e-3 | 0.600 | 3 |",
    ]


def test_a_table_without_repetitions_has_no_means(tmp_path):
    assert read_means(Sweep("tmaze-demo", PARAMS[:1]), [0.1, 0.3], tmp_path) == []
    assert read_means(Sweep("tmaze-demo", PARAMS[1:2]), [0.1, 0.3], tmp_path) == []
    assert read_means(Sweep("tmaze-demo", PARAMS[:2]), [0.1, None, math.nan, 0.3], tmp_path) == []
    means = read_means(Sweep("tmaze-demo", (PARAMS[0], PARAMS[2])), [0.0, 0.2, 0.4, 0.6], tmp_path)
    assert means[0] == "| memory=none | 0.100 | 2 |"
    assert len(means) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tmaze"], "sweep needs at least one --param NAME=V1,V2"),
        (["tmaze", "--param", "seed=0,0"], "param 'seed': duplicate flag or value; give it once"),
        (["tmaze", "--param", "memory"], "param 'memory': write it as name=v1,v2"),
        (["tmaze", "--param", "memory=gru,grue"], "trial memory=grue: unknown memory 'grue'"),
        (
            ["tmaze", "--param", "memory=gru,none", "--param", "memory.chunk-size=4,8"],
            "trial memory=gru memory.chunk-size=4: unknown option '--policy.memory.chunk-size': of the",
        ),
        (
            ["tmaze", "--param", "ppo.gama=0.9"],
            "unknown option '--learner.gama'; did you mean '--learner.gamma'?",
        ),
        (["tmaze", "--param", "set.corridor_length=0"], "corridor_length=0"),
        (
            ["tmaze", "--param", "seed=0,1", "--param", "memory=gru,none", "--early-stopping", "asha"],
            "early_stopping='asha': no two trials may be compared, since they differ in seed, task or memory",
        ),
        (["tmaze", "--param", "memory=gru,none", "--compare-memories"], "add --early-stopping asha"),
        (["tmaze", "--param", "seed=0", "--jobs", "many"], "--jobs 'many': expected a whole number"),
    ],
)
def test_wrong_flags_are_one_line(words, message, usage_error):
    assert message in usage_error("sweep", *words)


def test_what_tune_has_pickled_is_not_read_without_trust(here, tmp_path):
    (tmp_path / "out" / "tune").mkdir(parents=True)
    (tmp_path / "out" / "tune" / "tuner.pkl").write_bytes(b"cos\nmkdir\n(S'harm'\ntR.")
    code, _, err = here("sweep", "tmaze-demo", "--param", "seed=0", "--out", "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "add --trust" in err
    assert not (tmp_path / "harm").exists()


def test_a_sweep_of_another_version_is_refused(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("Invalid `param_space` input")

    monkeypatch.setattr(tune.Tuner, "can_restore", lambda _: True)
    monkeypatch.setattr(tune.Tuner, "restore", refuse)
    with pytest.raises(UsageError, match=r"tune is from another version of Scrubjay.*choose another --out"):
        _tuner(Sweep("tmaze-demo", (("seed", ("0",)),)), tmp_path, 1, 100)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("early_stopping", [pytest.param("none", marks=pytest.mark.matrix), "asha"])
def test_a_stopped_sweep_goes_on_and_tells_who_was_best(start, tmp_path, early_stopping):
    params = ["--param", "memory=none,gru", "--param", "ppo.learning-rate=1e-7,1e-3"]
    params += ["--early-stopping", early_stopping]
    words = ["tmaze-demo", *params, "--out", "out", "--total-steps", 40_000, "--eval-episodes", 20]
    words += ["--checkpoint-seconds", 1, "--set", "corridor_length=3", "--ppo.no-anneal"]
    first = start("sweep", *words)
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("out/*/checkpoints/step_*")):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    out, _ = first.communicate(timeout=600)
    assert first.returncode == 130
    assert "run the same command with --trust to continue" in out
    assert not (tmp_path / "out" / "table.md").exists()
    trial_names = {path.parents[1].name for path in tmp_path.glob("out/*/checkpoints/step_*")}
    failed_sweep = start("sweep", *words)
    _, err = failed_sweep.communicate(timeout=600)
    assert failed_sweep.returncode == 2
    assert "add --trust" in err
    second = start("sweep", *words, "--trust")
    out, err = second.communicate(timeout=600)
    assert second.returncode == 0, out + err
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in out
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith(("| none", "| gru"))]
    assert len(rows) == 4
    for row in rows:
        run = Run.load(tmp_path / row[5].strip(" |"))
        assert (run.path / "result.json").exists()
        assert run.status == row[4].strip()
    states = [row[4].strip() for row in rows]
    assert states == ["finished"] * 4 if early_stopping == "none" else states[0] == "finished"
    assert rows[0][0] == "| gru"
    assert rows[0][1] == "1e-3"
    # Trials started before the stop were continued, not restarted: every update is logged once.
    for name in trial_names:
        steps = [row["step"] for row in Run.load(tmp_path / "out" / name).metrics()]
        assert steps == sorted(set(steps))
    other = start("sweep", *words, "--seed", 1)
    _, err = other.communicate(timeout=600)
    assert other.returncode == 2
    assert "holds another sweep" in err
