"""Gains of a team run from its learner state, with a progress bar, are reproducible."""

import pytest

from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicyConfig
from scrubjay.experiments import Run, train
from scrubjay.experiments.experiment_types.team import TeamTaskConfig
from scrubjay.experiments.reports.equilibrium import (
    get_trust_region_config,
    learner_state,
    measure_gains,
    measure_gains_with_progress,
)
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
    policy, learner_checkpoint = run.team_policy_for(config.env), learner_state(run)
    assert "value_moments" in learner_checkpoint
    capsys.readouterr()
    agent_gains = measure_gains_with_progress("responses", policy, config, 6, 3, 1, learner_checkpoint)
    assert "responses  12/12" in capsys.readouterr().out
    assert agent_gains == measure_gains(policy, config, 6, 3, 1, learner_checkpoint)
    assert len(agent_gains) == policy.num_agents
    assert all(gain.low <= gain.gain <= gain.high for gain in agent_gains)


def test_a_run_without_a_checkpoint_says_so(config, tmp_path):
    assert get_trust_region_config(config) is config.learner
    with pytest.raises(ValueError, match="no checkpoint"):
        learner_state(Run.create(config, tmp_path / "run"))
