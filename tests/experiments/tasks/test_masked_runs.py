"""Runs with action masks: training, evaluation, traces, films and exports take allowed actions only."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any

import numpy as np
import pytest
import torch

from scrubjay.agents.rl.model_card import Origin
from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicyConfig
from scrubjay.experiments import EnvConfig, RayOptions, Run, evaluate, resume, train
from scrubjay.experiments.commands.main import main
from scrubjay.experiments.export import export_onnx, export_torch
from scrubjay.experiments.runs.engine import LocalEngine
from scrubjay.experiments.runs.evaluation import build_team_actor, evaluate_team
from scrubjay.experiments.runs.reinforcement import TeamTaskConfig
from scrubjay.experiments.tasks.random_actions import RandomRule
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.experiments.viz.episode import trace_episode, trace_team
from scrubjay.experiments.viz.film import play
from scrubjay.experiments.viz.one_env import OneTeam
from scrubjay.memory import make_config

from ...agents.rl.masks.test_action_masks import MaskedEnv
from ...agents.teams.test_masks import MaskedTeam

PLACES = ("observation", "info", "method")


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_masks", sys.modules[__name__])


def masked(tiny, place: str = "info", actions: str = "discrete", **fields: Any) -> Any:
    env = EnvConfig("my_masks:MaskedEnv", {"place": place, "actions": actions}, num_envs=4)
    return tiny(env=env, **fields)


def masked_team(place: str = "info", **fields: Any) -> TeamTaskConfig:
    settings: dict[str, Any] = {
        "env": TeamEnvConfig("my_masks:MaskedTeam", {"place": place}, num_envs=4),
        "policy": TeamPolicyConfig(make_config("gru", dim=8)),
        "learner": GAMATRConfig(minibatches=2),
        "total_steps": 96,
        "segment_length": 8,
        "device": "cpu",
        "eval_episodes": 5,
    }
    return TeamTaskConfig(**{**settings, **fields})


@pytest.mark.parametrize("place", PLACES)
def test_a_run_trains_and_evaluates_with_masks(place, tiny, tmp_path):
    """The environment fails on a forbidden action."""
    run = train(masked(tiny, place), tmp_path / "run")
    assert run.result["episodes"] == 5
    copy_of_run = Run.load(run.path)
    assert json.loads((run.path / "environment.json").read_text()).get("action_masks", False) == (
        place != "observation"
    )
    assert copy_of_run.policy.action_masks == (place != "observation")
    env = run.config.env  # pyright: ignore[reportAttributeAccessIssue]
    scores = evaluate(copy_of_run.policy_for(env), env, 6, deterministic=False)
    assert len(scores.returns) == 6
    trace = trace_episode(copy_of_run.policy, env, seed=3)
    for step in trace.steps:
        chances = list(step.options.values())
        assert sum(chances) == pytest.approx(1)
        assert step.options[step.choice] == max(chances)
    if place != "observation":
        with pytest.raises(ValueError, match="action_mask is missing"):
            copy_of_run.policy.act(np.zeros(3, np.float32))


def test_a_resumed_run_equals_one_that_is_never_stopped(tiny, tmp_path, assert_same):
    config = masked(tiny, actions="parts")
    reference = train(config, tmp_path / "whole")
    run = Run.create(config, tmp_path / "stopped")
    with LocalEngine(config, run.path) as engine:
        engine.update()
        engine.update()
        engine.save()
    resume(run.path, trust=True)
    assert_same(run, reference)


def test_a_policy_with_masks_is_not_used_where_there_are_none(tiny, tmp_path):
    run = train(masked(tiny, "info"), tmp_path / "run")
    other = EnvConfig("my_masks:WithoutMasks")
    with pytest.raises(
        ValueError, match="uses action masks from infos or a method, and the environment offers"
    ):
        run.policy_for(other)


class WithoutMasks(MaskedEnv):
    def __init__(self) -> None:
        super().__init__("info")
        self.place = "nowhere"


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize("place", PLACES)
def test_a_team_trains_and_evaluates_with_masks(place, tmp_path):
    config = masked_team(place)
    run = train(config, tmp_path / "run")
    assert run.result["episodes"] == 5
    copy_of_run = Run.load(run.path)
    assert copy_of_run.team_policy.action_masks == (place != "observation")
    assert trace_team(copy_of_run.team_policy, config.env, seed=3).steps
    assert len(evaluate_team(copy_of_run.team_policy, config.env, 4).returns) == 4


@pytest.mark.parametrize("place", PLACES)
def test_random_actions_are_allowed(place):
    envs = OneTeam(MaskedTeam(place), "own")
    actor = build_team_actor(RandomRule(3), envs.env)
    for episode in range(5):
        assert list(envs.play(actor, envs.reset(episode), 9))


@pytest.mark.parametrize("name", ["MaskedEnv", "MaskedTeam"])
@pytest.mark.parametrize("place", PLACES)
def test_an_evaluation_of_random_actions_takes_allowed_ones(name, place, capsys):
    """The environments fail on a forbidden action."""
    assert main(["eval", f"my_masks:{name}", "--random", "--set", f"place={place}"]) == 0
    assert "100 episodes" in capsys.readouterr().out


def test_a_film_shows_allowed_actions(tmp_path):
    pytest.importorskip("pygame")
    env = EnvConfig("Taxi-v3")
    policy = PolicyConfig(make_config("none", dim=8)).build(env.spaces())
    for player in (None, policy):
        frames, total = play(env, tmp_path / "film.gif", player, max_steps=12)
        assert frames == 13
        assert total == -12  # a forbidden action costs 10


@pytest.mark.parametrize("place", ["observation", "info"])
@pytest.mark.parametrize("actions", ["discrete", "parts"])
@pytest.mark.parametrize(
    "form",
    ["torch", pytest.param("onnx", marks=[pytest.mark.slow, pytest.mark.requires("onnx", "onnxscript")])],
)
def test_an_export_takes_allowed_actions(form, actions, place, tmp_path):
    env = EnvConfig("my_masks:MaskedEnv", {"place": place, "actions": actions})
    torch.manual_seed(0)
    policy = PolicyConfig(make_config("gru", dim=8)).build(env.spaces())
    export = {"torch": export_torch, "onnx": export_onnx}[form]
    assert export(policy, tmp_path / "policy") <= 1e-4
    if form == "onnx":
        return
    program = torch.export.load(str(tmp_path / "policy")).module()
    masks = policy.spaces.masks
    assert masks is not None
    mask = torch.rand(64, masks.num_actions) < 0.4
    mask[:, np.cumsum(masks.sizes) - 1] = True
    x = torch.randn(64, 3)
    inputs = policy.initial_state(64), torch.zeros(64, dtype=torch.bool)
    if place == "observation":
        observation = {"observation": x, "action_mask": mask.float()}
        action = program(observation, *inputs)[0]
        expected = policy.act(observation)[0]
    else:
        action = program(x, *inputs, mask)[0]
        expected = policy.act(x, action_mask=mask)[0]
    np.testing.assert_array_equal(policy.env_actions(action), expected)
    places = action.reshape(64, -1) + torch.as_tensor(np.cumsum((0, *masks.sizes))[:-1])
    assert mask.gather(1, places).all()


def test_the_model_card_says_how_to_pass_the_mask(tmp_path):
    env = EnvConfig("Taxi-v3")
    policy = PolicyConfig(make_config("none", dim=8)).build(env.spaces())
    policy.save_pretrained(tmp_path, Origin("Taxi-v3"))
    card = (tmp_path / "README.md").read_text()
    assert "| action masks | required: pass `action_mask=info['action_mask']`" in card
    code = card.split("```python\n")[1].split("```")[0].replace('"."', repr(str(tmp_path)))
    exec(code, {})  # noqa: S102  (the example of the card runs)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")
@pytest.mark.parametrize("kind", ["agent", "team"])
def test_on_ray_a_run_equals_the_local_one(kind, cluster, tiny, tmp_path, assert_same):
    config = masked(tiny, actions="parts") if kind == "agent" else masked_team()
    local = train(config, tmp_path / "local")
    assert_same(train(config, tmp_path / "ray", ray=RayOptions(0, 0)), local)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")
def test_runners_in_other_processes_sample_with_masks(cluster, tiny, tmp_path, assert_same):
    config = tiny(env=EnvConfig("Taxi-v3", num_envs=4))
    local = train(config, tmp_path / "local")
    assert_same(train(config, tmp_path / "ray", ray=RayOptions(1, 0)), local)
