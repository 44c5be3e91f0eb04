"""The registry of learners: names, modes among them, and what each builds."""

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
        policy = TeamPolicyConfig(shared=False, joint=rule.joint).build(team)
        learner = make_learner_config(name).build(policy)
        assert isinstance(learner, GAMATR)
        assert learner.config.rule is rule


def test_names_and_fields_that_are_not_are_refused_with_choices():
    with pytest.raises(ValueError, match="did you mean 'ppo'"):
        make_learner_config("pppo")
    with pytest.raises(ValueError, match="learner 'ppo' has no field mode"):
        make_learner_config("ppo", mode="clip")
    for taken in ("ppo", "clip"):
        with pytest.raises(ValueError, match=f"learner '{taken}' is already registered"):
            register_learner(taken, PPOConfig)


def test_settings_are_kept_where_the_learner_stays_the_same():
    set_so = GAMATRConfig(gamma=0.5)
    assert learners.turned_into(set_so, "clip") == GAMATRConfig(gamma=0.5, mode="clip")
    assert learners.turned_into(set_so, "gamatr") == set_so
    assert learners.turned_into(set_so, "ppo") == PPOConfig()


def test_a_mode_of_your_own_is_one_line_and_a_learner(monkeypatch):
    """Here one that we have: both make the same updates, bit for bit."""

    def each_for_itself(policy, batch, settings, means):
        return independent_steps(policy, batch, settings, means.agents), {}

    monkeypatch.setitem(MODES, "selfish", Mode(each_for_itself, alone=True, budgets=True))
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
