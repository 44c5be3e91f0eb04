"""Runs in environments with nested and half-bounded action spaces, from Python and from the command line."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from scrubjay.agents import Policy, PPOConfig
from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.experiments import EnvConfig, Run, resume, train
from scrubjay.experiments.export import export_onnx, export_torch
from scrubjay.experiments.runs.engine import LocalEngine
from scrubjay.experiments.viz.episode import trace_episode
from scrubjay.memory import make_config

ROBOTS = Path(__file__).with_name("robots.py")


@pytest.fixture
def robots(tmp_path, monkeypatch) -> Path:
    """Put the module `robots` into an empty current folder."""
    shutil.copy(ROBOTS, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "robots", raising=False)
    return tmp_path


@pytest.fixture
def make(tiny, robots):
    def make(kind: str, **policy):
        config = PolicyConfig(memory=make_config("gru", dim=16), **policy)
        env = EnvConfig("robots:Robot", {"kind": kind}, num_envs=4, inputs=("observation", "action"))
        return tiny(env=env, policy=config)

    return make


@pytest.mark.one_in(2, rest="slow")
@pytest.mark.parametrize("kind", ["nested", "half"])
@pytest.mark.parametrize("deviation", ["constant", "state"])
def test_a_run_trains_and_its_policy_acts_in_the_space(kind, deviation, make, tmp_path):
    config = make(kind, deviation=deviation)
    run = train(config, tmp_path / "run")
    assert all(np.isfinite(row["losses/policy_loss"]) for row in run.metrics())
    env = TimeLimit(config.env.make(), 5)
    observation, _ = env.reset(seed=0)
    action, _ = run.policy.act(observation)
    assert env.action_space.contains(action)
    trace = trace_episode(run.policy, config.env)
    assert len(trace.steps) == 5
    assert all(step.choice for step in trace.steps)
    again = Run.load(run.path).policy
    assert str(again.act(observation)[0]) == str(action)


@pytest.mark.parametrize("kind", ["nested", "half"])
def test_commands_train_evaluate_and_show_a_module_of_the_user(kind, robots, here):
    setting = ["--set", f"kind={kind}"]
    sizes = ["--env.num-envs", 4, "--segment-length", 8, "--eval-episodes", 2, "--learner.epochs", 1]
    words = ["--env", "robots:Robot", *setting, *sizes, "--memory.dim", 16, "--run-dir", "run", "--quiet"]
    code, _, err = here("train", "ppo", *words, "--total-steps", 64)
    assert code == 0, err
    commands = (
        ["eval", "run", "--episodes", 2],
        ["look", "run", "--out", "page.html"],
        ["play", "run", "--out", "film.gif"],
        ["play", "robots:Robot", *setting, "--out", "random.gif"],
    )
    for command in commands:
        code, _, err = here(*command)
        assert code == 0, err
    assert (robots / "page.html").exists()
    code, _, err = here("export", "run", "--out", "folder", "--pretrained")
    assert code == 0, err
    policy = Policy.from_pretrained("folder")
    assert policy.action_space == EnvConfig("robots:Robot", {"kind": kind}).spaces().action


@pytest.mark.slow
def test_a_resumed_run_with_nested_actions_equals_one_without_a_stop(make, tmp_path, assert_same):
    config = make("nested", auxiliary=("next_observation",))
    config = dataclasses.replace(config, learner=PPOConfig(1, num_minibatches=2, auxiliary_coefficient=0.5))
    whole = train(config, tmp_path / "whole")
    run = Run.create(config, tmp_path / "run")
    with LocalEngine(config, run.path) as engine:
        for _ in range(3):
            engine.update()
        engine.save()
    assert_same(resume(run.path), whole)


@pytest.mark.parametrize(("kind", "deviation"), [("nested", "constant"), ("half", "state")])
@pytest.mark.parametrize(
    "form",
    ["torch", pytest.param("onnx", marks=[pytest.mark.slow, pytest.mark.requires("onnx", "onnxscript")])],
)
def test_an_exported_program_has_the_actions_of_the_policy(kind, form, deviation, make, tmp_path):
    policy = make(kind, deviation=deviation).make_policy()
    export = {"torch": export_torch, "onnx": export_onnx}[form]
    assert export(policy, tmp_path / "policy") <= 1e-5


@pytest.mark.matrix
def test_a_policy_learns_nested_actions_and_the_numbers_of_a_half_bounded_box(make, tmp_path):
    for kind, best in (("goal", 5.0), ("far", 5.0)):
        config = make(kind)
        learner = PPOConfig(learning_rate=3e-3, epochs=4, num_minibatches=4, entropy_coefficient=0.0)
        env = dataclasses.replace(config.env, num_envs=16)
        config = dataclasses.replace(config, env=env, learner=learner, total_steps=32_768, segment_length=32)
        result = train(config, tmp_path / kind).result
        assert result["episodic_return"] > 0.8 * best
