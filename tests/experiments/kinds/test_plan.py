"""Runs that go on to another total than they were begun for: plan, record, and the end they come to."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import pytest
from gymnasium.spaces import Dict

from scrubjay.agents import PPOConfig
from scrubjay.experiments import EnvConfig, RayOptions, Run, resume, train
from scrubjay.experiments.kinds import from_json, to_json
from scrubjay.experiments.kinds.local import LocalEngine
from scrubjay.experiments.kinds.plan import Extension
from scrubjay.experiments.kinds.sequence import SequenceEngine
from scrubjay.experiments.launching.parallel import prepare
from scrubjay.experiments.runs.directory import lock
from scrubjay.experiments.training import CannotBeginError, go_on
from scrubjay.experiments.words.failures import UsageError

from .smallest import SEQUENCES, TEAM

MOST = SEQUENCES.total_steps
"""Tokens of four batches."""


@pytest.fixture
def copy(finished_run, tmp_path) -> Path:
    """A directory of a finished run of 192 steps, to be extended."""
    return shutil.copytree(finished_run.path, tmp_path / "extended")


@pytest.fixture
def stopped(tiny, tmp_path) -> Run:
    """A run of 192 steps that was stopped after 32."""
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


@pytest.mark.parametrize("env_id", ["scrubjay/TMaze-v0", "scrubjay.envs.tmaze:TMaze"])
def test_so_is_who_sees_the_step_before(env_id, tiny, tmp_path, assert_same):
    env = EnvConfig(env_id, {"corridor_length": 4}, num_envs=4, inputs=("observation", "action", "reward"))
    train(tiny(env=env), tmp_path / "extended")
    run = resume(tmp_path / "extended", total_steps=384)
    assert_same(run, train(tiny(env=env, total_steps=384), tmp_path / "at once"))
    seen = run.policy.observation_space
    assert isinstance(seen, Dict)
    assert list(seen.spaces) == ["action", "observation", "reward"]


def test_so_is_a_team(tmp_path, assert_same):
    train(TEAM, tmp_path / "extended")
    run = resume(tmp_path / "extended", total_steps=128)
    assert_same(run, train(dataclasses.replace(TEAM, total_steps=128), tmp_path / "at once"))


def test_a_rate_that_falls_keeps_the_first_plan_and_then_its_last_value(tmp_path):
    plan = train(SEQUENCES, tmp_path / "run")
    falling = [row["charts/learning_rate"] for row in plan.metrics()]
    assert falling == [SEQUENCES.learning_rate * (1 - done / 4) for done in range(4)]
    resume(plan.path, total_steps=MOST + 1)
    run = resume(plan.path, total_steps=2 * MOST)
    assert [row["charts/learning_rate"] for row in run.metrics()] == falling + 4 * falling[-1:]
    assert run.result["step"] == 2 * MOST
    assert steps_in(run) == [64 * update for update in range(1, 9)]


def test_so_does_one_of_ppo(tiny, tmp_path):
    annealing = dataclasses.replace(
        tiny(eval_episodes=0), ppo=PPOConfig(epochs=1, num_minibatches=2, anneal=True)
    )
    plan = train(annealing, tmp_path / "run")
    falling = [row["charts/learning_rate"] for row in plan.metrics()]
    assert falling == pytest.approx([3e-4 * (1 - done / 6) for done in range(6)])
    run = resume(plan.path, total_steps=256)
    assert [row["charts/learning_rate"] for row in run.metrics()] == falling + 2 * falling[-1:]


def test_a_stopped_plan_goes_on_falling_as_if_it_had_not_been_extended(tmp_path):
    run = Run.create(SEQUENCES, tmp_path / "run")
    with SequenceEngine(SEQUENCES, run.path) as engine:
        engine.update()
        engine.save()
    run = resume(run.path, total_steps=MOST + 64)
    expected = [SEQUENCES.learning_rate * (1 - done / 4) for done in (0, 1, 2, 3, 3)]
    assert [row["charts/learning_rate"] for row in run.metrics()] == expected


def test_a_run_that_was_begun_with_its_extensions_comes_to_the_same_end(tmp_path, assert_same):
    train(SEQUENCES, tmp_path / "extended")
    run = resume(tmp_path / "extended", total_steps=2 * MOST)
    assert_same(train(run.config, tmp_path / "at once"), run)


def test_config_json_tells_of_every_extension(copy, finished_run):
    resume(copy, total_steps=200)
    resume(copy, total_steps=250)
    fields = json.loads((copy / "config.json").read_text())
    assert fields["total_steps"] == 250
    assert fields["extensions"] == [
        {"planned": 192, "done": 192, "total": 200},
        {"planned": 200, "done": 224, "total": 250},
    ]
    assert Run.load(copy).config.as_begun() == finished_run.config


def test_a_run_that_was_never_extended_says_nothing_of_it(finished_run):
    fields = json.loads((finished_run.path / "config.json").read_text())
    assert not {"extensions", "init_from", "init_step"} & fields.keys()


def test_a_stopped_run_may_be_given_more_or_fewer_or_what_it_had(stopped, tmp_path):
    for total, planned, end in ((192, [], 192), (224, [192], 224), (100, [192], 128)):
        path = shutil.copytree(stopped.path, tmp_path / str(total))
        run = resume(path, total_steps=total)
        assert [extension.planned for extension in Run.load(path).config.extensions] == planned  # pyright: ignore[reportAttributeAccessIssue]
        assert (run.result["step"], steps_in(run)[-1]) == (end, end)


def test_stopped_by_an_error_in_an_extension_it_goes_on_to_the_extended_total(
    copy, tiny, tmp_path, assert_same
):
    class Lost(Exception):
        pass

    def listen(step, row):
        if step == 288:
            raise Lost

    with pytest.raises(Lost):
        go_on(Run.load(copy).extended(384), on_update=listen)
    assert not Run.load(copy).finished
    assert_same(resume(copy), train(tiny(total_steps=384), tmp_path / "at once"))


@pytest.mark.slow  # a process begins
def test_so_it_does_when_it_was_killed(copy, tiny, tmp_path, start, assert_same):
    fields = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(fields | {"checkpoint_seconds": 0.1}))
    process = start("resume", copy, "--total-steps", 32 * 120, "--quiet")
    run = Run.load(copy)
    while run.step < 32 * 10:
        assert process.poll() is None, process.communicate()
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not run.finished
    whole = tiny(total_steps=32 * 120, checkpoint_seconds=0.1)
    assert_same(resume(copy), train(whole, tmp_path / "at once"))


def test_a_run_in_use_or_damaged_is_not_extended(copy):
    before = (copy / "config.json").read_text()
    with lock(copy), pytest.raises(CannotBeginError, match="being trained"):
        resume(copy, total_steps=384)
    (copy / "metrics.jsonl").write_text("[]\n" * 9999)
    with pytest.raises(CannotBeginError, match="damaged"):
        resume(copy, total_steps=384)
    assert Run.load(copy).finished
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(ValueError, match="no whole checkpoint to go on from"):
        resume(copy, total_steps=384)
    assert (copy / "config.json").read_text() == before


def test_what_another_process_has_extended_meanwhile_is_left_to_it(copy):
    run = Run.load(copy).extended(384)
    resume(copy, total_steps=224)
    with pytest.raises(ValueError, match="extended by another process"):
        run.write_extension()
    assert Run.load(copy).config.total_steps == 224


@pytest.mark.parametrize(
    ("extensions", "told"),
    [
        ([{"planned": 192, "done": 192, "total": 300}], "total_steps=192.*says 300"),
        ([{"planned": 192, "done": 192, "total": 192}], "192 steps are done already"),
        ([{"planned": 0, "done": 1, "total": 192}], "planned=0"),
        ([{"planned": 9, "done": -1, "total": 192}], "done=-1"),
        ([{"planned": 9, "done": True, "total": 192}], r"extensions\[0\].done=True: expected int"),
        ([{"planned": 9, "done": 1, "total": 1e9}], r"extensions\[0\].total=1000000000.0: expected int"),
        ([{"planned": 9, "done": 9}], r"extensions\[0\] lacks total"),
        ([{"planned": 9, "done": 9, "total": 192, "by": "me"}], "no field by"),
        ([9], r"extensions\[0\]=9: expected an object"),
        ("all", "extensions='all'"),
        (
            [{"planned": 9, "done": 9, "total": 20}, {"planned": 21, "done": 20, "total": 192}],
            "does not follow",
        ),
        (
            [{"planned": 9, "done": 9, "total": 20}, {"planned": 20, "done": 8, "total": 192}],
            "does not follow",
        ),
    ],
)
def test_a_strangers_extensions_are_checked_like_all_else(extensions, told, tiny):
    fields = json.loads(to_json(tiny()))
    with pytest.raises(ValueError, match=told):
        from_json(json.dumps(fields | {"extensions": extensions}))


def test_one_that_holds_is_read_and_written_as_it_is(tiny):
    config = tiny().extended(400, 192).extended(500, 416)
    assert config.extensions == (Extension(192, 192, 400), Extension(400, 416, 500))
    assert from_json(to_json(config)) == config
    assert (config.total_steps, config.first_plan) == (500, 192)
    with pytest.raises(ValueError, match=r"total_steps=9.*extensions"):
        dataclasses.replace(config, total_steps=9)


def test_a_comparison_takes_one_of_its_own_that_was_extended_as_it_is_now(copy, tiny):
    resume(copy, total_steps=224)
    found = prepare(tiny(), copy)
    assert found.finished
    assert found.config == Run.load(copy).config
    with pytest.raises(UsageError, match="other settings"):
        prepare(tiny(total_steps=224), copy)


@pytest.mark.slow  # tests at other lengths are of a hundred episodes each
def test_compare_takes_a_run_of_its_own_that_was_extended(here, tmp_path):
    words = [
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
        assert here("train", "tmaze-demo", *words, *train_words)[0] == 0
    assert here("resume", "out/tmaze-demo-none-s1", "--total-steps", 128, "--quiet")[0] == 0
    code, _, err = here(*compare, "--seeds", "0", "1", "--", *words)
    assert code == 0, err
    assert here("export", "out/tmaze-demo-none-s1")[0] == 0
    assert "| 64 to 128 |" in (tmp_path / "out" / "table.md").read_text()
    assert "other settings" in here(*compare, "--seeds", "1", "--", *words, "--total-steps", "96")[2]


@pytest.mark.slow  # Ray begins
@pytest.mark.usefixtures("cluster")
def test_on_ray_it_is_extended_like_anywhere(tiny, tmp_path, assert_same):
    whole = train(tiny(total_steps=384), tmp_path / "at once")
    for name, first, then in (("to", None, RayOptions(1, 0)), ("from", RayOptions(1, 0), None)):
        train(tiny(), tmp_path / name, ray=first)
        assert_same(resume(tmp_path / name, ray=then, total_steps=384), whole)
