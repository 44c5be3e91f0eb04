"""Training, resumption and play with dict observations of an image and an index."""

from __future__ import annotations

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.experiments import EnvConfig, Run, train
from scrubjay.experiments.commands.main import main
from scrubjay.experiments.runs.engine import LocalEngine
from scrubjay.memory import make_config


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
