"""Evaluations during training, the best checkpoint, and runs that solved their task and lost it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.experiments import EnvConfig, Run, Runs, resume, train
from scrubjay.experiments.progress import GracefulInterrupt
from scrubjay.experiments.runs import engine as engine_module
from scrubjay.experiments.runs.checkpoint import load_weights
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.runs.config import derive_seed
from scrubjay.experiments.runs.engine import LocalEngine
from scrubjay.experiments.runs.evaluation import evaluate, evaluate_step, evaluate_team
from scrubjay.experiments.runs.retention import FIELDS, describe_scores, summarize_scores
from scrubjay.experiments.statistics import wilson_interval

from .. import smallest

EVALUATIONS = [64, 128, 192]
"""Steps of the evaluations of a run in `evaluating`."""


def without_evaluations(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if not name.startswith("eval/")} for row in rows]


def evaluation_scores(run: Run) -> dict[float, tuple[float, float]]:
    """Return the success rate and the return of each evaluation by its step."""
    return {
        row["step"]: (row["eval/success"], row["eval/episodic_return"])
        for row in run.metrics()
        if "eval/success" in row
    }


def test_evaluations_do_not_change_training(evaluating, evaluated_run, tmp_path, record):
    plain = train(dataclasses.replace(evaluating, eval_every=0), tmp_path / "plain")
    assert without_evaluations(record(evaluated_run)) == record(plain)
    weights, expected = load_weights(evaluated_run.checkpoint), load_weights(plain.checkpoint)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    scores = {name for name in plain.result if name not in FIELDS} - {"seconds"}
    assert {name: plain.result[name] for name in scores} == {
        name: evaluated_run.result[name] for name in scores
    }


def test_an_environment_with_global_randomness_is_not_disturbed_either(tiny, tmp_path, monkeypatch, record):
    (tmp_path / "dice.py").write_text(DICE)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = tiny(env=EnvConfig("dice:Dice", num_envs=2), total_steps=64, eval_every_episodes=3)
    plain = train(config, tmp_path / "plain")
    run = train(dataclasses.replace(config, eval_every=16), tmp_path / "run")
    assert without_evaluations(record(run)) == record(plain)
    assert len(evaluation_scores(run)) == 4


DICE = """
import random
import gymnasium
import numpy as np

