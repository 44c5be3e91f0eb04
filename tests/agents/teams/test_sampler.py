from __future__ import annotations

import itertools
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv

from scrubjay.agents import TeamEpisodeStats, TeamPolicy, TeamPolicyConfig, TeamSampler, TeamSegment
from scrubjay.agents.rl.observations import EnvFaultError
from scrubjay.envs.teams import ParallelTeams
from scrubjay.memory import make_config

SCRIPT: tuple[tuple[int, str, dict[str, int]], ...] = (
    (3, "terminated", {}),
    (4, "truncated", {"b": 2}),
    (2, "truncated", {}),
    (5, "terminated", {"a": 1, "c": 3}),
    (4, "mixed", {"b": 1}),
)
"""Length and end of successive episodes, and the step after which an agent leaves. "mixed": a terminates,
c is truncated."""


class ScriptedTeam(ParallelEnv):
    """Team whose episodes follow SCRIPT from the entry `row` on; all outputs are deterministic."""

    metadata = {"name": "scripted"}
    possible_agents = ["a", "b", "c"]

    def __init__(self, row: int) -> None:
        self.row, self.episode, self.time = row, -1, 0
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> spaces.Space:
        return spaces.Box(-np.inf, np.inf, (4,), np.float32)

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Discrete(3)

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.episode += 1
        self.time = 0
        self.agents = list(self.possible_agents)
        return self._observe(self.agents, dict.fromkeys(self.agents, 0)), {}

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        assert set(actions) == set(self.agents)
        length, end, leaves = SCRIPT[(self.row + self.episode) % len(SCRIPT)]
        self.time += 1
        acting, over = self.agents, self.time == length
        rewards = {
            name: 0.1 * self.row + self.time + 0.5 * action + ord(name) for name, action in actions.items()
        }
        terminations = {
            name: leaves.get(name) == self.time
            or (over and (end == "terminated" or (end == "mixed" and name == "a")))
            for name in acting
        }
        truncations = {name: over and not terminations[name] for name in acting}
        self.agents = [name for name in acting if not (terminations[name] or truncations[name])]
        return self._observe(acting, actions), rewards, terminations, truncations, {}

    def _observe(self, agents: list[str], actions: dict[str, int]) -> dict[str, np.ndarray]:
        return {
            name: np.array(
                [np.cos(self.episode + self.row), self.time / 5, actions[name], ord(name) - 98],
                dtype=np.float32,
            )
            for name in agents
        }


class Restorable(ScriptedTeam):
    def get_state(self) -> dict[str, Any]:
        return {"episode": self.episode, "time": self.time, "agents": list(self.agents)}

    def set_state(self, state: dict[str, Any]) -> None:
        self.episode, self.time, self.agents = state["episode"], state["time"], list(state["agents"])


def teams(rows: int, kind: type[ScriptedTeam] = Restorable) -> Any:
    count = itertools.count()
    return ParallelTeams(lambda: kind(next(count)), rows)


def make_policy(memory: str = "gru", **config: Any) -> TeamPolicy:
    torch.manual_seed(0)
    one = ScriptedTeam(0)
    settings = {"graph_rounds": 1, "graph_heads": 2, **config}
    policy = TeamPolicy(
        one.observation_space("a"),
        one.action_space("a"),
        3,
        TeamPolicyConfig(make_config(memory, dim=8), **settings),
    )
    for name, parameter in policy.named_parameters():
        if ".heads." in name:
            torch.nn.init.normal_(parameter, std=0.7)
    return policy


def tensors(segment: TeamSegment) -> dict[str, torch.Tensor]:
    fields_by_name = {}
    for field in fields(segment):
        value = getattr(segment, field.name)
        fields_by_name |= value if isinstance(value, dict) else {field.name: value}
    return fields_by_name


def assert_same(one: TeamSegment, other: TeamSegment) -> None:
    left, right = tensors(one), tensors(other)
    assert all(torch.equal(left[key], right[key]) for key in left | right)


