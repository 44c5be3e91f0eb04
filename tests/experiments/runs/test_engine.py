"""Training, resumption and play with image observations, and with the options of policies and schedules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scrubjay.agents import Policy
from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.experiments import EnvConfig, Run, train
from scrubjay.experiments.commands.main import main
from scrubjay.experiments.runs.engine import LocalEngine
from scrubjay.memory import make_config


@pytest.mark.slow
def test_images_and_instructions_train_resume_and_play(tiny, tmp_path):
    config = tiny(
        env=EnvConfig("scrubjay/Ballet-v0", {"num_dancers": 1, "delay": 1, "max_steps": 24}, num_envs=2),
        policy=PolicyConfig(memory=make_config("hcam", dim=16), reconstruction=True),
        learner=PPOConfig(epochs=1, num_minibatches=2, reconstruction_coefficient=1.0),
        total_steps=96,
        segment_length=12,
        eval_episodes=2,
    )
    reference = train(config, tmp_path / "whole")
    assert reference.result["episodes"] == 2
    losses = [row["losses/reconstruction_loss"] for row in reference.metrics()]
    assert all(loss > 0 for loss in losses)
    run = Run.create(config, tmp_path / "stopped")
    with LocalEngine(config, run.path) as engine:
        engine.update()
        engine.save()
    assert main(["resume", str(run.path)]) == 0
    assert {**run.result, "seconds": 0} == {**reference.result, "seconds": 0}
    assert main(["play", str(run.path), "--out", str(tmp_path / "dance.gif")]) == 0
    assert (tmp_path / "dance.gif").stat().st_size > 1000


OPTIONS = (
    *("--memory", "gru", "--policy.memory.dim", "16", "--env.num-envs", "4", "--segment-length", "8"),
    *("--policy.normalize-observations", "--policy.separate-critic", "--ppo.scale-rewards"),
    *("--ppo.clip-end", "0.1", "--ppo.entropy-end", "0", "--ppo.num-minibatches", "2"),
    *("--device", "cpu", "--total-steps", "128", "--eval-episodes", "4"),
)


@pytest.mark.slow
def test_statistics_and_a_separate_critic_train_resume_and_are_used_by_every_command(
    here, tmp_path, assert_same
):
    code, _, error = here("train", "tmaze-demo", *OPTIONS, "--run-dir", "whole")
    assert code == 0, error
    reference = Run.load(tmp_path / "whole")
    run = Run.create(reference.config, tmp_path / "stopped")
    for _ in range(3):
        with LocalEngine(reference.config, run.path) as engine:
            engine.update()
            engine.save()
    assert here("resume", "stopped")[0] == 0
    assert_same(run, reference)
    policy = run.policy
    assert policy.normalizer is not None
    torch.testing.assert_close(policy.normalizer.count, torch.full((4,), 128 + 1e-4, dtype=torch.float64))
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    for command in (
        ("eval", "stopped", "--episodes", "2"),
        ("look", "stopped", "--out", "look.html"),
        ("export", "stopped"),
        ("export", "stopped", "--pretrained", "--out", "folder"),
    ):
        code, _, error = here(*command)
        assert code == 0, error
    for loaded_policy in (run.policy, Policy.from_pretrained(tmp_path / "folder")):
        assert all(torch.equal(value, before[name]) for name, value in loaded_policy.state_dict().items())


def test_reported_returns_are_in_the_unit_of_the_environment(tiny, tmp_path):
    """The maze has rewards between -1 and 1 whose scale is far from 1."""
    learner = PPOConfig(epochs=1, num_minibatches=2, scale_rewards=True, learning_rate=1e-30)
    plain = replace(learner, scale_rewards=False)
    runs = [train(tiny(learner=one), tmp_path / str(one.scale_rewards)) for one in (learner, plain)]
    returns = [[row.get("charts/episodic_return") for row in run.metrics()] for run in runs]
    assert returns[0] == returns[1]
    assert any(value is not None for value in returns[0])
    losses = [run.metrics()[-1]["losses/value_loss"] for run in runs]
    assert losses[0] != losses[1]
