from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv

from scrubjay.envs.teams import ParallelTeams


class Odd(ParallelEnv):
    """Nested observations, actions of several parts; agents come, go unannounced, and are cut off alone."""

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
        self.of_y = spaces_of_y or self.own
        self.closed = False

    def observation_space(self, agent: str) -> spaces.Space:
        return (self.of_y if agent == "y" else self.own)[0]

    def action_space(self, agent: str) -> spaces.Space:
        return (self.of_y if agent == "y" else self.own)[1]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.seed, self.time, self.agents = seed, 0, ["x"]
        return self._observe(["x"]), {}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        self.time += 1
        acting = list(actions)
        assert acting == self.agents
        # x alone; y comes at 1, leaves unannounced at 2, comes at 3, is cut off alone at 4; x is cut off at
        # 5.
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
        self.closed = True


def test_who_is_there_and_what_they_see() -> None:
    made = [Odd(), Odd()]
    env = ParallelTeams(iter(made).__next__, 2)
    observations, alive = env.reset(seed=7)
    assert [one.seed for one in made] == [7, 8]
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
        assert step.truncated.tolist() == step.ended.tolist() == [truncated] * 2
        now = 0 if truncated else time
        seen = [[now, 120], [now, 121] if following[1] else [0, 0]]
        assert step.observations["far/at"].tolist() == [seen] * 2
        assert step.observations["pair/1"][0, 0].tolist() == [0, 1]
        assert len(step.final_alive) == len(step.final_observations["kind"]) == 2 * truncated
    assert [one.seed for one in made] == [None, None]
    assert step.final_observations["far/at"].tolist() == [[[5, 120], [0, 0]]] * 2
    assert step.final_alive.tolist() == [x_alone] * 2
    kept = step.observations["far/at"].copy()
    env.step(actions)
    assert np.array_equal(step.observations["far/at"], kept)
    assert not hasattr(env, "get_state")
    env.close()
    assert all(one.closed for one in made)


def test_simple_spread_is_stepped_as_by_hand() -> None:
    simple_spread_v3 = pytest.importorskip("mpe2.simple_spread_v3")

    def make() -> ParallelEnv:
        return simple_spread_v3.parallel_env(N=3, max_cycles=4)

    env, singles = ParallelTeams(make, 2), [make(), make()]
    observations, alive = env.reset(seed=3)
    assert alive.all()
    generator = np.random.default_rng(0)
    by_hand = [single.reset(seed=3 + row)[0] for row, single in enumerate(singles)]
    for t in range(9):
        for row, seen in enumerate(by_hand):
            assert np.array_equal(
                observations[""][row], np.stack([seen[name] for name in env.possible_agents])
            )
        actions = generator.integers(5, size=(2, 3))
        step = env.step(actions)
        observations = step.observations
        for row, single in enumerate(singles):
            chosen = dict(zip(env.possible_agents, actions[row].tolist(), strict=True))
            seen, rewards, _, truncations, _ = single.step(chosen)
            assert step.rewards[row].tolist() == [rewards[name] for name in env.possible_agents]
            assert step.truncated[row] == step.ended[row] == all(truncations.values()) == (t % 4 == 3)
            if step.ended[row]:
                final = np.stack([seen[name] for name in env.possible_agents])
                assert np.array_equal(step.final_observations[""][row], final)
                seen, _ = single.reset()
            by_hand[row] = seen


def test_agents_that_differ_are_named() -> None:
    other = spaces.Box(-1, 1, (3,), np.float32)
    with pytest.raises(ValueError, match=r"action_space of 'y' is Box.*alike"):
        ParallelTeams(lambda: Odd((Odd().own[0], other)), 1)
    with pytest.raises(ValueError, match=r"observation_space of 'y' is Box.*alike"):
        ParallelTeams(lambda: Odd((other, Odd().own[1])), 1)
    with pytest.raises(ValueError, match="num_envs=0"):
        ParallelTeams(Odd, 0)


class Silent(Odd):
    """Tells nothing of x, who dies in the only step, but what y sees, who is cut off there."""

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed, options)
        self.agents = ["x", "y"]
        return self._observe(self.agents), {}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        self.agents, over = [], dict.fromkeys(actions, True)
        self.time = 3
        return self._observe(["y"]), dict.fromkeys(actions, 1.0), over | {"y": False}, over | {"x": False}, {}


def test_of_who_died_in_the_last_step_nothing_need_be_seen() -> None:
    env = ParallelTeams(Silent, 1)
    env.reset(seed=1)
    step = env.step(np.zeros((1, 2, 2), dtype=np.float32))
    assert step.ended.tolist() == step.truncated.tolist() == [True]
    assert step.terminated.tolist() == [[True, False]]
    assert step.final_alive.tolist() == [[False, True]]
    assert step.final_observations["far/at"].tolist() == [[[0, 0], [3, 121]]]
