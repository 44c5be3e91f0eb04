"""GAMATR in every mode: improvement, divergence limits, agents that are not alive, and restoring."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch

from scrubjay.agents import GAMATR, GAMATRConfig, generalized_advantage
from scrubjay.agents.rl.trust_region import flatten, mean_kl, snapshot, trust_region_step
from scrubjay.agents.teams.steps import compute_detached

from .games import TRUST_MODES, climbing, expected_reward, make_policy, play, policy_for


@pytest.mark.slow
@pytest.mark.one_in(2)
@pytest.mark.parametrize("mode", [*TRUST_MODES, "clip", "clip_sequential"])
def test_updates_climb_a_game_solved_exactly(mode: str) -> None:
    policy = policy_for(mode, agents=2)
    learner = GAMATR(policy, GAMATRConfig(mode=mode, kl_limit=0.05, learning_rate=5e-3))  # pyright: ignore[reportArgumentType]
    scores = [expected_reward(policy, climbing)]
    for turn in range(16):
        learner.update(play(policy, climbing, seed=turn))
        scores.append(expected_reward(policy, climbing))
    best = 2.25
    assert scores[-1] > scores[0] + 0.75 * (best - scores[0])
    if mode in TRUST_MODES:  # a step may only lose by sampling error
        assert min(np.diff(scores)) > -0.06


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("mode", "budget", "shared"),
    [
        *[(mode, "equal", False) for mode in TRUST_MODES],
        *[(mode, "allocated", False) for mode in TRUST_MODES if mode != "consensus"],
        *[(mode, "equal", True) for mode in ("sequential", "independent")],
    ],
)
def test_every_agent_stays_within_its_limit(mode: str, budget: str, shared: bool) -> None:
    policy = policy_for(mode, shared=shared)
    learner = GAMATR(policy, GAMATRConfig(mode=mode, kl_budget=budget, kl_limit=0.02))  # pyright: ignore[reportArgumentType]
    for turn in range(3):
        segment = play(policy, climbing, seed=turn)
        old = compute_detached(partial(policy.distribution, segment))
        metrics = learner.update(segment)
        kl = mean_kl(old, compute_detached(partial(policy.distribution, segment)), segment.alive.float())
        if budget == "equal":
            assert (kl <= 0.02 * (1 + 1e-4)).all()
            assert metrics["losses/kl_max"] <= 0.02
        assert float(kl.sum()) <= 3 * 0.02 * (1 + 1e-4)
        assert float(kl.max()) > 0.003  # and it moved
        assert metrics["losses/improvement"] > 0


def test_alone_all_ways_are_plain_trpo() -> None:
    reference = make_policy(agents=1)
    segment = play(reference, climbing)
    advantages, _ = generalized_advantage(
        segment.rewards[:, :, 0],
        segment.values[:, :, 0],
        segment.last_values[:, 0],
        segment.bootstrap_values[:, :, 0],
        segment.terminated[:, :, 0],
        segment.truncated,
        GAMATRConfig().gamma,
        GAMATRConfig().gae_lambda,
    )
    advantages = (advantages - advantages.mean()) / advantages.std(correction=0)
    before = segment.log_probs[:, :, 0]
    actions = segment.actions[:, :, 0]
    trust_region_step(
        reference.actor_parameters(0),
        partial(reference.distribution, segment, 0),
        lambda new: ((new.log_prob(actions) - before).exp() * advantages).mean(),
        None,
        torch.ones_like(before),
        GAMATRConfig(),
        0.01,
    )
    expected = flatten(reference.actor_parameters())
    for mode, shared in itertools.product(("independent", "sequential", "metagame"), (False, True)):
        if mode == "metagame" and shared:
            continue
        policy = make_policy(agents=1, shared=shared)
        GAMATR(policy, GAMATRConfig(mode=mode, curvature_share=1.0)).update(play(policy, climbing))  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(flatten(policy.actor_parameters()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("mode", "shared"),
    [
        *[(mode, False) for mode in (*TRUST_MODES, "clip", "clip_sequential")],
        *[(mode, True) for mode in ("sequential", "independent", "clip", "clip_sequential")],
    ],
)
def test_what_is_said_of_the_dead_changes_nothing(mode: str, shared: bool) -> None:
    alive = torch.rand(64, 4, 3, generator=torch.Generator().manual_seed(5)) < 0.7
    results = []
    for poison in (False, True):
        policy = policy_for(mode, shared=shared)
        segment = play(policy, climbing, alive=alive)
        if poison:
            for name in ("rewards", "values", "log_probs", "bootstrap_values", "observations"):
                setattr(segment, name, getattr(segment, name).clone())
                getattr(segment, name)[~alive] = math.nan
            segment.actions[~alive] = 2
        metrics = GAMATR(policy, GAMATRConfig(mode=mode)).update(segment)  # pyright: ignore[reportArgumentType]
        results.append((flatten(list(policy.parameters())).detach(), metrics))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=0)
    assert results[0][1] == results[1][1]
    assert all(math.isfinite(value) for value in results[0][1].values())


def test_an_agent_that_never_lives_stays_as_it_is() -> None:
    alive = torch.ones(64, 4, 3, dtype=torch.bool)
    alive[:, :, 1] = False
    for mode in TRUST_MODES:
        policy = policy_for(mode)
        before = [flatten(policy.actor_parameters(agent)).detach() for agent in range(3)]
        GAMATR(policy, GAMATRConfig(mode=mode)).update(play(policy, climbing, alive=alive))  # pyright: ignore[reportArgumentType]
        has_changed = [
            not torch.equal(flatten(policy.actor_parameters(agent)), before[agent]) for agent in range(3)
        ]
        assert has_changed == [True, False, True]


@pytest.mark.slow
def test_values_are_learned_in_units_of_returns() -> None:
    policy = make_policy()
    learner = GAMATR(policy, GAMATRConfig(critic_learning_rate=3e-2))
    for turn in range(12):
        metrics = learner.update(play(policy, lambda actions: actions.float() * 0 - 500.0, seed=turn))
        segment = play(policy, climbing, seed=turn)
    assert learner.value_mean == pytest.approx(-500, abs=0.5)
    reward_values = policy.values(segment).detach() * learner.value_deviation + learner.value_mean
    assert (reward_values + 500).abs().max() < 5
    assert math.isfinite(metrics["losses/explained_variance"])


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize("mode", [*TRUST_MODES, "clip", "clip_sequential"])
def test_a_restored_learner_goes_on_as_the_first_does(mode: str) -> None:
    policy, twin = policy_for(mode), policy_for(mode, seed=7)
    config = GAMATRConfig(mode=mode)  # pyright: ignore[reportArgumentType]
    first, second = GAMATR(policy, config, seed=1), GAMATR(twin, config, seed=2)
    first.update(play(policy, climbing))
    twin.load_state_dict(policy.state_dict())
    second.set_state(first.get_state())
    saved_state = first.get_state()
    segment = play(policy, climbing, seed=2)
    assert first.update(segment) == second.update(segment)
    assert torch.equal(flatten(list(policy.parameters())), flatten(list(twin.parameters())))
    # What was kept is of then, not of now.
    assert not torch.equal(saved_state["value_moments"], first.get_state()["value_moments"])


def test_the_same_seed_makes_the_same_updates() -> None:
    results = []
    for seed in (0, 0, 1):
        policy = make_policy()
        learner = GAMATR(policy, GAMATRConfig(), seed=seed)
        for turn in range(2):
            learner.update(play(policy, climbing, seed=turn))
        results.append(flatten(list(policy.parameters())).detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize("memory", ["gru", "sink", "titans"])
def test_any_memory_is_taught(memory: str) -> None:
    policy = make_policy(memory=memory, shared=True, graph_rounds=1, graph_heads=2)
    segment = play(policy, climbing, rows=8)
    old = snapshot(policy.distribution(segment))
    metrics = GAMATR(policy, GAMATRConfig()).update(segment)
    assert metrics["losses/accepted"] > 0
    assert (
        mean_kl(old, compute_detached(partial(policy.distribution, segment)), segment.alive.float()) <= 0.01
    ).all()


@pytest.mark.parametrize(
    ("fields", "actors", "message"),
    [
        ({"mode": "consensus"}, {}, "joint=True"),
        ({"mode": "sequential"}, {"joint": True}, "joint=False"),
        ({"mode": "metagame"}, {"shared": True}, "shared=False"),
        ({"kl_budget": "allocated"}, {"shared": True}, "shared=False"),
    ],
)
def test_actors_that_do_not_fit_the_mode_are_refused(fields: dict, actors: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GAMATR(make_policy(**actors), GAMATRConfig(**fields))


def test_too_few_rows_are_refused() -> None:
    policy = make_policy()
    with pytest.raises(ValueError, match="more than the 2 environments"):
        GAMATR(policy, GAMATRConfig(minibatches=3)).update(play(policy, climbing, rows=2))
