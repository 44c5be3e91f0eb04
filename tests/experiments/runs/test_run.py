from __future__ import annotations

import json
import math
import os
import shutil

import pytest

from scrubjay.agents.rl.encoders.choice import UntrustedName
from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.experiments import EnvConfig, Run, train
from scrubjay.memory import make_config

from ..pictures import assert_picture


def test_the_run_directory_is_complete(finished_run):
    assert Run.load(finished_run.path).config == finished_run.config
    rows = finished_run.metrics()
    assert [row["step"] for row in rows] == [32 * update for update in range(1, 7)]
    for name in ("charts/SPS", "time/SPS_env", "time/SPS_policy", "time/SPS_learner", "losses/policy_loss"):
        assert all(math.isfinite(row[name]) for row in rows)
    assert 0 <= rows[-1]["charts/success"] <= 1
    assert rows[-1]["charts/episodic_length"] <= 5
    assert finished_run.is_finished
    assert finished_run.result["episodes"] == 5
    assert finished_run.step == 192
    assert_picture(finished_run.path / "curve.png")
    assert list(finished_run.path.glob("events.out.tfevents.*"))


def test_a_line_cut_off_by_a_kill_is_not_read(finished_run, tmp_path):
    (tmp_path / "config.json").write_text((finished_run.path / "config.json").read_text())
    (tmp_path / "metrics.jsonl").write_text('{"step": 32}\n{"step": 6')
    assert Run.load(tmp_path).metrics() == [{"step": 32}]


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
    assert not (run.path / "curve.png").exists()


@pytest.mark.parametrize(
    ("env", "flags"),
    [
        ("mine:make", " --env mine:make"),
        (UntrustedName("mine:make"), ""),
        ("scrubjay.envs:scrubjay/TMaze-v0", ""),
        ("CartPole-v1", ""),
    ],
)
def test_the_resume_command_is_complete(tmp_path, tiny, env, flags):
    """Folder names may hold spaces. Users must name their own environments again."""
    run = Run.create(tiny(), tmp_path / "a run")
    config = tiny(env=EnvConfig(env, num_envs=4))
    assert Run(run.path, config).resume_command == f"scrubjay resume '{tmp_path}/a run'{flags}"


def test_a_run_without_checkpoint_or_directory_says_so(tmp_path, tiny, finished_run):
    run = Run.create(tiny(), tmp_path / "fresh")
    with pytest.raises(ValueError, match="no checkpoint yet"):
        _ = run.policy
    with pytest.raises(ValueError, match="not finished"):
        _ = run.result
    with pytest.raises(ValueError, match=f"no run at .*runs in {tmp_path}: fresh"):
        Run.load(tmp_path / "absent")
    with pytest.raises(ValueError, match=f"no run at {tmp_path}; runs in {tmp_path}: fresh"):
        Run.load(tmp_path)


def test_a_missing_result_field_is_named_with_the_fix(finished_run, tmp_path):
    copy = shutil.copytree(finished_run.path, tmp_path / "run")
    fields = json.loads((copy / "result.json").read_text())
    del fields["episodic_return"]
    (copy / "result.json").write_text(json.dumps(fields))
    result = Run.load(copy).result
    assert "success" in result
    with pytest.raises(ValueError, match=r"result\.json lacks episodic_return: .*scrubjay resume .*run$"):
        result["episodic_return"]


def test_nothing_is_written_for_a_config_that_cannot_run(tmp_path, tiny):
    with pytest.raises(ValueError, match="num_minibatches=5"):
        train(tiny(learner=PPOConfig(num_minibatches=5)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_name_that_is_not_utf8_is_refused(tmp_path, tiny):
    folder = tmp_path / os.fsdecode(b"jay\xff")
    with pytest.raises(ValueError, match="jay\udcff is not valid UTF-8; give the folder another name"):
        Run.create(tiny(), folder)
    assert not os.path.lexists(folder)


def test_memory_learns_what_no_memory_cannot(tmp_path, tiny):
    ppo = PPOConfig(learning_rate=5e-3, num_minibatches=2)
    settings = {"total_steps": 12_000, "learner": ppo, "eval_episodes": 100}
    scores = {}
    for memory in ("none", "gru"):
        policy = PolicyConfig(memory=make_config(memory, dim=16))
        env = EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 3}, num_envs=32)
        scores[memory] = train(tiny(policy=policy, env=env, **settings), tmp_path / memory).result["success"]
    assert scores["gru"] > 0.95
    assert scores["none"] < 0.7


@pytest.mark.parametrize(("clock", "expected"), [(False, 0.5), (True, None)])
def test_success_without_memory_is_unknown_with_a_clock(tmp_path, tiny, clock, expected):
    run = Run.create(tiny(policy=PolicyConfig(memory=make_config("none", dim=16), clock=clock)), tmp_path)
    assert run.success_without_memory == expected


def test_config_file_is_readable(finished_run):
    fields = json.loads((finished_run.path / "config.json").read_text())
    assert fields["policy"]["memory"]["name"] == "gru"