class TeamWithNaN(Restorable):
    def _observe(self, agents: list[str], actions: dict[str, int]) -> dict[str, np.ndarray]:
        observations = super()._observe(agents, actions)
        return {name: np.where(self.time == 2, np.nan, value) for name, value in observations.items()}


def test_what_is_no_number_is_told_before_it_is_learned_from() -> None:
    sampler = TeamSampler(teams(2, TeamWithNaN), make_policy(), 9, seed=3)
    with pytest.raises(EnvFaultError, match="contains nan; observations must be finite"):
        sampler.collect()


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize("memory", ["gru", "none"])
@pytest.mark.parametrize("config", [{}, {"shared": False, "critic": "pooled"}], ids=["shared", "separate"])
def test_bookkeeping_agrees_with_a_loop_over_single_teams(memory: str, config: dict[str, Any]) -> None:
    """Two segments equal a replay of their actions by a loop with one memory state per environment."""
    rows, length = 5, 9
    policy = make_policy(memory, **config)
    sampler = TeamSampler(teams(rows), policy, length, seed=3)
    segments = [sampler.collect(), sampler.collect()]
    finished_episodes: list[tuple[int, int, float, int, tuple[float, ...]]] = []
    names = ScriptedTeam.possible_agents
    seen_ends = set()
    for b in range(rows):
        env = ScriptedTeam(b)

        def arrays(
            agent_observations: dict[str, np.ndarray], agents: list[str]
        ) -> tuple[torch.Tensor, torch.Tensor]:
            observations_by_agent = np.stack(
                [agent_observations.get(name, np.zeros(4, np.float32)) for name in names]
            )
            return torch.as_tensor(observations_by_agent)[None], torch.tensor(
                [[name in agents for name in names]]
            )

        agent_observations, _ = env.reset()
        state, start, returns, steps = policy.initial_state(1), True, np.zeros(3), 0
        for number, segment in enumerate(segments):
            for key, value in state.items():
                torch.testing.assert_close(segment.state[key][b : b + 1], value)
            assert isinstance(segment.observations, torch.Tensor)
            for t in range(length):
                at = (b, t)
                acting = list(env.agents)
                observation, alive = arrays(agent_observations, acting)
                assert torch.equal(segment.alive[at], alive[0])
                assert torch.equal(segment.observations[at][alive[0]], observation[0][alive[0]])
                assert segment.starts[at] == start
                if start:
                    state = policy.initial_state(1)
                values = policy.value(observation, alive, state)[0]
                torch.testing.assert_close(segment.values[at][alive[0]], values[alive[0]])
                state = policy.step(observation, alive, state).state
                actions = {name: int(segment.actions[at][names.index(name)]) for name in acting}
                agent_observations, rewards, terminations, truncations, _ = env.step(actions)
                expected = np.array([rewards.get(name, 0.0) for name in names])
                np.testing.assert_allclose(segment.rewards[at], expected, rtol=1e-6)
                assert segment.terminated[at].tolist() == [terminations.get(name, False) for name in names]
                cut = [name for name in acting if truncations[name]]
                assert bool(segment.truncated[at]) == bool(cut)
                observation, alive = arrays(agent_observations, cut)
                bootstrap = policy.value(observation, alive, state)[0] * alive[0]
                torch.testing.assert_close(segment.bootstrap_values[at], bootstrap)
                returns, steps = returns + expected, steps + 1
                start = not env.agents
                if start:
                    seen_ends.add((len(acting), len(cut)))
                    finished_episodes.append((number * length + t, b, returns.sum(), steps, tuple(returns)))
                    agent_observations, _ = env.reset()
                    returns, steps = np.zeros(3), 0
            observation, alive = arrays(agent_observations, env.agents)
            following = policy.initial_state(1) if start else state
            last = policy.value(observation, alive, following)[0]
            torch.testing.assert_close(segment.last_values[b][alive[0]], last[alive[0]])
    assert seen_ends >= {(3, 0), (2, 2), (3, 3), (1, 0), (2, 1)}
    popped_episodes = sampler.pop_episodes()
    for episode, (_, _, total, steps, returns) in zip(
        popped_episodes, sorted(finished_episodes), strict=True
    ):
        assert (episode.episode_return, episode.length) == (pytest.approx(total), steps)
        assert episode.returns == pytest.approx(returns)
    assert sampler.pop_episodes() == []


