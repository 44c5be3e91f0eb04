"""The registry of learners: names, including modes, and the learners that they build."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from scrubjay.agents import (
    GAMATR,
    PPO,
    GAMATRConfig,
    PolicyConfig,
    PPOConfig,
    Spaces,
    TeamPolicyConfig,
    learners,
    list_learners,
    make_learner_config,
    register_learner,
)
from scrubjay.agents.teams.modes import MODES, Mode
from scrubjay.agents.teams.steps import independent_steps

from .teams.games import ACTION, OBSERVATION, climbing, make_policy, play


def test_every_learner_is_built_by_its_name_for_whom_it_is():
    assert list_learners("agent") == ["ppo"]
    assert list_learners("team") == sorted(["gamatr", *MODES])
    assert list_learners() == sorted(["ppo", "gamatr", *MODES])
    alone, team = Spaces(OBSERVATION, ACTION), Spaces(OBSERVATION, ACTION, 3)
    assert isinstance(make_learner_config("ppo").build(PolicyConfig().build(alone)), PPO)
    for name in list_learners("team"):
        rule = MODES[name if name in MODES else "sequential"]
        policy = TeamPolicyConfig(shared=False, joint=rule.needs_joint).build(team)
        learner = make_learner_config(name).build(policy)
        assert isinstance(learner, GAMATR)
        assert learner.config.rule is rule


def test_names_and_fields_that_are_not_are_refused_with_choices():
    with pytest.raises(ValueError, match="did you mean 'ppo'"):
        make_learner_config("pppo")
    with pytest.raises(ValueError, match="learner 'ppo' has no field mode"):
        make_learner_config("ppo", mode="clip")
    for used_name in ("ppo", "clip"):
        with pytest.raises(ValueError, match=f"learner '{used_name}' is already registered"):
            register_learner(used_name, PPOConfig)


def test_settings_are_kept_where_the_learner_stays_the_same():
    config = GAMATRConfig(gamma=0.5)
    assert learners.switch_learner(config, "clip") == GAMATRConfig(gamma=0.5, mode="clip")
    assert learners.switch_learner(config, "gamatr") == config
    assert learners.switch_learner(config, "ppo") == PPOConfig()


def test_a_mode_of_your_own_is_one_line_and_a_learner(monkeypatch):
    """The custom mode equals an existing one: both make the same updates bit for bit."""

    def each_for_itself(policy, batch, settings, context):
        return independent_steps(policy, batch, settings, context.agents), {}

    monkeypatch.setitem(MODES, "selfish", Mode(each_for_itself, supports_subset=True, supports_budgets=True))
    assert "selfish" in list_learners("team")
    results = []
    for name in ("selfish", "independent"):
        policy = make_policy()
        learner = make_learner_config(name, kl_budget="allocated").build(policy, seed=3)
        metrics = learner.update(play(policy, climbing))
        results.append((metrics, torch.cat([part.flatten() for part in policy.parameters()])))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    with pytest.raises(ValueError, match=r"choose from sequential, .*, selfish"):
        dataclasses.replace(GAMATRConfig(), mode="unselfish")
