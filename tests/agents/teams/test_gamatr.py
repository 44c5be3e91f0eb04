from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from scrubjay.agents import (
    GAMATR,
    GAMATRConfig,
    TeamPolicy,
    TeamPolicyConfig,
    TeamSegment,
    generalized_advantage,
)
from scrubjay.agents.rl.trust_region import flatten, mean_kl, snapshot, trust_region_step
from scrubjay.agents.teams.batch import normalized, team_advantages
from scrubjay.agents.teams.metagame import equilibrium, game_gains, regret
from scrubjay.agents.teams.steps import agent_step, allocate_kl, frozen, natural_gradients, sequential_steps
from scrubjay.memory import make_config

OBSERVATION = spaces.Box(-1, 1, (3,), np.float32)
ACTION = spaces.Discrete(3)
TRUST_MODES = ("sequential", "independent", "consensus", "metagame")


def make_policy(agents: int = 3, seed: int = 0, memory: str = "none", **fields: Any) -> TeamPolicy:
    torch.manual_seed(seed)
    config = TeamPolicyConfig(
        **{"memory": make_config(memory, dim=8), "graph_rounds": 0, "shared": False} | fields
    )
    policy = TeamPolicy(OBSERVATION, ACTION, agents, config)
    for parameter in policy.actor_parameters() if not policy.config.joint else ():
        if parameter.ndim == 2:  # far from indifferent, so that ratios differ
            torch.nn.init.normal_(parameter, std=0.5)
    return policy


def policy_for(mode: str, agents: int = 3, seed: int = 0, **fields: Any) -> TeamPolicy:
    return make_policy(agents, seed, joint=mode == "consensus", **fields)


def play(
    policy: TeamPolicy,
    reward: Callable[[Tensor], Tensor],
    rows: int = 64,
    time: int = 4,
    seed: int = 1,
    alive: Tensor | None = None,
) -> TeamSegment:
    """Return steps of one-step games: everybody sees one of a few random signs, and actions are paid at once."""
    generator = torch.Generator().manual_seed(seed)
    agents = policy.num_agents
    signs = torch.randint(0, 2, (rows, time, 1, 3), generator=generator).float() * 2 - 1
    signs = signs.expand(rows, time, agents, 3).contiguous()
    if alive is None:
        alive = torch.ones(rows, time, agents, dtype=torch.bool)
    state = policy.initial_state(rows)
    actions, log_probs, values = [], [], []
    for t in range(time):
        start = torch.ones(rows, dtype=torch.bool)
        step = policy.step(signs[:, t], alive[:, t], state, start, generator)
        state = step.state
        for taken, kept in zip((actions, log_probs, values), step[:3], strict=True):
            taken.append(kept)
    first = policy.initial_state(rows)
    actions = torch.stack(actions, dim=1)
    return TeamSegment(
        observations=signs,
        alive=alive,
        actions=actions,
        log_probs=torch.stack(log_probs, dim=1),
        values=torch.stack(values, dim=1),
        rewards=reward(actions),
        starts=torch.ones(rows, time, dtype=torch.bool),
        terminated=torch.ones(rows, time, agents, dtype=torch.bool),
        truncated=torch.zeros(rows, time, dtype=torch.bool),
        bootstrap_values=torch.zeros(rows, time, agents),
        last_values=torch.zeros(rows, agents),
        state=first,
    )


def climbing(actions: Tensor) -> Tensor:
    """Pay everybody the same for every action, and for agreement; the only equilibrium is the best there is."""
    total = actions.sum(dim=2, keepdim=True).float()
    agree = (actions == actions[:, :, :1]).all(dim=2, keepdim=True).float()
    return (total / 2 + agree / 4).expand(actions.shape)


def expected_reward(policy: TeamPolicy, reward: Callable[[Tensor], Tensor]) -> float:
    """Return the exact mean reward over all signs and actions."""
    agents = policy.num_agents
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)))
    seen = signs[:, None, None].expand(-1, 1, agents, 3)
    segment = play(policy, climbing, rows=len(signs), time=1)
    segment.observations = seen
    joint = torch.tensor(list(itertools.product(range(3), repeat=agents)))
    distribution = frozen(partial(policy.distribution, segment))
    total = torch.zeros(())
    for actions in joint:
        chosen = actions.expand(len(signs), 1, agents)
        probability = distribution.log_prob(chosen).sum(dim=2).exp()
        total = total + (probability * reward(chosen).mean(dim=2)).mean()
    return float(total)


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
    if mode in TRUST_MODES:  # what a step may lose is what its sample misled it to, no more
        assert min(np.diff(scores)) > -0.06


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
        old = frozen(partial(policy.distribution, segment))
        metrics = learner.update(segment)
        kl = mean_kl(old, frozen(partial(policy.distribution, segment)), segment.alive.float())
        if budget == "equal":
            assert (kl <= 0.02 * (1 + 1e-4)).all()
            assert metrics["losses/kl_max"] <= 0.02
        assert float(kl.sum()) <= 3 * 0.02 * (1 + 1e-4)
        assert float(kl.max()) > 0.003  # and it moved
        assert metrics["losses/improvement"] > 0