@pytest.mark.parametrize("memory", ["none", "gru", "hcam", "titans"])
def test_what_was_sampled_is_what_the_learner_computes(memory: str) -> None:
    policy = make_policy(memory, shared=False)
    sampler = TeamSampler(teams(4), policy, 11)
    for _ in range(2):
        segment = sampler.collect()
        alive = segment.alive
        log_probs = policy.distribution(segment).log_prob(segment.actions)
        torch.testing.assert_close(log_probs[alive], segment.log_probs[alive], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(policy.values(segment)[alive], segment.values[alive], atol=1e-5, rtol=1e-5)


def test_goes_on_exactly_where_it_was() -> None:
    policy = make_policy()
    sampler = TeamSampler(teams(3), policy, 7, seed=1)
    sampler.collect()
    assert sampler.restores_env
    state = sampler.get_state()
    expected = [sampler.collect(), sampler.collect()]
    episodes = sampler.pop_episodes()
    other = TeamSampler(teams(3), policy, 7, seed=2)
    other.collect()
    other.set_state(state)
    for segment in expected:
        assert_same(segment, other.collect())
    assert other.pop_episodes() == episodes


def test_without_snapshots_new_episodes_begin() -> None:
    policy = make_policy()
    sampler = TeamSampler(teams(3, ScriptedTeam), policy, 4)
    sampler.collect()
    assert not sampler.restores_env
    sampler.set_state(sampler.get_state())
    assert sampler.collect().starts[:, 0].all()


def test_restarting_repeats_everything() -> None:
    policy = make_policy()
    sampler = TeamSampler(teams(3), policy, 8, seed=5)
    first = sampler.collect()
    for env in sampler.env.envs:  # pyright: ignore[reportAttributeAccessIssue]
        env.episode = -1
    sampler.restart(5)
    assert_same(first, sampler.collect())


class TeamsWithMetrics(ParallelTeams):
    """Teams with infos: the number of agents alive after each step, and success at truncation."""

    def step(self, actions: np.ndarray) -> Any:
        step = super().step(actions)
        return step._replace(
            infos={"living": step.alive.sum(1).astype(float), "success": step.truncated.astype(float)}
        )


def test_measures_are_means_over_episodes() -> None:
    env: Any = TeamsWithMetrics(lambda: Restorable(1), 1)
    sampler = TeamSampler(env, make_policy(), 5)
    sampler.collect()
    state = sampler.get_state()
    sampler.set_state(state)
    (episode,) = sampler.pop_episodes()
    # Alive after the four steps: all, without b, without b, and all of the next episode.
    assert isinstance(episode, TeamEpisodeStats)
    assert episode.measures["living"] == pytest.approx((3 + 2 + 2 + 3) / 4)
    assert episode.success == 1.0
    sampler.collect()
    assert [one.measures["living"] for one in sampler.pop_episodes()] == [3.0]


def test_impossible_settings_are_named() -> None:
    with pytest.raises(ValueError, match="segment_length=0"):
        TeamSampler(teams(1), make_policy(), 0)
    one = ScriptedTeam(0)
    four = TeamPolicy(one.observation_space("a"), one.action_space("a"), 4)
    with pytest.raises(ValueError, match="num_agents=4; the environment has 3 agents"):
        TeamSampler(teams(1), four, 3)
    with pytest.raises(ValueError, match="has 2 environments; this sampler has 3"):
        TeamSampler(teams(3), make_policy(), 3).set_state(TeamSampler(teams(2), make_policy(), 3).get_state())
