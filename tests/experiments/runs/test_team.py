"""Team runs: training, resumption, evaluation and comparison, from the command line and from Python."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicyConfig
from scrubjay.experiments import RECIPES, Run, resume, train
from scrubjay.experiments.recipes.teams import METHODS, with_method
from scrubjay.experiments.runs.engine import LocalEngine
from scrubjay.experiments.runs.evaluation import evaluate_result, evaluate_team
from scrubjay.experiments.runs.kinds import from_json, to_json
from scrubjay.experiments.runs.reinforcement import TeamTaskConfig
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.experiments.viz.differences import build_untrained_policy, measure_gains
from scrubjay.memory import make_config

UAV = "scrubjay.envs.uav:parallel_env"
SPREAD = "mpe2.simple_spread_v3:parallel_env"


def make_team(**fields: Any) -> TeamTaskConfig:
    """Return a config of 3 updates with two base stations and four users, which trains in about a second."""
    settings: dict[str, Any] = {
        "recipe": "tiny-team",
        "env": TeamEnvConfig(UAV, {"num_users": 4, "max_steps": 6}, num_envs=4),
        "policy": TeamPolicyConfig(memory=make_config("gru", dim=16), graph_rounds=1, graph_heads=2),
        "learner": GAMATRConfig(critic_epochs=1, minibatches=2),
        "total_steps": 96,
        "segment_length": 8,
        "device": "cpu",
        "eval_episodes": 4,
    }
    return TeamTaskConfig(**{**settings, **fields})


@pytest.fixture(scope="module")
def team_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(make_team(), tmp_path_factory.mktemp("teams") / "finished")


def test_a_run_has_metrics_and_its_policy_acts(team_run):
    result = team_run.result
    assert result["step"] == 96
    assert result["episodes"] == 4
    assert result["episodic_length"] == 6
    assert 0 < result["jain"] <= 1
    assert result["sum_rate_bps"] > result["fifth_percentile_rate_bps"] >= 0
    assert {"charts/episodic_return", "charts/jain", "losses/kl"} <= team_run.metrics()[-1].keys()
    assert (team_run.path / "curve.png").exists()
    env = team_run.config.env.make()
    observations, _ = env.reset(seed=0)
    batch = {key: np.stack([observations[a][key] for a in env.agents]) for key in observations[env.agents[0]]}
    actions, _ = team_run.team_policy.act(batch, np.ones(2, dtype=bool))
    assert all(
        env.action_space(agent).contains(action) for agent, action in zip(env.agents, actions, strict=True)
    )


def test_a_stopped_run_goes_on_to_the_same_end(team_run, tmp_path, assert_same):
    run = Run.create(team_run.config, tmp_path / "stopped")
    with LocalEngine(run.config, run.path) as engine:
        engine.update()
        engine.update()
        engine.save()
    assert run.step == 64
    resume(run.path)
    assert_same(run, team_run)


def test_a_config_of_a_team_survives_its_file():
    for name in METHODS:
        config = with_method(RECIPES["uav-small"](), name)
        assert from_json(to_json(config)) == config


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(name, tmp_path):
    config = with_method(make_team(total_steps=32, eval_episodes=0), name)
    run = train(config, tmp_path / name)
    assert run.config.label == name
    assert np.isfinite(run.metrics()[-1]["losses/kl"])


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize("name", ["hcam", "titans", "sink"])
def test_any_memory_serves_a_team(name, tmp_path):
    config = make_team(total_steps=32, eval_episodes=0).with_memory(make_config(name, dim=16))
    assert train(config, tmp_path / name).config.label == f"gamatr-on-{name}"


@pytest.mark.parametrize("recipe", ["uav-small", "spread"])
def test_a_method_overrides_the_recipe(recipe):
    config = RECIPES[recipe]()
    assert isinstance(config, TeamTaskConfig)
    full, plain = with_method(config, "gamatr").policy, with_method(config, "hatrpo").policy
    assert full.graph_rounds > 0
    assert (full.critic, plain.critic, plain.graph_rounds) == ("attention", "pooled", 0)
    assert with_method(with_method(config, "itrpo"), "gamatr") == with_method(config, "gamatr")


def test_a_shared_actor_knows_its_agent_unless_team_sizes_change():
    small, three = RECIPES["uav-small"](), RECIPES["uav-three"]()
    assert (with_method(small, "mappo").policy.identity, with_method(small, "mappo").label) == (True, "mappo")
    without = with_method(three, "mappo")
    assert (without.policy.identity, without.label) == (False, "mappo-no-identity")
    assert not with_method(small, "happo").policy.identity
    assert three == with_method(three, "gamatr-shared")


@pytest.mark.requires("mpe2")
def test_pettingzoos_own_environments_train(tmp_path):
    config = dataclasses.replace(
        RECIPES["spread"](), env=TeamEnvConfig(SPREAD, {"N": 2, "max_cycles": 5}, num_envs=4), total_steps=100
    )
    run = train(config, tmp_path / "spread")
    assert run.result["episodic_length"] == 5
    assert run.result["episodic_return"] < 0


def test_an_environment_that_never_ends_is_trained_all_the_same(monkeypatch, caplog):
    never = functools.partial(evaluate_team, max_steps=3)
    monkeypatch.setattr("scrubjay.experiments.runs.evaluation.evaluate_team", never)
    assert evaluate_result(build_untrained_policy(make_team()), make_team()) == {}
    assert "did not end" in caplog.text


def test_best_responses_change_one_agent_and_are_measured_on_the_same_episodes():
    config = make_team()
    policy = build_untrained_policy(config)
    gains = measure_gains(policy, config, steps=32, episodes=4)
    again = measure_gains(policy, config, steps=32, episodes=4)
    assert gains == again
    assert [gain.before for gain in gains] == [gain.before for gain in again]
    assert all(gain.low <= gain.gain <= gain.high for gain in gains)
    returns = evaluate_team(policy, config.env, 4, 0, deterministic=False).returns
    assert np.shape(returns) == (4, 2)


def test_the_command_trains_evaluates_and_prints_the_gain_of_an_agent(here):
    flags = ["--set", "num_users=4", "--set", "max_steps=6", "--env.num-envs", "4", "--segment-length", "6"]
    code, _, err = here(
        "train",
        "uav-small",
        "--method",
        "itrpo",
        "--run-dir",
        "run",
        "--total-steps",
        "48",
        *flags,
        "--quiet",
    )
    assert code == 0, err
    code, out, err = here(
        "eval", "run", "--episodes", "3", "--best-response", "--response-steps", "24", "--set", "num_users=5"
    )
    assert code == 0, err
    assert "sum_rate_bps" in out
    assert "before training: epsilon" in out
    assert "agent 1" in out
    for arguments, message in (
        (("eval", "run", "--set", "num_uavs=3"), "does not match"),
        (("eval", "run", "--memory", "dim=8"), "do not match the team with these memory settings"),
        (("eval", "run", "--best-response", "--response-steps", "0"), "response_steps=0"),
        (("export", "run"), "no single-agent policy"),
    ):
        code, out, err = here(*arguments)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "uav-small", "--method", "trpo"), "unknown method 'trpo'; choose from gamatr"),
        (("train", "uav-small", "--set", "num_uav=3"), "did you mean 'num_uavs'"),
        (("train", "uav-small", "--env", "nothing"), "write module:callable"),
        (("train", "uav-small", "--learner.kl-limit", "0"), "kl_limit=0.0"),
        (("train", "uav-small", "--env.num-envs", "3"), "minibatches=4: must be at most env.num_envs=3"),
        (("train", "uav-small", "--engine", "ray", "--num-learners", "2"), "num_learners=2"),
    ],
)
def test_an_impossible_setting_is_an_error_of_one_line(arguments, message, usage_error):
    assert message in usage_error(*arguments)


def test_a_finished_result_is_written_once(team_run):
    text = Path(team_run.path / "result.json").read_text()
    resume(team_run.path)
    assert Path(team_run.path / "result.json").read_text() == text
    assert json.loads(text) == team_run.result