def test_a_later_agent_is_taught_by_the_product_of_earlier_ratios() -> None:
    # Replayed by hand: the same steps, with advantages multiplied by ratios looked up from probabilities.
    policy, twin = make_policy(), make_policy()
    learner = GAMATR(policy, GAMATRConfig(), seed=3)
    batch = learner.batch(play(policy, climbing))
    order = torch.randperm(3, generator=torch.Generator().manual_seed(3)).tolist()
    sequential_steps(policy, batch, learner.config, learner.generator)

    def chance(agent: int) -> Tensor:
        log_probs = frozen(partial(twin.distribution, batch.segment, agent)).log_probs  # pyright: ignore[reportAttributeAccessIssue]
        return log_probs.exp().gather(-1, batch.segment.actions[:, :, agent, None]).squeeze(-1)

    before = [chance(agent) for agent in range(3)]
    factor = torch.ones_like(before[0])
    for agent in order:
        agent_step(twin, batch, learner.config, agent, 0.01, factor)
        factor = factor * chance(agent) / before[agent]
    for ours, replayed in zip(policy.actor_parameters(), twin.actor_parameters(), strict=True):
        torch.testing.assert_close(ours, replayed, rtol=1e-4, atol=1e-5)


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
        moved = [
            not torch.equal(flatten(policy.actor_parameters(agent)), before[agent]) for agent in range(3)
        ]
        assert moved == [True, False, True]


def test_advantages_are_each_agents_own_and_end_with_it() -> None:
    torch.manual_seed(0)
    rows, time, agents = 2, 6, 3
    terminated = torch.rand(rows, time, agents) < 0.2
    truncated = torch.rand(rows, time) < 0.2
    segment = TeamSegment(
        observations=torch.zeros(rows, time, agents, 3),
        alive=torch.ones(rows, time, agents, dtype=torch.bool),
        actions=torch.zeros(rows, time, agents, dtype=torch.long),
        log_probs=torch.zeros(rows, time, agents),
        values=torch.randn(rows, time, agents),
        rewards=torch.randn(rows, time, agents),
        starts=torch.zeros(rows, time, dtype=torch.bool),
        terminated=terminated,
        truncated=truncated,
        bootstrap_values=torch.randn(rows, time, agents) * truncated[..., None],
        last_values=torch.randn(rows, agents),
        state={},
    )
    advantages, returns = team_advantages(segment, 0.9, 0.8)
    for agent in range(agents):
        expected = generalized_advantage(
            segment.rewards[..., agent],
            segment.values[..., agent],
            segment.last_values[..., agent],
            segment.bootstrap_values[..., agent],
            terminated[..., agent],
            truncated,
            0.9,
            0.8,
        )
        torch.testing.assert_close(advantages[..., agent], expected[0])
        torch.testing.assert_close(returns[..., agent], expected[1])


