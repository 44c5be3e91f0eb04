"""Registered learners train on the local engine and from the command line, without further code.

test_ray_engine.py tests them on Ray.
"""

from __future__ import annotations

import dataclasses
import json

import pytest

from scrubjay.agents import (
    GAMATRConfig,
    PolicyConfig,
    PPOConfig,
    TeamPolicyConfig,
    learners,
    register_learner,
)
from scrubjay.experiments import EnvConfig, Run, TrainConfig, resume, train
from scrubjay.experiments.cli.arguments import UsageError
from scrubjay.experiments.recipes.overrides import override
from scrubjay.experiments.runs import evaluation
from scrubjay.experiments.runs.engine import LocalEngine
from scrubjay.experiments.runs.kinds import from_json, to_json
from scrubjay.experiments.runs.reinforcement import TeamTaskConfig
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.memory import make_config

from .. import smallest
from .reinforce import ReinforceConfig, TeamReinforceConfig

REPEAT = TrainConfig(
    recipe="repeat",
    env=EnvConfig("scrubjay/RepeatPrevious-v0", {"k": 1}, num_envs=16),
    policy=PolicyConfig(memory=make_config("gru", dim=16)),
    learner=ReinforceConfig(learning_rate=1e-2, gamma=0.0),  # actions do not affect later rewards
    total_steps=16 * 16 * 60,
    segment_length=16,
    device="cpu",
    eval_episodes=50,
)


@pytest.fixture(autouse=True)
def _register_learners(monkeypatch):
    monkeypatch.setattr(learners, "_LEARNERS", type(learners._LEARNERS)("learner", "", learners._LEARNERS))
    register_learner("reinforce", ReinforceConfig)
    register_learner("team_reinforce", TeamReinforceConfig)


def test_a_new_learner_learns(tmp_path):
    run = train(REPEAT, tmp_path / "run")
    assert run.result["success"] > 0.9
    assert run.config.label == "reinforce-gru"
    assert run.metrics()[0]["charts/SPS"] > 0


def test_a_run_of_a_new_learner_resumes_to_the_same_result(tmp_path, assert_same):
    config = dataclasses.replace(REPEAT, total_steps=16 * 16 * 4, eval_episodes=5)
    reference = train(config, tmp_path / "whole")
    run = Run.create(config, tmp_path / "stopped")
    with LocalEngine(config, run.path) as engine:
        engine.update()
        engine.update()
        engine.save()
    assert Run.load(run.path).config == config
    assert_same(resume(run.path), reference)
    fields = json.loads((run.path / "config.json").read_text())
    assert (fields["kind"], fields["learner"]) == (
        "train",
        {"name": "reinforce", "learning_rate": 0.01, "gamma": 0.0},
    )


def test_a_learner_that_does_not_update_the_statistics_is_refused():
    policy = dataclasses.replace(REPEAT.policy, normalize_observations=True)
    config = dataclasses.replace(REPEAT, env=EnvConfig("scrubjay/TMaze-v0"), policy=policy)
    with pytest.raises(ValueError, match="normalize_observations=True: ReinforceConfig does not update"):
        config.check()
    dataclasses.replace(config, learner=PPOConfig()).check()


def test_a_nan_time_between_checkpoints_is_refused():
    for config in (REPEAT, override("mqar", [])):
        with pytest.raises(ValueError, match="checkpoint_seconds=nan: must not be negative"):
            dataclasses.replace(config, checkpoint_seconds=float("nan"))  # pyright: ignore[reportArgumentType, reportCallIssue]


@pytest.mark.parametrize("flag", ["--learner.gamma", "--reinforce.gamma"])
def test_the_command_selects_a_new_learner_and_its_flags(flag, here, tmp_path):
    code, _, err = here(
        "train", "repeat-previous", "--learner", "reinforce", flag, "0.5", "--env.num-envs", "4",
        "--memory", "lstm", "--memory.dim", "8", "--total-steps", "64", "--segment-length", "8",
        "--eval-episodes", "0", "--run-dir", "run", "--quiet",
    )  # fmt: skip
    assert code == 0, err
    config = Run.load(tmp_path / "run").config
    assert isinstance(config, TrainConfig)
    assert config.learner == ReinforceConfig(gamma=0.5)
    assert config.label == "reinforce-lstm"
    assert config.env.kwargs == {"k": 4, "num_decks": 1}
    assert here("eval", "run", "--episodes", "2")[0] == 0


def test_the_commands_help_lists_the_learners_own_flags(capsys):
    with pytest.raises(SystemExit):
        override("tmaze", ["--learner", "reinforce", "--help"])
    help_text = capsys.readouterr().out
    assert "--learner.learning-rate" in help_text
    assert "--ppo." not in help_text


def test_a_learner_chosen_again_keeps_what_the_recipe_set():
    assert override("tmaze", ["--learner", "ppo"]) == override("tmaze", [])
    config = override("tmaze", ["--learner.gamma", "0.5"])
    assert isinstance(config, TrainConfig)
    assert isinstance(config.learner, PPOConfig)
    assert config == override("tmaze", ["--ppo.gamma", "0.5"])
    assert config.learner.gamma == 0.5
    once = override("tmaze", ["--learner", "reinforce", "--learner", "ppo"])
    assert isinstance(once, TrainConfig)
    assert once.learner == PPOConfig()


def test_a_mode_of_a_team_is_a_learner_by_name():
    config = override("spread", ["--learner", "clip", "--gamatr.clip", "0.1"])
    assert isinstance(config, TeamTaskConfig)
    assert config.learner == GAMATRConfig(mode="clip", advantage="team", clip=0.1)
    assert config.label == "hatrpo-by-clip"
    assert override("spread", ["--learner.mode", "clip"]).learner.mode == "clip"  # pyright: ignore
    assert from_json(to_json(config)) == config