class Dice(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return int(np.random.randint(2)), {}

    def step(self, action):
        won = random.random() < 0.5
        return int(np.random.randint(2)), float(won), random.random() < 0.3, False, {"is_success": won}
"""


def test_an_evaluation_plays_its_own_episodes_after_the_update_that_is_due(evaluated_run):
    config = evaluated_run.config
    assert list(evaluation_scores(evaluated_run)) == EVALUATIONS
    rows = {row["step"]: row for row in evaluated_run.metrics()}
    for step in EVALUATIONS:
        policy = Run.load(evaluated_run.path, checkpoint=f"step_{step}").policy
        summary = evaluate(policy, config.env, 6, derive_seed(config.seed, "evaluation", step)).summary()
        assert summary == {name: rows[step][f"eval/{name}"] for name in summary}
        assert rows[step]["eval/episodes"] == 6
    seeds = {derive_seed(config.seed, "evaluation", step) for step in (0, *EVALUATIONS)}
    assert len(seeds) == 1 + len(EVALUATIONS)


def test_the_best_checkpoint_has_the_best_score_and_survives_the_rotation(evaluating, tmp_path, monkeypatch):
    """The scores fall after the second evaluation, and more checkpoints follow than are kept."""
    rates = iter((0.5, 0.9, 0.9, 0.2, 0.4, 0.1))

    def script(policy, config, step, on_step):
        return {**evaluate_step(policy, config, step, on_step), "eval/success": next(rates)}

    monkeypatch.setattr(engine_module, "evaluate_step", script)
    config = dataclasses.replace(evaluating, eval_every=1, checkpoint_seconds=0)
    weights = {}
    run = Run.create(config, tmp_path / "run")
    with LocalEngine(config, run.path) as engine:
        while not engine.is_finished:
            engine.update()
            weights[engine.step] = {name: each.clone() for name, each in engine.model.state_dict().items()}
    best = Run.load(run.path, checkpoint="best")
    assert best.step == 96, "the later of two equal scores"
    assert all(torch.equal(value, weights[96][name]) for name, value in load_weights(best.checkpoint).items())
    names = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    assert names == ["best_00000096", "step_00000128", "step_00000160", "step_00000192"]
    with pytest.raises(
        ValueError, match=r"checkpoint='step_96': not in .* step_192, step_160, step_128; only"
    ):
        _ = Run.load(run.path, checkpoint="step_96").policy


def test_the_best_checkpoint_plays_the_score_that_was_recorded(evaluated_run):
    config: Any = evaluated_run.config
    best, scores = Run.load(evaluated_run.path, checkpoint="best"), evaluation_scores(evaluated_run)
    highest = max(success for success, _ in scores.values())
    assert best.step == max(step for step, (success, _) in scores.items() if success == highest)
    seed = derive_seed(config.seed, "evaluation", best.step)
    summary = evaluate(best.policy, config.env, 6, seed).summary()
    assert (summary["success"], summary["episodic_return"]) == scores[best.step]
    result = evaluated_run.result
    assert (result["best"], result["best_step"], result["evaluations"]) == (highest, best.step, 3)
    assert result["final"] == result["success"]


class StopHereError(Exception):
    """Kill of a process, for the code around it."""


def kill_in_evaluation(number: int) -> Callable[[int, int], None]:
    """Return a callback of an engine that raises StopHereError in the evaluation with this number."""
    starts = []

    def on_step(steps: int, episodes: int) -> None:
        starts.extend([1] * (steps == 1))
        if len(starts) == number and steps == 2:
            raise StopHereError

    return on_step


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_kill_during_an_evaluation_loses_nothing(number, evaluating, evaluated_run, tmp_path, assert_same):
    config = dataclasses.replace(evaluating, checkpoint_seconds=1e9)
    run = Run.create(config, tmp_path / "run")
    with LocalEngine(config, run.path) as engine:
        engine.on_evaluation_step = kill_in_evaluation(number)
        for _ in range(2 * number - 1):
            engine.update()
        with pytest.raises(StopHereError):
            engine.update()
    step = EVALUATIONS[number - 1]
    assert run.step == step
    assert list(evaluation_scores(run)) == EVALUATIONS[: number - 1]
    resume(run.path)
    assert_same(run, evaluated_run)
    assert Run.load(run.path, checkpoint="best").step == Run.load(evaluated_run.path, checkpoint="best").step


def test_a_run_resumed_after_an_evaluation_repeats_its_row_and_none_twice(
    evaluating, evaluated_run, tmp_path, assert_same
):
    """The process ends after an evaluation, before the next checkpoint."""
    config = dataclasses.replace(evaluating, checkpoint_seconds=1e9)
    run = Run.create(config, tmp_path / "run")
    with LocalEngine(config, run.path) as engine:
        for _ in range(5):
            engine.update()
    assert list(evaluation_scores(run)) == EVALUATIONS[:2]
    resume(run.path)
    assert_same(run, evaluated_run)


def test_a_longer_run_evaluates_on_and_keeps_its_best(evaluated_run, tmp_path, record):
    copy = shutil.copytree(evaluated_run.path, tmp_path / "run")
    run = resume(copy, total_steps=320)
    assert record(run)[: len(record(evaluated_run))] == record(evaluated_run)
    scores = evaluation_scores(run)
    assert list(scores) == [*EVALUATIONS, 256, 320]
    assert run.result["best"] == max(success for success, _ in scores.values())
    assert Run.load(copy, checkpoint="best").step == run.result["best_step"]


def test_a_best_checkpoint_later_than_the_resumed_step_is_trained_again(evaluating, tmp_path):
    """Only after damage: the checkpoints of the last evaluation are torn."""
    run = Run.create(evaluating, tmp_path / "run")
    with LocalEngine(evaluating, run.path) as engine:
        engine.update()
        engine.save()
        engine.update()
    assert Run.load(run.path, checkpoint="best").step == 64
    (run.path / "checkpoints" / "step_00000064" / "training.pt").write_bytes(b"")
    with LocalEngine(evaluating, run.path) as engine:
        assert engine.step == 32
        assert not list(run.path.glob("checkpoints/best_*"))


@pytest.mark.one_in(5, rest="slow")
@pytest.mark.parametrize("damage", ["missing", "short", "altered"])
@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json"])
def test_a_damaged_best_checkpoint_is_refused_and_not_replaced_by_a_worse_one(
    damage, file, evaluated_run, tmp_path, monkeypatch
):
    copy = shutil.copytree(evaluated_run.path, tmp_path / "run")
    (damaged_file,) = copy.glob(f"checkpoints/best_*/{file}")
    content = damaged_file.read_bytes()
    if damage == "missing":
        damaged_file.unlink()
    else:
        damaged_file.write_bytes(
            content[: len(content) // 2] if damage == "short" else content[:-9] + bytes(9)
        )
    with pytest.raises(ValueError, match=r"best_\d{8} is damaged"):
        _ = Run.load(copy, checkpoint="best").policy
    assert Run.load(copy).policy is not None

    def evaluate_badly(policy, config, step, on_step):
        return {**evaluate_step(policy, config, step, on_step), "eval/success": -1.0}

    monkeypatch.setattr(engine_module, "evaluate_step", evaluate_badly)
    resume(copy, total_steps=320)
    with pytest.raises(ValueError, match=r"best_\d{8} is damaged"):
        _ = Run.load(copy, checkpoint="best").policy


def test_weights_that_are_larger_than_the_config_implies_are_refused(evaluated_run, tmp_path):
    copy = shutil.copytree(evaluated_run.path, tmp_path / "run")
    (weights,) = copy.glob("checkpoints/best_*/model.safetensors")
    os.truncate(weights, 2**26 + 2**21)
    with pytest.raises(ValueError, match=r"model\.safetensors has .* bytes: its config implies at most"):
        _ = Run.load(copy, checkpoint="best").policy


def test_a_policy_with_weights_that_are_not_finite_is_not_the_best(tiny, tmp_path):
    config = tiny(
        eval_every=32, eval_every_episodes=2, learner=PPOConfig(learning_rate=1e30, num_minibatches=1)
    )
    run = train(config, tmp_path / "run")
    best = list(run.path.glob("checkpoints/best_*/model.safetensors"))
    weights = [value for file in best for value in load_weights(file.parent).values()]
    assert all(bool(value.isfinite().all()) for value in weights)


def test_ctrl_c_during_an_evaluation_stops_at_once(
    evaluating, evaluated_run, tmp_path, monkeypatch, assert_same
):
    """The signal comes before the first step of the second evaluation."""
    config = dataclasses.replace(evaluating, checkpoint_seconds=1e9)
    calls = []

    def interrupt(policy, config, step, on_step):
        def watch(steps, episodes):
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            on_step(steps, episodes)

        calls.append(step)
        return evaluate_step(policy, config, step, watch)

    assert threading.current_thread() is threading.main_thread()
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "evaluate_step", interrupt)
        with pytest.raises(GracefulInterrupt, match="scrubjay resume"):
            train(config, tmp_path / "run")
    run = Run.load(tmp_path / "run")
    assert (run.status, run.step) == ("unfinished", 128)
    assert list(evaluation_scores(run)) == [64]
    resume(run.path)
    assert_same(run, evaluated_run)


@pytest.mark.slow
def test_a_team_is_evaluated_and_its_best_policy_plays_the_recorded_return(tmp_path, record):
    config = dataclasses.replace(smallest.TEAM, eval_every=32, eval_every_episodes=3)
    run = train(config, tmp_path / "run")
    plain = train(dataclasses.replace(config, eval_every=0), tmp_path / "plain")
    assert without_evaluations(record(run)) == record(plain)
    best = Run.load(run.path, checkpoint="best")
    returns = {
        row["step"]: row["eval/episodic_return"] for row in run.metrics() if "eval/episodic_return" in row
    }
    assert list(returns) == [32, 64]
    assert returns[best.step] == max(returns.values()) == run.result["best"]
    seed = derive_seed(config.seed, "evaluation", best.step)
    assert (
        evaluate_team(best.team_policy, config.env, 3, seed).summary()["episodic_return"]
        == returns[best.step]
    )
    assert "solved_at" not in run.result


@pytest.mark.slow
def test_ray_evaluates_as_the_local_engine_does(
    cluster: Path, evaluating, evaluated_run, tmp_path, assert_same
):
    run = train(evaluating, tmp_path / "run", ray=RayOptions(0))
    assert_same(run, evaluated_run)
    best, expected = (Run.load(each.path, checkpoint="best") for each in (run, evaluated_run))
    assert best.step == expected.step
    weights = load_weights(expected.checkpoint)
    assert all(torch.equal(value, weights[name]) for name, value in load_weights(best.checkpoint).items())


def evaluation(step: int, successes: int, episodes: int = 20) -> dict[str, float]:
    low, high = wilson_interval(successes, episodes)
    names = {
        "success": successes / episodes,
        "success_low": low,
        "success_high": high,
        "episodic_return": 0.0,
    }
    return {"step": step, "charts/success": 0.0, **{f"eval/{name}": value for name, value in names.items()}}


def final(successes: int, episodes: int = 100) -> dict[str, float]:
    low, high = wilson_interval(successes, episodes)
    return {"success": successes / episodes, "success_low": low, "success_high": high}


def windows(*rates: float, episodes: int = 100) -> list[dict[str, float]]:
    return [
        {
            "step": 10 * step,
            "charts/success": rate,
            "charts/episodic_return": rate,
            "charts/episodes": episodes,
        }
        for step, rate in enumerate(rates, 1)
    ]


def summarize(
    rows: list[dict[str, float]], result: dict[str, float], at: float | None = 0.95
) -> dict[str, float]:
    return summarize_scores(rows, result, lambda measure: at if measure == "success" else None)


def test_a_run_that_solved_and_lost_its_task():
    rows = [evaluation(*each) for each in ((10, 2), (20, 19), (30, 20), (40, 5), (50, 20), (60, 9))]
    summary = summarize(rows, final(42))
    assert summary == {
        "final": 0.42,
        "best": 1.0,
        "best_step": 50,
        "evaluations": 6,
        "solved_at": 0.95,
        "solved_step": 20,
        "lowest_after_solved": 0.25,
        "lost": 1,
    }
    assert set(summary) == set(FIELDS)
    texts = ["best 1.000 at step 50", "solved at step 20, lost: final 0.420"]
    assert describe_scores(summary) == texts


def test_without_evaluations_a_better_final_evaluation_is_the_best_score():
    rows = windows(0.2, 0.5, 0.4)
    assert summarize(rows, final(42))["best"] == 0.5
    summary = summarize(rows, final(70))
    assert (summary["best"], summary["best_step"], summary["evaluations"]) == (0.7, 30, 0)


@pytest.mark.parametrize(
    ("successes", "is_lost"),
    [
        (100, 0),
        (93, 0),  # the interval contains the score of a solved task
        (88, 0),  # 20 of 20 and 88 of 100 may be the same policy
        (70, 1),
    ],
)
def test_a_task_is_lost_only_if_the_intervals_say_so(successes, is_lost):
    assert summarize([evaluation(10, 20)], final(successes))["lost"] == is_lost


def test_a_task_that_was_never_solved_is_not_lost():
    summary = summarize([evaluation(10, 18), evaluation(20, 3)], final(10))
    assert summary == {"final": 0.1, "best": 0.9, "best_step": 10, "evaluations": 2, "solved_at": 0.95}
    assert describe_scores(summary) == ["best 0.900 at step 10"]


def test_without_evaluations_full_windows_of_training_episodes_count():
    rows = windows(1.0, episodes=3) + windows(0.5, 0.96, 0.97, 0.4)
    summary = summarize(rows, final(42))
    expected = {"final": 0.42, "best": 0.97, "best_step": 30, "evaluations": 0}
    assert summary == {
        **expected,
        "solved_at": 0.95,
        "solved_step": 20,
        "lowest_after_solved": 0.4,
        "lost": 1,
    }
    assert describe_scores(summary) == ["solved at step 20, lost: final 0.420"]
    summary_at_end = summarize(windows(0.5, 0.96, 0.97), final(42))
    assert summary_at_end["lost"] == 0, "the sampled actions of the training episodes still solve the task"
    assert summarize(windows(1.0, episodes=99), final(42)) == {}
    old = [{"step": 10, "charts/success": 1.0, "charts/episodic_return": 1.0}]
    assert summarize(old, final(42)) == {}, "rows of older versions do not tell the number of episodes"


def test_an_unknown_threshold_leaves_the_columns_empty():
    rows = [{"step": 10, "eval/episodic_return": 5.0}, {"step": 20, "eval/episodic_return": float("nan")}]
    summary = summarize(rows, {"episodic_return": 3.0})
    assert summary == {"final": 3.0, "best": 5.0, "best_step": 10, "evaluations": 1}
    assert summarize(rows[:1], {}) == {"final": 5.0, "best": 5.0, "best_step": 10, "evaluations": 1}
    assert summarize([], {}) == {}


def test_train_reports_a_task_that_was_lost_and_tables_show_it(tiny, tmp_path, here, monkeypatch):
    """The scores of the evaluations are scripted; the final one is that of the untrained policy."""
    rates = iter((20, 3))

    def script(policy, config, step, on_step):
        row = evaluation(step, next(rates))
        return {name: value for name, value in row.items() if name.startswith("eval/")}

    monkeypatch.setattr(engine_module, "evaluate_step", script)
    flags = "--memory gru --memory.dim 16 --env.num-envs 4 --segment-length 8 --learner.num-minibatches 2"
    sizes = "--total-steps 64 --eval-every 32 --eval-episodes 20 --device cpu --quiet"
    code, out, _ = here("train", "tmaze", *flags.split(), *sizes.split(), "--run-dir", tmp_path / "run")
    assert code == 0
    assert "best 1.000 at step 32; solved at step 32, lost: final 0.000" in out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["lost"], result["lowest_after_solved"], result["solved_step"]) == (1, 0.0, 32)
    code, out, _ = here("results", tmp_path / "run")
    assert code == 0
    heading, row = out.splitlines()[:2]
    assert heading.split()[-5:] == ["best", "lowest", "after", "solved", "lost"]
    assert row.split()[-3:] == ["1.000", "0.000", "yes"]
    frame = Runs.load(tmp_path / "run").to_pandas()
    assert frame.loc[0, [*FIELDS]].to_dict() == {name: result[name] for name in FIELDS}
    assert '"lowest_after_solved"' in Runs.load(tmp_path / "run").to_csv()
