"""Runs that are extended to another number of steps: learning rate plan, record and result; and seeds."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from itertools import combinations
from pathlib import Path

import pytest
from gymnasium.spaces import Dict
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents import PPOConfig
from scrubjay.experiments import EnvConfig, RayOptions, Run, resume, train
from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.commands.main import main
from scrubjay.experiments.files import lock
from scrubjay.experiments.launch.parallel import prepare
from scrubjay.experiments.runs.config import Extension, derive_seed
from scrubjay.experiments.runs.engine import LocalEngine
from scrubjay.experiments.runs.kinds import from_json, to_json
from scrubjay.experiments.runs.sequence import SequenceEngine
from scrubjay.experiments.training import TrainingStartError, run_training

from ..smallest import SEQUENCES, TEAM

PLANNED_STEPS = SEQUENCES.total_steps
"""Planned steps of `SEQUENCES`, in tokens: four batches."""


@pytest.fixture
def copy(finished_run, tmp_path) -> Path:
    """Return a copy of a finished run of 192 steps, to be extended."""
    return shutil.copytree(finished_run.path, tmp_path / "extended")


@pytest.fixture
def stopped_run(tiny, tmp_path) -> Run:
    """Return a run of 192 steps that was stopped after 32."""
    run = Run.create(tiny(), tmp_path / "stopped")
    with LocalEngine(run.config, run.path) as engine:
        engine.update()
        engine.save()
    return run


def steps_in(run: Run) -> list[float]:
    return [row["step"] for row in run.metrics()]


def test_trained_and_extended_is_trained_to_the_extended_total(copy, tiny, tmp_path, assert_same):
    before = json.loads((copy / "result.json").read_text())
    run = resume(copy, total_steps=384)
    assert_same(run, train(tiny(total_steps=384), tmp_path / "at once"))
    assert steps_in(run) == [32 * update for update in range(1, 13)]
    assert (before["step"], run.result["step"], run.step) == (192, 384, 384)
    assert run.config.planned_steps == run.config.total_steps == 384


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["scrubjay/TMaze-v0", "scrubjay.envs.tmaze:TMaze"])
def test_a_policy_that_observes_the_last_action_is_extended(env_id, tiny, tmp_path, assert_same):
    env = EnvConfig(env_id, {"corridor_length": 4}, num_envs=4, inputs=("observation", "action", "reward"))
    train(tiny(env=env), tmp_path / "extended")
    run = resume(tmp_path / "extended", total_steps=384)
    assert_same(run, train(tiny(env=env, total_steps=384), tmp_path / "at once"))
    space = run.policy.observation_space
    assert isinstance(space, Dict)
    assert list(space.spaces) == ["action", "observation", "reward"]


@pytest.mark.slow
def test_a_team_is_extended(tmp_path, assert_same):
    train(TEAM, tmp_path / "extended")
    run = resume(tmp_path / "extended", total_steps=128)
    assert_same(run, train(dataclasses.replace(TEAM, total_steps=128), tmp_path / "at once"))


def test_a_decaying_learning_rate_keeps_the_first_plan_and_then_its_last_value(tmp_path):
    plan = train(SEQUENCES, tmp_path / "run")
    falling = [row["charts/learning_rate"] for row in plan.metrics()]
    assert falling == [SEQUENCES.learning_rate * (1 - done / 4) for done in range(4)]
    resume(plan.path, total_steps=PLANNED_STEPS + 1)
    run = resume(plan.path, total_steps=2 * PLANNED_STEPS)
    assert [row["charts/learning_rate"] for row in run.metrics()] == falling + 4 * falling[-1:]
    assert run.result["step"] == 2 * PLANNED_STEPS
    assert steps_in(run) == [64 * update for update in range(1, 9)]


def test_the_learning_rate_of_ppo_keeps_its_last_value(tiny, tmp_path):
    annealing = dataclasses.replace(
        tiny(eval_episodes=0), learner=PPOConfig(epochs=1, num_minibatches=2, anneal=True)
    )
    plan = train(annealing, tmp_path / "run")
    falling = [row["charts/learning_rate"] for row in plan.metrics()]
    rate = PPOConfig.learning_rate
    assert falling == pytest.approx([rate * (1 - done / 6) for done in range(6)])
    run = resume(plan.path, total_steps=256)
    assert [row["charts/learning_rate"] for row in run.metrics()] == falling + 2 * falling[-1:]


@pytest.mark.parametrize("anneals", [True, False])
def test_the_command_says_that_a_schedule_has_ended(anneals, tiny, tmp_path, capsys):
    learner = PPOConfig(epochs=1, num_minibatches=2, anneal=anneals)
    path = str(train(tiny(eval_episodes=0, learner=learner), tmp_path / "run").path)
    assert main(["resume", path, "--total-steps", "256", "--quiet"]) == 0
    assert ("learning rate, reached their last values after 192 steps" in capsys.readouterr().err) == anneals


def test_the_schedules_of_an_extended_run_keep_their_first_plan(tiny, tmp_path):
    learner = PPOConfig(epochs=1, num_minibatches=2, clip_end=0.1, entropy_end=0.0)
    plan = train(tiny(eval_episodes=0, learner=learner), tmp_path / "run")
    clips = [row["charts/clip"] for row in plan.metrics()]
    assert clips == pytest.approx([0.2 - 0.1 * done / 6 for done in range(6)])
    run = resume(plan.path, total_steps=256)
    assert [row["charts/clip"] for row in run.metrics()] == clips + [0.1] * 2
    assert [row["charts/entropy_coefficient"] for row in run.metrics()][-3:] == pytest.approx(
        [0.01 / 6, 0, 0]
    )


def test_the_learning_rate_of_a_stopped_run_follows_the_first_plan(tmp_path):
    run = Run.create(SEQUENCES, tmp_path / "run")
    with SequenceEngine(SEQUENCES, run.path) as engine:
        engine.update()
        engine.save()
    run = resume(run.path, total_steps=PLANNED_STEPS + 64)
    expected = [SEQUENCES.learning_rate * (1 - done / 4) for done in (0, 1, 2, 3, 3)]
    assert [row["charts/learning_rate"] for row in run.metrics()] == expected


def test_a_run_started_with_its_extensions_has_the_same_result(tmp_path, assert_same):
    train(SEQUENCES, tmp_path / "extended")
    run = resume(tmp_path / "extended", total_steps=2 * PLANNED_STEPS)
    assert_same(train(run.config, tmp_path / "at once"), run)


def test_config_json_records_every_extension(copy, finished_run):
    resume(copy, total_steps=200)
    resume(copy, total_steps=250)
    fields = json.loads((copy / "config.json").read_text())
    assert fields["total_steps"] == 250
    assert fields["extensions"] == [
        {"previous_total": 192, "done": 192, "total": 200},
        {"previous_total": 200, "done": 224, "total": 250},
    ]
    assert Run.load(copy).config.without_extensions() == finished_run.config


def test_config_json_has_empty_extensions_if_there_are_none(finished_run):
    fields = json.loads((finished_run.path / "config.json").read_text())
    assert (fields["extensions"], fields["init_from"], fields["init_step"]) == ([], None, None)


def test_a_stopped_run_accepts_any_number_of_steps(stopped_run, tmp_path):
    for total, previous_totals, end in ((192, [], 192), (224, [192], 224), (100, [192], 128)):
        path = shutil.copytree(stopped_run.path, tmp_path / str(total))
        run = resume(path, total_steps=total)
        assert [extension.previous_total for extension in Run.load(path).config.extensions] == previous_totals  # pyright: ignore[reportAttributeAccessIssue]
        assert (run.result["step"], steps_in(run)[-1]) == (end, end)


def test_stopped_by_an_error_in_an_extension_it_goes_on_to_the_extended_total(
    copy, tiny, tmp_path, assert_same
):
    class CallbackError(Exception):
        pass

    def listen(step, row):
        if step == 288:
            raise CallbackError

    with pytest.raises(CallbackError):
        run_training(Run.load(copy).with_total_steps(384), on_update=listen)
    assert not Run.load(copy).is_finished
    assert_same(resume(copy), train(tiny(total_steps=384), tmp_path / "at once"))


@pytest.mark.matrix  # starts a process
def test_killed_in_an_extension_it_goes_on_to_the_extended_total(copy, tiny, tmp_path, start, assert_same):
    fields = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(fields | {"checkpoint_seconds": 0.1}))
    process = start("resume", copy, "--total-steps", 32 * 120, "--quiet")
    run = Run.load(copy)
    while run.step < 32 * 10:
        assert process.poll() is None, process.communicate()
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not run.is_finished
    reference = tiny(total_steps=32 * 120, checkpoint_seconds=0.1)
    assert_same(resume(copy), train(reference, tmp_path / "at once"))


def test_a_run_in_use_or_damaged_is_not_extended(copy):
    before = (copy / "config.json").read_text()
    with lock(copy), pytest.raises(TrainingStartError, match="being trained"):
        resume(copy, total_steps=384)
    (copy / "metrics.jsonl").write_text("[]\n" * 9999)
    with pytest.raises(TrainingStartError, match="damaged"):
        resume(copy, total_steps=384)
    assert Run.load(copy).is_finished
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(ValueError, match="no complete checkpoint to resume from"):
        resume(copy, total_steps=384)
    assert (copy / "config.json").read_text() == before


def test_an_extension_by_another_process_is_not_overwritten(copy):
    run = Run.load(copy).with_total_steps(384)
    resume(copy, total_steps=224)
    with pytest.raises(ValueError, match="extended by another process"):
        run.write_extension()
    assert Run.load(copy).config.total_steps == 224


@pytest.mark.parametrize(
    ("extensions", "message"),
    [
        ([{"previous_total": 192, "done": 192, "total": 300}], "total_steps=192.*last extension, 300"),
        ([{"previous_total": 192, "done": 192, "total": 192}], "the run has completed 192 steps"),
        ([{"previous_total": 0, "done": 1, "total": 192}], "previous_total=0"),
        ([{"previous_total": 9, "done": -1, "total": 192}], "done=-1"),
        ([{"previous_total": 9, "done": True, "total": 192}], r"extensions\[0\].done=True: expected int"),
        (
            [{"previous_total": 9, "done": 1, "total": 1e9}],
            r"extensions\[0\].total=1000000000.0: expected int",
        ),
        ([{"previous_total": 9, "done": 9}], r"extensions\[0\] is missing the required fields total"),
        ([{"previous_total": 9, "done": 9, "total": 192, "by": "me"}], "no field by"),
        ([9], r"extensions\[0\]=9: expected a JSON object"),
        ("all", "extensions='all'"),
        (
            [{"previous_total": 9, "done": 9, "total": 20}, {"previous_total": 21, "done": 20, "total": 192}],
            "does not follow",
        ),
        (
            [{"previous_total": 9, "done": 9, "total": 20}, {"previous_total": 20, "done": 8, "total": 192}],
            "does not follow",
        ),
    ],
)
def test_untrusted_extensions_are_validated(extensions, message, tiny):
    fields = json.loads(to_json(tiny()))
    with pytest.raises(ValueError, match=message):
        from_json(json.dumps(fields | {"extensions": extensions}))


def test_valid_extensions_survive_json(tiny):
    config = tiny().with_total_steps(400, 192).with_total_steps(500, 416)
    assert config.extensions == (Extension(192, 192, 400), Extension(400, 416, 500))
    assert from_json(to_json(config)) == config
    assert (config.total_steps, config.first_plan) == (500, 192)
    with pytest.raises(ValueError, match=r"total_steps=9.*extensions"):
        dataclasses.replace(config, total_steps=9)


def test_a_comparison_reuses_its_run_with_the_extended_total(copy, tiny):
    resume(copy, total_steps=224)
    run = prepare(tiny(), copy)
    assert run.is_finished
    assert run.config == Run.load(copy).config
    with pytest.raises(UsageError, match=r"other settings: total_steps is 224 here and \d+ there;"):
        prepare(tiny(total_steps=224), copy)


@pytest.mark.slow  # evaluates a hundred episodes at each other length
def test_compare_reuses_its_extended_run(here, tmp_path):
    arguments = [
        "--set",
        "corridor_length=4",
        "--total-steps",
        "64",
        "--env.num-envs",
        "4",
        "--segment-length",
        "8",
        "--eval-episodes",
        "2",
    ]
    compare = ["compare", "--memories", "none", "--recipes", "tmaze-demo", "--jobs", "1", "--out", "out"]
    for seed in (0, 1):
        path = f"out/tmaze-demo-none-s{seed}"
        train_words = ["--memory", "none", "--seed", seed, "--run-dir", path, "--quiet"]
        assert here("train", "tmaze-demo", *arguments, *train_words)[0] == 0
    assert here("resume", "out/tmaze-demo-none-s1", "--total-steps", 128, "--quiet")[0] == 0
    code, _, err = here(*compare, "--seeds", "0", "1", "--", *arguments)
    assert code == 0, err
    assert here("export", "out/tmaze-demo-none-s1")[0] == 0
    assert "| 64 to 128 |" in (tmp_path / "out" / "table.md").read_text()
    assert "other settings" in here(*compare, "--seeds", "1", "--", *arguments, "--total-steps", "96")[2]


@pytest.mark.matrix  # starts Ray
@pytest.mark.usefixtures("cluster")
def test_a_run_on_ray_is_extended_to_the_same_result(tiny, tmp_path, assert_same):
    reference = train(tiny(total_steps=384), tmp_path / "at once")
    for name, first, then in (("to", None, RayOptions(1, 0)), ("from", RayOptions(1, 0), None)):
        train(tiny(), tmp_path / name, ray=first)
        assert_same(resume(tmp_path / name, ray=then, total_steps=384), reference)


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_environments_of_other_experiments_and_of_evaluation_share_no_seeds(seed, apart):
    num_envs = 1024
    firsts = [
        derive_seed(s, purpose)
        for s in (seed, seed + apart)
        for purpose in ("weights", "sampling", "evaluation")
    ]
    assert all(0 <= first < 2**31 for first in firsts)
    # Environments have seeds first, first + 1, ...: two batches share seeds only if their firsts are close.
    close = sum(abs(a - b) < num_envs for a, b in combinations(firsts, 2))
    assert close <= 1


def test_the_same_experiment_gets_the_same_seeds():
    assert derive_seed(3, "sampling") == derive_seed(3, "sampling") != derive_seed(3, "evaluation")