def test_a_new_learner_of_a_team_trains_by_the_command(here, tmp_path):
    code, _, err = here(
        "train", "uav-small", "--learner", "team_reinforce", "--learner.gamma", "0.5", "--env.num-envs", "4",
        "--set", "max_steps=6", "--set", "num_users=4", "--policy.memory.dim", "16", "--total-steps", "64",
        "--segment-length", "8", "--eval-episodes", "2", "--run-dir", "run", "--quiet",
    )  # fmt: skip
    assert code == 0, err
    run = Run.load(tmp_path / "run")
    assert isinstance(run.config, TeamTaskConfig)
    assert run.config.learner == TeamReinforceConfig(gamma=0.5)
    assert run.config.label == "gamatr-by-team_reinforce"
    assert run.result["episodes"] == 2
    assert run.team_policy.num_agents == 2
    code, _, err = here("eval", "run", "--best-response")
    assert code == 2
    assert "best responses are learned with trust regions" in err


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("tmaze", ["--learner", "reinforces"], "did you mean 'reinforce'"),
        ("tmaze", ["--learner", "clip"], "unknown learner 'clip'; choose from ppo, reinforce"),
        ("uav-small", ["--learner", "ppo"], "unknown learner 'ppo'; choose from clip"),
        ("uav-small", ["--learner.mode", "clap"], "mode='clap': choose from sequential"),
        ("tmaze", ["--learner", "reinforce", "--ppo.gamma", "1"], "unknown option '--ppo.gamma'"),
        (
            "mqar",
            ["--learner", "reinforce"],
            "--learner requires a recipe with a policy; 'mqar' has no policy",
        ),
    ],
)
def test_an_invalid_learner_is_refused(recipe, arguments, message):
    with pytest.raises(UsageError) as error:
        override(recipe, arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["learner"].update(name="reinforces"), "did you mean 'reinforce'"),
        (lambda c: c["learner"].pop("name"), 'expected a JSON object whose key "name" has a registered name'),
        (lambda c: c["learner"].update(wings=2), "config.learner has no field wings"),
        (lambda c: c.update(learner=3), 'expected a JSON object whose key "name" has a registered name'),
    ],
)
def test_a_config_file_with_an_invalid_learner_is_refused(change, message):
    fields = json.loads(to_json(dataclasses.replace(REPEAT, learner=ReinforceConfig())))
    change(fields)
    with pytest.raises(ValueError, match=message):
        from_json(json.dumps(fields)).check()


def test_learners_and_policies_of_another_kind_are_refused():
    team = TeamTaskConfig(env=TeamEnvConfig(num_envs=4), device="cpu")
    with pytest.raises(ValueError, match=r"learner=PPOConfig: .* of one agent, not of one team"):
        dataclasses.replace(team, learner=PPOConfig()).check()
    with pytest.raises(ValueError, match="learner=GAMATRConfig"):
        dataclasses.replace(REPEAT, learner=GAMATRConfig()).check()
    with pytest.raises(TypeError, match="a team of 2 agents needs a TeamPolicyConfig"):
        dataclasses.replace(team, policy=PolicyConfig()).check()
    with pytest.raises(TypeError, match="a single agent needs a PolicyConfig"):
        dataclasses.replace(REPEAT, policy=TeamPolicyConfig()).check()


def test_an_environment_that_never_ends_is_trained_all_the_same(tiny, monkeypatch, caplog):
    config, evaluate = tiny(), evaluation.evaluate

    def cut(*arguments, **fields):
        return evaluate(*arguments, **{**fields, "max_steps": 2})

    monkeypatch.setattr("scrubjay.experiments.runs.evaluation.evaluate", cut)
    assert evaluation.evaluate_result(config.make_policy(), config) == {}
    assert "no episode ended" in caplog.text


@pytest.mark.parametrize(
    ("env", "fields", "success", "episodic_return"),
    [
        (EnvConfig("CartPole-v1"), {}, 0.95, 475.0),
        (EnvConfig("Pendulum-v1"), {}, 0.95, None),
        (EnvConfig("scrubjay/TMaze-v0"), {}, 0.95, None),
        (EnvConfig("CartPole-v1"), {"solved_at": 0.5}, 0.5, 0.5),
    ],
)
def test_the_score_of_a_solved_task(env, fields, success, episodic_return, tiny):
    config = tiny(env=env, **fields)
    assert config.find_solved_score("success") == success
    assert config.find_solved_score("episodic_return") == episodic_return
    assert smallest.TEAM.find_solved_score("episodic_return") is None


def test_a_wrapper_that_changes_rewards_has_no_threshold(tmp_path, monkeypatch):
    (tmp_path / "half.py").write_text(
        "import gymnasium\n"
        "def make(half=True):\n"
        "    env = gymnasium.make('CartPole-v1')\n"
        "    return gymnasium.wrappers.TransformReward(env, lambda r: r / 2) if half else env\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert EnvConfig("half:make").reward_threshold() is None
    assert EnvConfig("half:make", {"half": False}).reward_threshold() == 475.0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--eval-every", "-1"], "eval_every=-1: must not be negative"),
        (["--eval-every-episodes", "0"], "eval_every_episodes=0: must be at least 1"),
        (["--solved-at", "nan"], "solved_at=nan: must be a finite number"),
    ],
)
def test_an_impossible_setting_is_an_error_of_one_line(flags, message, usage_error):
    assert message in usage_error("train", "tmaze", *flags)
