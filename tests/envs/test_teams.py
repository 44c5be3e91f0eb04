from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv

from scrubjay.envs.teams import ParallelTeams, TeamError


class ChangingTeam(ParallelEnv):
    """Environment with nested observations whose agents appear, leave unannounced and are truncated alone."""

    metadata = {"name": "odd"}
    possible_agents = ["x", "y"]

    def __init__(self, spaces_of_y: tuple[spaces.Space, spaces.Space] | None = None) -> None:
        self.own = (
            spaces.Dict(
                {
                    "far": spaces.Dict({"at": spaces.Box(-9, 9, (2,), np.float32)}),
                    "kind": spaces.Discrete(4, start=3),
                    "pair": spaces.Tuple((spaces.MultiBinary(2), spaces.MultiDiscrete([2, 2]))),
                }
            ),
            spaces.Box(-1, 1, (2,), np.float32),
        )
        self.spaces_of_y = spaces_of_y or self.own
        self.is_closed = False

    def observation_space(self, agent: str) -> spaces.Space:
        return (self.spaces_of_y if agent == "y" else self.own)[0]

    def action_space(self, agent: str) -> spaces.Space:
        return (self.spaces_of_y if agent == "y" else self.own)[1]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.seed, self.time, self.agents = seed, 0, ["x"]
        return self._observe(["x"]), {}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        self.time += 1
        acting = list(actions)
        assert acting == self.agents
        # y appears at 1, leaves unannounced at 2, appears at 3, is truncated alone at 4; x is truncated at 5.
        self.agents = {1: ["x", "y"], 2: ["x"], 3: ["x", "y"], 4: ["x"], 5: []}[self.time]
        truncations = {name: (name == "y" and self.time == 4) or self.time == 5 for name in acting}
        rewards = {name: float(actions[name].sum()) for name in acting}
        terminations = dict.fromkeys(acting, False)
        return self._observe({*acting, *self.agents}), rewards, terminations, truncations, {}

    def _observe(self, agents: Any) -> dict[str, Any]:
        return {
            name: {
                "far": {"at": np.array([self.time, ord(name)], np.float32)},
                "kind": 3 + self.time % 4,
                "pair": (np.array([1, 0], np.int8), np.array([0, 1])),
            }
            for name in agents
        }

    def close(self) -> None:
        self.is_closed = True


def test_alive_masks_and_observations_follow_the_agents() -> None:
    envs = [ChangingTeam(), ChangingTeam()]
    env = ParallelTeams(iter(envs).__next__, 2)
    observations, alive = env.reset(seed=7)
    assert [one.seed for one in envs] == [7, 8]
    assert observations.keys() == {"far/at", "kind", "pair/0", "pair/1"}
    assert observations["far/at"].tolist() == [[[0, 120], [0, 0]]] * 2
    assert observations["kind"].tolist() == [[3, 3]] * 2
    assert alive.tolist() == [[True, False]] * 2
    both, x_alone, nobody = [True, True], [True, False], [False, False]
    expected = [  # alive afterwards, terminated, truncated
        (both, nobody, False),
        (x_alone, [False, True], False),
        (both, nobody, False),
        (x_alone, [False, True], False),
        (x_alone, nobody, True),
    ]
    actions = np.array([[[0.25, 0.25], [0.5, 0.5]]] * 2, dtype=np.float32)
    for time, (following, terminated, truncated) in enumerate(expected, start=1):
        acting = alive
        step = env.step(actions)
        alive = step.alive
        assert step.rewards.tolist() == (acting * [0.5, 1.0]).tolist()
        assert step.alive.tolist() == [following] * 2
        assert step.terminated.tolist() == [terminated] * 2
        assert step.truncated.tolist() == step.dones.tolist() == [truncated] * 2
        now = 0 if truncated else time
        expected_obs = [[now, 120], [now, 121] if following[1] else [0, 0]]
        assert step.observations["far/at"].tolist() == [expected_obs] * 2
        assert step.observations["pair/1"][0, 0].tolist() == [0, 1]
        assert len(step.final_alive) == len(step.final_observations["kind"]) == 2 * truncated
    assert [one.seed for one in envs] == [None, None]
    assert step.final_observations["far/at"].tolist() == [[[5, 120], [0, 0]]] * 2
    assert step.final_alive.tolist() == [x_alone] * 2
    previous_obs = step.observations["far/at"].copy()
    env.step(actions)
    assert np.array_equal(step.observations["far/at"], previous_obs)
    assert not hasattr(env, "get_state")
    env.close()
    assert all(one.is_closed for one in envs)


