"""Schedules of clip range and entropy coefficient: values, their effect on the update, and resumed runs."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from scrubjay.agents import GAMATR, PPO, GAMATRConfig, PPOConfig
from scrubjay.agents.rl.trust_region import flatten

from ..teams.games import climbing, make_policy, play
from .test_learner import sample_segment

PLAN = PPOConfig(
    num_minibatches=2, learning_rate=0.01, clip=0.2, clip_end=0.1, entropy_coefficient=0.02, entropy_end=0.0
)
TEAM = GAMATRConfig(mode="clip", clip=0.2, clip_end=0.1, entropy_coefficient=0.0, entropy_end=0.04)


def test_values_change_in_a_line_and_keep_their_last_value() -> None:
    config = PLAN.with_total_steps(100)
    values = [(config.at(steps).clip, config.at(steps).entropy_coefficient) for steps in (0, 25, 100, 999)]
    expected = [(0.2, 0.02), (0.175, 0.015), (0.1, 0.0), (0.1, 0.0)]
    assert values == [pytest.approx(pair) for pair in expected]
    assert PPOConfig().at(50) == PPOConfig()
    assert PPOConfig().schedule_metrics(50) == {}


def test_an_update_with_a_schedule_is_the_update_with_its_current_values() -> None:
    policy, segment = sample_segment("gru")
    learner = PPO(policy, PLAN.with_total_steps(4 * segment.num_steps), seed=1)
    rows = [learner.update(segment)]
    weights, state = copy.deepcopy(policy.state_dict()), learner.get_state()
    rows.append(learner.update(segment))
    assert [row["charts/clip"] for row in rows] == pytest.approx([0.2, 0.175])
    assert [row["charts/entropy_coefficient"] for row in rows] == pytest.approx([0.02, 0.015])
    other, _ = sample_segment("gru")
    other.load_state_dict(weights)
    constant = replace(
        learner.config.at(segment.num_steps), clip_end=None, entropy_end=None, anneal_steps=None
    )
    same = PPO(other, constant, seed=2)
    same.set_state(state)
    metrics = same.update(segment)
    assert metrics == {name: rows[1][name] for name in metrics}
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in policy.state_dict().items())


def test_a_team_uses_the_current_values_and_a_restored_learner_goes_on() -> None:
    policy = make_policy(agents=2)
    segment = play(policy, climbing)
    config = TEAM.with_total_steps(4 * segment.num_steps)
    learner = GAMATR(policy, config)
    first = learner.update(segment)
    assert (first["charts/clip"], first["charts/entropy_coefficient"]) == (0.2, 0.0)
    weights, state = copy.deepcopy(policy.state_dict()), learner.get_state()
    constant = replace(TEAM, clip=0.175, entropy_coefficient=0.01, clip_end=None, entropy_end=None)
    results = []
    for settings in (config, constant):
        policy.load_state_dict(weights)
        again = GAMATR(policy, settings)
        again.set_state(state)
        again.update(segment)
        results.append(flatten(policy.actor_parameters()).detach())
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_a_schedule_needs_a_length() -> None:
    policy, _ = sample_segment("gru")
    with pytest.raises(
        ValueError, match=r"clip_end or entropy_end requires anneal_steps: .*with_total_steps"
    ):
        PLAN.build(policy)
    with pytest.raises(ValueError, match="requires anneal_steps"):
        GAMATR(make_policy(agents=2), TEAM)
    assert replace(PLAN, anneal_steps=7).with_total_steps(100).anneal_steps == 7


@pytest.mark.parametrize(
    "bad",
    [{"clip_end": 0.0}, {"clip_end": float("nan")}, {"entropy_end": -0.1}, {"entropy_end": float("inf")}],
)
@pytest.mark.parametrize("config", [PPOConfig, GAMATRConfig])
def test_impossible_ends_are_refused(config: Any, bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        config(**bad)


def test_a_length_without_a_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="anneal_steps=5: must be None or, with anneal=True, clip_end or"):
        PPOConfig(anneal_steps=5)


def test_a_mode_without_the_setting_refuses_its_schedule() -> None:
    with pytest.raises(ValueError, match=r"clip_end=0\.1: mode='sequential' has no clip range; use .*clip"):
        GAMATRConfig(clip_end=0.1)
    with pytest.raises(ValueError, match=r"entropy_end=0\.1: mode='consensus' has no entropy"):
        GAMATRConfig(mode="consensus", entropy_end=0.1)
    GAMATRConfig(mode="sequential", entropy_end=0.1)
