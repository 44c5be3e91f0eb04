from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.experiments import EnvConfig, Run, evaluate, train
from scrubjay.experiments.evaluation.policy import EpisodeScores
from scrubjay.experiments.reports.curves import contenders, plot_runs
from scrubjay.experiments.reports.episode import play
from scrubjay.experiments.runs.metrics import is_timing
from scrubjay.memory import make_config


def assert_picture(path) -> None:
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape[0] > 200
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_the_directory_holds_all_that_it_promises(finished_run):
    assert Run.load(finished_run.path).config == finished_run.config
    rows = finished_run.metrics()
    assert [row["step"] for row in rows] == [32 * update for update in range(1, 7)]
    for name in ("charts/SPS", "time/SPS_env", "time/SPS_policy", "time/SPS_learner", "losses/policy_loss"):
        assert all(math.isfinite(row[name]) for row in rows)
    assert 0 <= rows[-1]["charts/success"] <= 1
    assert rows[-1]["charts/episodic_length"] <= 5
    assert finished_run.finished
    assert finished_run.result["episodes"] == 5
    assert finished_run.step == 192
    assert_picture(finished_run.path / "curve.png")
    assert list(finished_run.path.glob("events.out.tfevents.*"))


def test_a_line_cut_off_by_a_kill_is_not_read(finished_run, tmp_path):
    (tmp_path / "config.json").write_text((finished_run.path / "config.json").read_text())
    (tmp_path / "metrics.jsonl").write_text('{"step": 32}\n{"step": 6')
    assert Run.load(tmp_path).metrics() == [{"step": 32}]


def test_timing_columns_are_the_only_ones_left_out():
    assert is_timing("charts/SPS")
    assert is_timing("time/seconds")
    assert not is_timing("charts/success")


def test_the_policy_acts_in_a_plain_loop(finished_run):
    policy = Run.load(finished_run.path).policy
    with finished_run.config.env.make() as env:
        observation, _ = env.reset(seed=3)
        state, start, over = None, True, False
        while not over:
            action, state = policy.act(observation, state, start)
            assert env.action_space.contains(action)
            observation, _, terminated, truncated, _ = env.step(action)
            start, over = False, terminated or truncated


def test_continuous_actions_and_a_run_too_short_for_a_curve(tmp_path, tiny):
    run = train(
        tiny(env=EnvConfig("Pendulum-v1", num_envs=4), total_steps=64, eval_episodes=2), tmp_path / "run"
    )
    assert math.isfinite(run.result["episodic_return"])
    assert "success" not in run.result


def test_a_run_without_checkpoint_or_directory_says_so(tmp_path, tiny, finished_run):
    run = Run.create(tiny(), tmp_path / "fresh")
    with pytest.raises(ValueError, match="no checkpoint yet"):
        _ = run.policy
    with pytest.raises(ValueError, match="not finished"):
        _ = run.result
    with pytest.raises(ValueError, match=f"no run at .*runs in {tmp_path}: fresh"):
        Run.load(tmp_path / "absent")


def test_nothing_is_written_for_a_config_that_cannot_run(tmp_path, tiny):
    with pytest.raises(ValueError, match="num_minibatches=5"):
        train(tiny(ppo=PPOConfig(num_minibatches=5)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_memory_learns_what_no_memory_cannot(tmp_path, tiny):
    ppo = PPOConfig(learning_rate=5e-3, num_minibatches=2)
    settings = {"total_steps": 12_000, "ppo": ppo, "eval_episodes": 100}
    scores = {}
    for memory in ("none", "gru"):
        policy = PolicyConfig(memory=make_config(memory, dim=16))
        env = EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 3}, num_envs=32)
        scores[memory] = train(tiny(policy=policy, env=env, **settings), tmp_path / memory).result["success"]
    assert scores["gru"] > 0.95
    assert scores["none"] < 0.7


def test_evaluation_is_reproducible_fair_and_leaves_no_trace(finished_run):
    policy = finished_run.policy
    before = torch.get_rng_state()
    first, again = (evaluate(policy, finished_run.config.env, 70, seed=4) for _ in range(2))
    assert first == again
    assert torch.equal(before, torch.get_rng_state())
    assert len(first.returns) == len(first.lengths) == len(first.successes) == 70
    longer = EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 9})
    assert max(evaluate(policy, longer, 5).lengths) <= 10
    assert evaluate(policy, longer, 40, seed=1, deterministic=False) != evaluate(policy, longer, 40, seed=1)
    with pytest.raises(ValueError, match="episodes=0"):
        evaluate(policy, longer, 0)


def test_evaluation_summary_by_hand():
    summary = EpisodeScores((1.0, 0.0, 1.0, 0.0), (2, 4, 4, 2), (1.0, 0.0, 1.0, 0.0)).summary()
    assert summary["episodic_return"] == summary["success"] == 0.5
    assert summary["episodic_length"] == 3
    assert summary["success_low"] + summary["success_high"] == pytest.approx(1)
    graded = EpisodeScores((0.0, 0.0), (1, 1), (0.25, 0.75)).summary()
    assert graded["success"] == 0.5
    assert "success" not in EpisodeScores((0.0,), (1,), ()).summary()


def test_plot_of_several_runs(finished_run, tiny, tmp_path):
    other = train(tiny("none", seed=1), tmp_path / "other")
    again = train(tiny("none", seed=2), tmp_path / "again")
    assert_picture(plot_runs([finished_run, other, again], tmp_path / "new" / "plot.png"))
    assert contenders([finished_run, other, again]) == {finished_run: "gru", other: "none", again: "none"}
    with pytest.raises(ValueError, match=r"no metric 'charts/joy'; it has .*charts/success"):
        plot_runs([finished_run], tmp_path / "x.png", metric="charts/joy")


def test_memories_of_one_name_are_told_apart_by_the_sizes_they_differ_in(finished_run):
    def with_sinks(number, seed):
        memory = make_config("sink", dim=16, num_sinks=number)
        policy = dataclasses.replace(finished_run.config.policy, memory=memory)
        return Run(finished_run.path, dataclasses.replace(finished_run.config, policy=policy, seed=seed))

    runs = [with_sinks(0, 0), with_sinks(4, 0), with_sinks(4, 1)]
    assert list(contenders(runs).values()) == ["sink, num sinks 0", "sink, num sinks 4", "sink, num sinks 4"]
    assert list(contenders(runs[1:]).values()) == ["sink", "sink"]


def test_play_writes_the_episode(finished_run, tmp_path):
    frames, _ = play(finished_run.config.env, tmp_path / "episode.gif", finished_run.policy)
    with Image.open(tmp_path / "episode.gif") as gif:
        assert 2 <= getattr(gif, "n_frames", 1) <= frames
    random_frames, _ = play(EnvConfig("scrubjay/RepeatPrevious-v0"), tmp_path / "random.gif", max_steps=7)
    assert random_frames == 8


def test_config_file_is_readable(finished_run):
    fields = json.loads((finished_run.path / "config.json").read_text())
    assert fields["policy"]["memory"]["name"] == "gru"