@pytest.mark.requires("mpe2")
def test_simple_spread_equals_separate_environments() -> None:
    from mpe2 import simple_spread_v3

    def make() -> ParallelEnv:
        return simple_spread_v3.parallel_env(N=3, max_cycles=4)

    env, singles = ParallelTeams(make, 2), [make(), make()]
    observations, alive = env.reset(seed=3)
    assert alive.all()
    generator = np.random.default_rng(0)
    by_hand = [single.reset(seed=3 + row)[0] for row, single in enumerate(singles)]
    for t in range(9):
        for row, obs in enumerate(by_hand):
            assert np.array_equal(
                observations[""][row], np.stack([obs[name] for name in env.possible_agents])
            )
        actions = generator.integers(5, size=(2, 3))
        step = env.step(actions)
        observations = step.observations
        for row, single in enumerate(singles):
            row_actions = dict(zip(env.possible_agents, actions[row].tolist(), strict=True))
            obs, rewards, _, truncations, _ = single.step(row_actions)
            assert step.rewards[row].tolist() == [rewards[name] for name in env.possible_agents]
            assert step.truncated[row] == step.dones[row] == all(truncations.values()) == (t % 4 == 3)
            if step.dones[row]:
                final = np.stack([obs[name] for name in env.possible_agents])
                assert np.array_equal(step.final_observations[""][row], final)
                obs, _ = single.reset()
            by_hand[row] = obs


def test_agents_with_different_spaces_are_refused() -> None:
    other = spaces.Box(-1, 1, (3,), np.float32)
    with pytest.raises(ValueError, match=r"action_space of 'y' is Box.*equal spaces"):
        ParallelTeams(lambda: ChangingTeam((ChangingTeam().own[0], other)), 1)
    with pytest.raises(ValueError, match=r"observation_space of 'y' is Box.*equal spaces"):
        ParallelTeams(lambda: ChangingTeam((other, ChangingTeam().own[1])), 1)
    with pytest.raises(ValueError, match="num_envs=0"):
        ParallelTeams(ChangingTeam, 0)


class SilentTeam(ChangingTeam):
    """Environment that omits the observation of x, which terminates in the only step; y is truncated."""

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed, options)
        self.agents = ["x", "y"]
        return self._observe(self.agents), {}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        self.agents, over = [], dict.fromkeys(actions, True)
        self.time = 3
        return self._observe(["y"]), dict.fromkeys(actions, 1.0), over | {"y": False}, over | {"x": False}, {}


def test_a_terminated_agent_needs_no_last_observation() -> None:
    env = ParallelTeams(SilentTeam, 1)
    env.reset(seed=1)
    step = env.step(np.zeros((1, 2, 2), dtype=np.float32))
    assert step.dones.tolist() == step.truncated.tolist() == [True]
    assert step.terminated.tolist() == [[True, False]]
    assert step.final_alive.tolist() == [[False, True]]
    assert step.final_observations["far/at"].tolist() == [[[0, 0], [3, 121]]]


class MaskedTeam(ChangingTeam):
    """Team with an action mask in the infos of one agent, from step `when` on."""

    when = 0

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Discrete(3)

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        return super().reset(seed)[0], self._offer()

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        actions = {name: np.full(2, action) for name, action in actions.items()}
        return *super().step(actions)[:4], self._offer()

    def _offer(self) -> dict[str, Any]:
        return {"x": {"action_mask": np.array([0, self.time, 1])}} if self.time >= self.when else {"x": {}}


@pytest.mark.parametrize("when", [0, 1])
def test_masks_of_infos_stand_beside_the_observations(monkeypatch, when):
    monkeypatch.setattr(MaskedTeam, "when", when)
    teams = ParallelTeams(MaskedTeam, 2)
    observations, alive = teams.reset(seed=0)
    assert ("action_mask" in observations) == (when == 0)
    assert alive.tolist() == [[True, False]] * 2
    if not when:  # an agent that does not act may do anything
        assert observations["action_mask"].tolist() == [[[0, 0, 1], [1, 1, 1]]] * 2
    step = teams.step(np.zeros((2, 2), np.int64))
    expected = np.array([[[0, 1, 1], [np.nan] * 3]] * 2)  # the mask of the second agent is missing
    assert step.alive.all()
    np.testing.assert_array_equal(step.observations["action_mask"], expected)
    assert "action_mask" not in step.final_observations


def test_masks_need_a_finite_number_of_actions(monkeypatch):
    monkeypatch.setattr(MaskedTeam, "action_space", ChangingTeam.action_space)
    with pytest.raises(
        TeamError, match=r"action masks of the action space Box.* are not supported; use Discrete"
    ):
        ParallelTeams(MaskedTeam, 2).reset(seed=0)
