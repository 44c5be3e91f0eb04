"""Action masks of teams: every mode learns from allowed actions only, wherever the masks stand."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv

from scrubjay.agents.rl.observations import EnvFaultError
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.agents.rl.trust_region import derivative_along, fisher_product, flatten, mean_kl
from scrubjay.agents.teams.best_response import best_response, separate
from scrubjay.agents.teams.gamatr import MODES, GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicyConfig
from scrubjay.agents.teams.sampler import TeamSampler
from scrubjay.envs.teams import ParallelTeams, TeamError
from scrubjay.memory.gru import GRUConfig

ACTIONS = {"discrete": spaces.Discrete(4), "parts": spaces.MultiDiscrete([3, 2])}
PLACES = ("observation", "info", "method")


class MaskedTeam(ParallelEnv):
    """Team of which the second agent leaves after two of five steps; a forbidden action fails.

    With `place="observation"` the observations are those of PettingZoo's classic games.
    """

    possible_agents = ["a", "b"]

    def __init__(self, place: str = "info", actions: str = "discrete") -> None:
        self.place, self.actions, self.rng = place, ACTIONS[actions], np.random.default_rng(0)
        self.sizes = (4,) if actions == "discrete" else (3, 2)
        if place == "method":
            self.action_masks = lambda: self.masks

    def observation_space(self, agent: Any) -> spaces.Space:
        vector = spaces.Box(-9, 9, (2,), np.float32)
        if self.place != "observation":
            return vector
        mask = spaces.Box(0, 1, (sum(self.sizes),), np.int8)
        return spaces.Dict({"observation": vector, "action_mask": mask})

    def action_space(self, agent: Any) -> spaces.Space:
        return self.actions

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.agents, self.time = list(self.possible_agents), 0
        return self.offer(self.agents)

    def step(self, actions: Any) -> Any:
        assert list(actions) == self.agents
        for agent, action in actions.items():
            indices = np.cumsum((0, *self.sizes))[:-1] + np.ravel(action)
            assert self.masks[agent][indices].all(), f"{action} of {agent} is forbidden"
        self.time += 1
        acting, over = self.agents, self.time == 5
        terminations = {agent: agent == "b" and self.time == 2 for agent in acting}
        self.agents = [agent for agent in acting if not over and not terminations[agent]]
        observations, infos = self.offer(acting)
        rewards = {agent: float(np.ravel(action)[0] == 0) for agent, action in actions.items()}
        return observations, rewards, terminations, dict.fromkeys(acting, over), infos

    def offer(self, agents: list[str]) -> Any:
        self.masks = {agent: self.draw(agent) for agent in agents}
        vectors = {agent: self.rng.normal(size=2).astype(np.float32) for agent in agents}
        if self.place == "observation":
            return {
                agent: {"observation": vectors[agent], "action_mask": self.masks[agent]} for agent in agents
            }, {agent: {} for agent in agents}
        is_info = self.place == "info"
        return vectors, {agent: {"action_mask": self.masks[agent]} if is_info else {} for agent in agents}

    def draw(self, agent: str) -> np.ndarray:
        parts = [self.rng.integers(2, size=size) for size in self.sizes]
        for part in parts:
            part[self.rng.integers(len(part))] = 1
        # An agent that does not act again has no allowed action, as in PettingZoo's classic games.
        return np.concatenate(parts).astype(np.int8) * (agent in self.agents)

    def get_state(self) -> Any:
        return copy.deepcopy((self.rng, self.time, self.masks, self.agents))

    def set_state(self, state: Any) -> None:
        self.rng, self.time, self.masks, self.agents = copy.deepcopy(state)


def make_teams(num_envs: int = 4, **options: Any) -> ParallelTeams:
    return ParallelTeams(lambda: MaskedTeam(**options), num_envs)


def build(teams: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    policy = TeamPolicyConfig(GRUConfig(dim=8), **options).build(Spaces.from_env(teams))
    actors: Any = policy.actors
    for head in (head for actor in actors for head in actor.heads):
        torch.nn.init.normal_(head.linear.weight, std=0.7)
    return policy


def get_masks(segment: Any) -> torch.Tensor:
    return segment.observations["action_mask"] > 0


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("place", PLACES)
def test_no_agent_takes_a_forbidden_action(place, actions, shared):
    teams = make_teams(place=place, actions=actions)
    policy = build(teams, shared=shared)
    segment = TeamSampler(teams, policy, 13, seed=1).collect()
    assert not segment.alive.all()
    log_probs = policy.distribution(segment).log_prob(segment.actions)
    assert torch.allclose(log_probs[segment.alive], segment.log_probs[segment.alive], atol=1e-5)
    assert (segment.log_probs[segment.alive] > -50).all()
    for agent in range(2):
        own = policy.distribution(segment, agent).log_prob(segment.actions[:, :, agent])
        assert torch.allclose(own, log_probs[:, :, agent], atol=1e-6)


def test_all_places_give_the_same_training():
    weights = []
    for place in PLACES:
        teams = make_teams(place=place)
        policy = build(teams)
        learner = GAMATRConfig(mode="clip", minibatches=2).build(policy, 3)
        sampler = TeamSampler(teams, policy, 8, seed=2)
        for _ in range(2):
            learner.update(sampler.collect())
        weights.append(policy.state_dict())
    for other in weights[1:]:
        assert all(torch.equal(*pair) for pair in zip(weights[0].values(), other.values(), strict=True))


@pytest.mark.one_in(2)
@pytest.mark.one_in(6, rest="slow")
@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_learns_from_allowed_actions(mode, actions):
    rule = MODES[mode]
    teams = make_teams(actions=actions)
    policy = build(teams, shared=rule.supports_shared and not rule.needs_joint, joint=rule.needs_joint)
    learner = GAMATRConfig(mode=mode, minibatches=2).build(policy, 3)
    sampler = TeamSampler(teams, policy, 12, seed=2)
    before = copy.deepcopy(policy)
    for _ in range(3):
        segment = sampler.collect()
        metrics = learner.update(segment)
        assert all(np.isfinite(value) for value in metrics.values())
    differences = [
        not torch.equal(*pair) for pair in zip(policy.parameters(), before.parameters(), strict=True)
    ]
    assert any(differences)
    old, new = before.distribution(segment), policy.distribution(segment)
    divergence = mean_kl(old.detach(), new.detach(), segment.alive.float())
    assert (divergence > 0).all()
    assert (divergence < 1).all()


@pytest.mark.parametrize("curvature", ["difference", "gauss_newton", "double_backward"])
def test_the_methods_of_fisher_products_agree_under_masks(curvature):
    teams = make_teams(actions="parts")
    policy = build(teams, shared=False).double()
    segment = TeamSampler(teams, build(teams, shared=False), 10, seed=2).collect()
    segment.observations = {
        key: leaf.double() if leaf.is_floating_point() else leaf for key, leaf in segment.observations.items()
    }
    segment.state = {key: value.double() for key, value in segment.state.items()}
    parameters = policy.actor_parameters(0)
    compute = lambda: policy.distribution(segment, 0)
    weights = segment.alive[:, :, 0].double()
    vector = torch.randn(
        len(flatten(parameters)), dtype=torch.double, generator=torch.Generator().manual_seed(0)
    )
    product = fisher_product(parameters, compute, compute(), weights, curvature)(vector)
    # The definition: the mean square of the derivative of log p along the vector, over the policy's actions.
    slope = derivative_along(parameters, lambda: compute().outputs(), vector)
    square = (compute().outputs().exp().detach() * slope.square()).sum(dim=-1)
    expected = float((square * weights).sum() / weights.sum())
    assert float(vector @ product) == pytest.approx(expected, rel=1e-4)


def test_a_best_response_keeps_the_masks():
    policy = build(make_teams())
    team = best_response(policy, 1, make_teams, GAMATRConfig(minibatches=2), 100, 8)
    assert team.action_masks
    assert separate(policy).spaces == policy.spaces


def test_a_resumed_sampler_goes_on_with_the_masks():
    teams, other = make_teams(), make_teams()
    policy = build(teams)
    sampler = TeamSampler(teams, policy, 7, seed=1)
    sampler.collect()
    state = copy.deepcopy(sampler.get_state())
    expected = sampler.collect()
    other_sampler = TeamSampler(other, policy, 7, seed=9)
    other_sampler.set_state(state)
    segment = other_sampler.collect()
    assert torch.equal(segment.actions, expected.actions)
    assert torch.equal(get_masks(segment), get_masks(expected))


class WrongTeam(MaskedTeam):
    """Team with an invalid mask of the first agent at one time."""

    bad: Any = None
    when = 0

    def offer(self, agents: list[str]) -> Any:
        observations, infos = super().offer(agents)
        if self.time == self.when and "a" in self.agents:
            if self.place == "observation":
                observations["a"]["action_mask"] = self.bad
            else:
                infos["a"] = {} if self.bad is None else {"action_mask": self.bad}
        return observations, infos


@pytest.mark.parametrize("when", [0, 3])
@pytest.mark.parametrize(
    ("place", "mask", "message"),
    [
        ("info", np.zeros(4), "allows no action"),
        ("observation", np.zeros(4), "allows no action"),
        ("info", np.array([1, 2, 0, 0]), "contains 2; return 4 booleans"),
        ("info", None, "is missing or NaN; return 4 booleans"),
    ],
)
def test_invalid_masks_are_refused(monkeypatch, place, mask, message, when):
    monkeypatch.setattr(WrongTeam, "bad", mask)
    monkeypatch.setattr(WrongTeam, "when", when)
    teams = ParallelTeams(lambda: WrongTeam(place), 2)
    spaces_of_team = Spaces(
        teams.single_observation_space, teams.single_action_space, 2, action_masks=place == "info"
    )
    policy = TeamPolicyConfig(GRUConfig(dim=8)).build(spaces_of_team)
    message = f"environment 0, step {when}: the action mask of agent 0 {message}"
    with pytest.raises(EnvFaultError, match=message):
        TeamSampler(teams, policy, 6, seed=0).collect()


def test_a_mask_of_the_wrong_shape_is_named_with_its_agent(monkeypatch):
    monkeypatch.setattr(WrongTeam, "bad", np.ones(3))
    teams = ParallelTeams(lambda: WrongTeam("info"), 2)
    with pytest.raises(TeamError, match=r"the action mask of 'a' is \[1. 1. 1.\]; return 4 booleans"):
        teams.reset(seed=0)


def test_a_policy_without_masks_refuses_a_team_with_masks():
    teams = make_teams()
    plain = Spaces(teams.single_observation_space, teams.single_action_space, 2)
    with pytest.raises(EnvFaultError, match="step 0: info has the key 'action_mask'"):
        TeamSampler(teams, TeamPolicyConfig(GRUConfig(dim=8)).build(plain), 6)


def test_act_needs_the_masks_of_living_agents():
    policy = build(make_teams())
    x, alive = np.zeros((2, 2), np.float32), np.array([True, False])
    with pytest.raises(ValueError, match="action_mask is missing"):
        policy.act(x, alive)
    mask = np.array([[0, 0, 1, 0], [0, 0, 0, 0]])
    assert policy.act(x, alive, action_mask=mask)[0][0] == 2
    with pytest.raises(EnvFaultError, match="of agent 1 allows no action"):
        policy.act(x, np.array([True, True]), action_mask=mask)
    batch = policy.act(x[None], alive[None], action_mask=mask[None])[0]
    assert batch[0, 0] == 2
