"""The registry of learners: names, including modes, and the learners that they build."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from scrubjay.agents import (
    GAMATR,
    PPO,
    GAMATRConfig,
    Learner,
    PolicyConfig,
    PPOConfig,
    Spaces,
    TeamPolicyConfig,
    check_learner,
    learners,
    list_learners,
    make_learner_config,
    register_learner,
)
from scrubjay.agents.conformance import LearnerLawError
from scrubjay.agents.teams.gamatr import MODES, Mode
from scrubjay.agents.teams.steps import independent_steps
from scrubjay.memory.gru import GRUConfig

from .teams.games import ACTION, OBSERVATION, climbing, make_policy, play

FAST = {"ppo": {"learning_rate": 5e-3, "gamma": 1.0}}
"""Settings with which a learner learns in few updates, other than its defaults."""


def make_policy_config(name: str) -> PolicyConfig | TeamPolicyConfig:
    """Return the config of a policy that the learner can train, with a GRU of 16 units."""
    config = make_learner_config(name)
    gru = GRUConfig(dim=16)
    if config.policy_type == "agent":
        return PolicyConfig(memory=gru)
    rule = config.rule if isinstance(config, GAMATRConfig) else None
    return TeamPolicyConfig(memory=gru, shared=False, joint=rule is not None and rule.needs_joint)


def test_learners_are_of_agents_or_teams_and_every_mode_is_one():
    assert {"ppo"} <= set(list_learners("agent"))
    assert {"gamatr", *MODES} <= set(list_learners("team"))
    assert list_learners() == sorted([*list_learners("agent"), *list_learners("team")])
    for policy_type in ("agent", "team"):
        for name in list_learners(policy_type):
            assert make_learner_config(name).policy_type == policy_type


@pytest.mark.parametrize("name", list_learners())
def test_every_learner_is_built_by_its_name(name):
    config = make_learner_config(name)
    spaces = Spaces(OBSERVATION, ACTION, 3 if config.policy_type == "team" else None)
    learner = config.build(make_policy_config(name).build(spaces))
    assert isinstance(learner, Learner)
    if name in MODES:
        assert isinstance(learner, GAMATR)
        assert learner.config.rule is MODES[name]


# The modes are learners of one class, of which one more trains in CI.
MARKS = {"ppo": [], "gamatr": pytest.mark.slow, "clip": pytest.mark.slow}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=MARKS.get(name, pytest.mark.matrix)) for name in list_learners()]
)
def test_every_learner_obeys_the_laws(name):
    check_learner(make_learner_config(name, **FAST.get(name, {})), make_policy_config(name))


class Idle(PPO):
    def update(self, segment):
        return {}


class Forgetful(PPO):
    def set_state(self, state):
        pass


class Credulous(PPO):
    def update(self, segment):
        segment.check_rewards = lambda: None
        return super().update(segment)


class Opaque(PPO):
    def get_state(self):
        return super().get_state() | {"config": self.config}


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize(
    ("learner", "message"),
    [
        (Idle, r"law 1 \(learns a bandit\): the mean reward is 0\.\d+ after 20 updates"),
        (Forgetful, r"law 3 \(resumes bit for bit\)"),
        (Credulous, r"law 4 \(survives NaN rewards\)"),
        (Opaque, r"law 5 \(saved and loaded\): the learner's state"),
    ],
)
def test_a_learner_that_breaks_a_law_is_caught(learner, message):
    @dataclasses.dataclass(frozen=True)
    class Config(PPOConfig):
        def build(self, policy, seed=0, peers=None):
            return learner(policy, self, seed)

    fast: dict[str, Any] = FAST["ppo"]
    with pytest.raises(LearnerLawError, match=message):
        check_learner(Config(**fast), updates=20)


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

    def each_for_itself(context):
        return independent_steps(context)

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