def test_normalization_is_over_each_agents_life() -> None:
    values = torch.randn(5, 7, 2) * torch.tensor([1.0, 100.0]) + 3
    weights = (torch.rand(5, 7, 2) < 0.6).float()
    result = normalized(values, weights)
    for agent in range(2):
        living = result[..., agent][weights[..., agent] > 0]
        torch.testing.assert_close(living.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
        torch.testing.assert_close(living.std(correction=0), torch.tensor(1.0), atol=1e-5, rtol=0)
    assert (result[weights == 0] == 0).all()


def test_team_advantage_is_the_mean_of_the_living() -> None:
    policy = make_policy()
    alive = torch.rand(64, 4, 3, generator=torch.Generator().manual_seed(5)) < 0.7
    segment = play(policy, lambda actions: actions.float(), alive=alive)
    config = GAMATRConfig(advantage="team", normalize_advantage=False)
    team = GAMATR(policy, config).batch(segment).advantages
    own = GAMATR(policy, GAMATRConfig(normalize_advantage=False)).batch(segment).advantages
    for row, t, agent in alive.nonzero()[:20].tolist():
        expected = own[row, t][alive[row, t]].mean()
        torch.testing.assert_close(team[row, t, agent], expected)
    assert (team[~alive] == 0).all()


def test_allocated_limits_are_the_best_split() -> None:
    gains, total = [0.5, 2.0, 0.1], 0.03
    limits = allocate_kl(gains, total)

    def improvement(split: list[float]) -> float:
        return sum(math.sqrt(2 * limit * gain) for limit, gain in zip(split, gains, strict=True))

    assert sum(limits) == pytest.approx(total)
    assert improvement(limits) == pytest.approx(math.sqrt(2 * total * sum(gains)))
    others = torch.distributions.Dirichlet(torch.ones(3)).sample((200,)) * total
    assert max(improvement(split) for split in others.tolist()) <= improvement(limits)
    assert allocate_kl([0.0, 0.0], 0.02) == [0.01, 0.01]


def test_allocated_budgets_follow_the_gains() -> None:
    # Only agent 0 is paid for what it does.
    policy = make_policy()
    learner = GAMATR(
        policy, GAMATRConfig(mode="independent", kl_budget="allocated", normalize_advantage=False)
    )
    segment = play(policy, lambda actions: actions.float() * torch.tensor([1.0, 0.0, 0.0]))
    segment.values.zero_()
    batch = learner.batch(segment)
    gains = [natural.gain for natural in natural_gradients(policy, batch, learner.config, range(3))]
    assert gains[0] > 0
    assert gains[1:] == [0.0, 0.0]
    old = frozen(partial(policy.distribution, segment))
    learner.update(segment)
    kl = mean_kl(old, frozen(partial(policy.distribution, segment)), batch.weights)
    assert 0.02 < float(kl[0]) <= 0.03
    assert (kl[1:] == 0).all()


def test_consensus_brings_neighbours_together() -> None:
    disagreements = []
    for rounds in (1, 4, 16):
        policy = policy_for("consensus")
        config = GAMATRConfig(mode="consensus", consensus_rounds=rounds, cg_tolerance=1e-4, damping=1e-3)
        segment = play(policy, climbing)
        disagreements.append(GAMATR(policy, config).update(segment)["consensus/disagreement"])
    assert disagreements == sorted(disagreements, reverse=True)
    assert disagreements[-1] < 0.5 * disagreements[0]


def test_those_who_never_meet_have_nothing_to_agree_on() -> None:
    alive = torch.zeros(64, 4, 2, dtype=torch.bool)
    alive[::2, :, 0] = alive[1::2, :, 1] = True
    told = []
    for penalty, rounds in ((1e-6, 1), (100.0, 10)):
        config = GAMATRConfig(
            mode="consensus",
            consensus_penalty=penalty,
            consensus_rounds=rounds,
            kl_limit=1e-4,
            cg_iterations=20,
            cg_tolerance=1e-3,
            damping=1e-4,
        )
        policy = policy_for("consensus", agents=2)
        told.append(GAMATR(policy, config).update(play(policy, climbing, alive=alive)))
    for name in ("losses/kl", "losses/improvement"):
        assert told[1][name] == pytest.approx(told[0][name], rel=0.1)


def test_the_metagame_follows_new_policies_that_all_profit_from() -> None:
    generator = torch.Generator().manual_seed(0)
    ratios = torch.rand(50, 4, 3, generator=generator) + 0.5
    advantages = (ratios - 1).sum(dim=2, keepdim=True).expand(-1, -1, 3)
    gains = game_gains(ratios, advantages, torch.ones(50, 4, 3))
    mixture = equilibrium(gains, 3)
    assert torch.equal(mixture, torch.ones(3))
    assert regret(gains, mixture) == 0


def test_the_metagame_stays_where_moving_hurts() -> None:
    generator = torch.Generator().manual_seed(0)
    ratios = torch.rand(50, 4, 2, generator=generator) + 0.5
    signs = torch.tensor([1.0, -1.0])
    gains = game_gains(ratios, (ratios - 1) * signs, torch.ones(50, 4, 2))
    assert torch.equal(equilibrium(gains, 2), torch.tensor([1.0, 0.0]))


def test_the_metagames_gains_are_those_of_listed_payoffs() -> None:
    generator = torch.Generator().manual_seed(0)
    ratios = torch.rand(30, 2, 3, generator=generator) + 0.5
    advantages = torch.randn(30, 2, 3, generator=generator)
    weights = torch.ones(30, 2, 3)
    mixture = torch.tensor([0.2, 0.9, 0.5])
    payoffs = torch.zeros(3, 2)  # of each agent when old and when new
    for bits in itertools.product((0, 1), repeat=3):
        likelihood = torch.stack(
            [ratios[:, :, m] if bit else torch.ones(30, 2) for m, bit in enumerate(bits)]
        )
        worth = (likelihood.prod(dim=0)[..., None] * advantages).mean(dim=(0, 1))
        for agent in range(3):
            chance = math.prod(
                float(mixture[m] if bit else 1 - mixture[m]) for m, bit in enumerate(bits) if m != agent
            )
            payoffs[agent, bits[agent]] += chance * worth[agent]
    gains = game_gains(ratios, advantages, weights)(mixture)
    torch.testing.assert_close(gains, payoffs[:, 1] - payoffs[:, 0])


def test_a_game_without_pure_equilibrium_is_mixed() -> None:
    # Matching pennies: the first gains where the second is new, the second where the first is old.
    def gains(mixture: Tensor) -> Tensor:
        return torch.stack([mixture[1] - 0.3, 0.6 - mixture[0]])

    mixture = equilibrium(gains, 2, plays=3000)
    torch.testing.assert_close(mixture, torch.tensor([0.6, 0.3]), atol=0.03, rtol=0)
    assert regret(gains, mixture) < 0.03


def test_metagame_goes_back_to_the_old_policy_bit_for_bit() -> None:
    # Independent steps towards agreement by switching: if both switch, nothing is won; the game lets one stay.
    policy = make_policy(agents=2)
    for parameter in policy.actor_parameters():
        torch.nn.init.zeros_(parameter)
    before = [flatten(policy.actor_parameters(agent)).detach() for agent in range(2)]
    segment = play(
        policy, lambda actions: (actions[:, :, :1] != actions[:, :, 1:]).float().expand(actions.shape)
    )
    metrics = GAMATR(policy, GAMATRConfig(mode="metagame", kl_limit=0.5)).update(segment)
    shares = [not torch.equal(flatten(policy.actor_parameters(agent)), before[agent]) for agent in range(2)]
    assert metrics["metagame/mixture"] == pytest.approx(sum(shares) / 2)
    assert metrics["metagame/regret"] == 0


def test_values_are_learned_in_units_of_returns() -> None:
    policy = make_policy()
    learner = GAMATR(policy, GAMATRConfig(critic_learning_rate=3e-2))
    for turn in range(12):
        metrics = learner.update(play(policy, lambda actions: actions.float() * 0 - 500.0, seed=turn))
        segment = play(policy, climbing, seed=turn)
    assert learner.value_mean == pytest.approx(-500, abs=0.5)
    judged = policy.values(segment).detach() * learner.value_deviation + learner.value_mean
    assert (judged + 500).abs().max() < 5
    assert math.isfinite(metrics["losses/explained_variance"])


@pytest.mark.parametrize("mode", [*TRUST_MODES, "clip", "clip_sequential"])
def test_a_restored_learner_goes_on_as_the_first_does(mode: str) -> None:
    policy, twin = policy_for(mode), policy_for(mode, seed=7)
    config = GAMATRConfig(mode=mode)  # pyright: ignore[reportArgumentType]
    first, second = GAMATR(policy, config, seed=1), GAMATR(twin, config, seed=2)
    first.update(play(policy, climbing))
    twin.load_state_dict(policy.state_dict())
    second.set_state(first.get_state())
    kept = first.get_state()
    segment = play(policy, climbing, seed=2)
    assert first.update(segment) == second.update(segment)
    assert torch.equal(flatten(list(policy.parameters())), flatten(list(twin.parameters())))
    # What was kept is of then, not of now.
    assert not torch.equal(kept["value_moments"], first.get_state()["value_moments"])


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


@pytest.mark.parametrize("memory", ["gru", "sink", "titans"])
def test_any_memory_is_taught(memory: str) -> None:
    policy = make_policy(memory=memory, shared=True, graph_rounds=1, graph_heads=2)
    segment = play(policy, climbing, rows=8)
    old = snapshot(policy.distribution(segment))
    metrics = GAMATR(policy, GAMATRConfig()).update(segment)
    assert metrics["losses/accepted"] > 0
    assert (mean_kl(old, frozen(partial(policy.distribution, segment)), segment.alive.float()) <= 0.01).all()


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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "selfish"}, "choose from sequential"),
        ({"mode": "clip", "kl_budget": "allocated"}, "kl_budget='equal'"),
        ({"kl_limit": 0.0}, "kl_limit"),
        ({"gamma": 1.5}, "gamma"),
        ({"critic_epochs": 0}, "critic_epochs"),
        ({"entropy_coefficient": -1.0}, "entropy_coefficient"),
        ({"entropy_coefficient": 0.01, "mode": "consensus"}, "no place for a bonus"),
        ({"consensus_penalty": math.nan}, "consensus_penalty"),
        ({"damping": -1.0}, "damping"),
    ],
)
def test_impossible_settings_are_named(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GAMATRConfig(**fields)


def test_too_few_rows_are_refused() -> None:
    policy = make_policy()
    with pytest.raises(ValueError, match="more than the 2 rows"):
        GAMATR(policy, GAMATRConfig(minibatches=3)).update(play(policy, climbing, rows=2))
