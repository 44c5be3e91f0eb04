"""Gains of a run's team: from what its learner knows, behind a bar, the same every time."""

import pytest

from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicyConfig
from scrubjay.experiments import Run, train
from scrubjay.experiments.kinds.team import TeamTaskConfig
from scrubjay.experiments.reports.equilibrium import gains, learner_state, of_trust_region, watched_gains
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.memory import make_config


@pytest.fixture
def config():
    return TeamTaskConfig(
        env=TeamEnvConfig(kwargs={"num_uavs": 2, "num_users": 3, "max_steps": 4}, num_envs=2),
        policy=TeamPolicyConfig(memory=make_config("gru", dim=16)),
        learner=GAMATRConfig(minibatches=1),
        total_steps=6,
        segment_length=3,
        device="cpu",
        eval_episodes=0,
    )


def test_a_bar_changes_no_gain_and_reaches_its_end(config, tmp_path, capsys):
    run = train(config, tmp_path / "run")
    policy, learned = run.team_policy_in(config.env), learner_state(run)
    assert "value_moments" in learned
    capsys.readouterr()
    told = watched_gains("responses", policy, config, 6, 3, 1, learned)
    assert "responses  12/12" in capsys.readouterr().out
    assert told == gains(policy, config, 6, 3, 1, learned)
    assert len(told) == policy.num_agents
    assert all(gain.low <= gain.gain <= gain.high for gain in told)


def test_a_run_without_a_checkpoint_says_so(config, tmp_path):
    assert of_trust_region(config) is config.learner
    with pytest.raises(ValueError, match="no checkpoint"):
        learner_state(Run.create(config, tmp_path / "run"))
