"""Memory & Planning against a plain-Python reference and the numbers of its docstring."""

from __future__ import annotations

import re

import gymnasium
import numpy as np
import pytest
from gymnasium.utils import seeding
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.envs.memory_planning import MemoryPlanning, MemoryPlanningVector

UP, DOWN, LEFT, RIGHT, COLLECT = range(5)
MOVES = {UP: (-1, 0), DOWN: (1, 0), LEFT: (0, -1), RIGHT: (0, 1), COLLECT: (0, 0)}
MASK = 2**64 - 1


class SlowGame:
    """Reference implementation with a dict of symbols; distances by breadth-first search."""

    def __init__(self, size, max_steps, seed):
        self.size, self.max_steps = size, max_steps
        self.word = int(seeding.np_random(seed)[0].integers(2**64, dtype=np.uint64))
        self.reset()

    def draw(self):
        self.word = word = (self.word + 0x9E3779B97F4A7C15) & MASK
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
        return word ^ (word >> 31)

    def below(self, high):
        return ((self.draw() >> 32) * high) >> 32

    def reset(self):
        places = [(row, column) for row in range(self.size) for column in range(self.size)]
        tickets = sorted((self.draw(), symbol) for symbol in range(len(places)))
        self.map = {place: symbol for place, (_, symbol) in zip(places, tickets, strict=True)}
        index = self.below(len(places))
        self.place, self.queue = places[index], []
        for _ in range(self.max_steps // 2 + 1):
            index = (index + 1 + self.below(len(places) - 1)) % len(places)
            self.queue.append(places[index])
        self.possible, cost, here = 0, 0, self.place
        for goal in self.queue:
            cost += self.steps_between(here, goal) + 1
            if cost > self.max_steps:
                break
            self.possible, here = self.possible + 1, goal
        self.time = self.num_collected = 0
        return self.look()

    def next_place(self, place, action):
        row, column = MOVES[action]
        return (place[0] + row) % self.size, (place[1] + column) % self.size

    def steps_between(self, start, goal):
        steps, places = 0, {start}
        while goal not in places:
            steps, places = steps + 1, {self.next_place(place, move) for place in places for move in MOVES}
        return steps

    def look(self):
        symbols = [0] * self.size**2, [0] * self.size**2
        symbols[0][self.map[self.place]] = symbols[1][self.map[self.queue[0]]] = 1
        return symbols[0] + symbols[1]

    def step(self, action):
        self.time += 1
        self.place = self.next_place(self.place, action)
        hit = action == COLLECT and self.place == self.queue[0]
        if hit:
            self.num_collected += 1
            self.queue.pop(0)
        last = self.time == self.max_steps
        return self.look(), float(hit), last, {"success": self.num_collected / self.possible} if last else {}


def split_symbols(observations):
    here, goal = np.split(observations, 2, axis=1)
    return here.argmax(axis=1), goal.argmax(axis=1)


def play(env, policy):
    """Run one episode per row with `policy(place symbols, goal symbols)`; return returns and successes."""
    observations, _ = env.reset(seed=0)
    returns = np.zeros(env.num_envs)
    for _ in range(env.max_steps - 1):
        observations, rewards, terminated, *_ = env.step(policy(*split_symbols(observations)))
        returns += rewards
        assert not terminated.any()
    _, rewards, terminated, _, infos = env.step(policy(*split_symbols(observations)))
    assert terminated.all()
    return returns + rewards, infos["success"]


def torus(size):
    """Return neighbours `[places, 4 moves]` and distances `[places, places]`, by repeated steps."""
    places = [(row, column) for row in range(size) for column in range(size)]
    following = np.array(
        [
            [(row + down) % size * size + (column + right) % size for down, right in list(MOVES.values())[:4]]
            for row, column in places
        ]
    )
    distance = np.where(np.eye(size**2, dtype=bool), 0, size**2)
    for _ in range(size):
        distance = np.minimum(distance, 1 + distance[following].min(axis=1))
    return following, distance


def map_reader(env):
    """Build a policy that knows the map from the start and takes shortest paths."""
    following, distance = torus(env.size)

    def policy(symbols, goals):
        here, goal = ((env.symbols == symbol[:, None]).argmax(axis=1) for symbol in (symbols, goals))
        nearest = distance[following[here], goal[:, None]].argmin(axis=1)
        return np.where(here == goal, COLLECT, nearest)

    return policy


def explorer(env):
    """Build a policy that draws its own map and explores only places it has not visited."""
    following, distance = torus(env.size)
    rows = np.arange(env.num_envs)
    here = np.zeros(env.num_envs, dtype=int)
    symbol_places = np.full((env.num_envs, env.num_places), -1)
    visited_places = np.zeros((env.num_envs, env.num_places), dtype=bool)

    def policy(symbols, goals):
        symbol_places[rows, symbols] = here
        visited_places[rows, here] = True
        nearest = np.where(visited_places, env.num_places, distance[here]).argmin(axis=1)
        target = np.where(symbol_places[rows, goals] >= 0, symbol_places[rows, goals], nearest)
        ways = following[here]
        costs = distance[ways, target[:, None]] + 0.5 * visited_places[rows[:, None], ways]
        actions = np.where(target == here, COLLECT, costs.argmin(axis=1))
        here[:] = np.where(actions == COLLECT, here, ways[rows, actions % 4])
        return actions

    return policy


def walker(env, chances):
    """Build a policy without memory: collect where both symbols agree, else move by `chances`."""
    rng = np.random.default_rng(0)
    return lambda here, goal: np.where(here == goal, COLLECT, rng.choice(4, env.num_envs, p=chances))


def blind(env):
    """Build a random policy."""
    rng = np.random.default_rng(0)
    return lambda here, goal: rng.integers(5, size=env.num_envs)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), size=st.integers(2, 6), seed=st.integers(0, 2**63))
def test_equals_the_slow_reference(data, size, seed):
    max_steps = data.draw(st.integers(2 * (size // 2) + 1, 40))
    env, slow = MemoryPlanning(size, max_steps), SlowGame(size, max_steps, seed)
    assert env.reset(seed=seed)[0].tolist() == slow.look()
    rng = np.random.default_rng(seed)
    for _ in range(90):
        collects = slow.place == slow.queue[0] and rng.random() < 0.8
        action = COLLECT if collects else rng.integers(5)
        observation, reward, terminated, truncated, info = env.step(action)
        assert (observation.tolist(), reward, terminated, info) == slow.step(action)
        assert not truncated
        if terminated:
            assert env.reset()[0].tolist() == slow.reset()


@pytest.mark.parametrize(("size", "max_steps"), [(2, 3), (3, 50), (4, 100), (5, 60)])
def test_knowing_the_map_is_success_one_and_no_episode_gives_more(size, max_steps):
    env = MemoryPlanningVector(300, size, max_steps, autoreset_mode="Disabled")
    returns, success = play(env, map_reader(env))
    assert (success == 1.0).all()
    assert returns.tolist() == env.possible.tolist()
    assert (play(env, explorer(env))[1] <= 1.0).all()


def read_score_table():
    """Return the numbers of the docstring as {player: [(return, success) for each setting]}."""
    numbers = r"((?: +[0-9]+[.][0-9]+){6})"
    players = ("knows the map", "with memory", "without memory", "random actions")
    table = {}
    for player in players:
        match = re.search(rf"^ +{player}{numbers}$", MemoryPlanning.__doc__ or "", re.MULTILINE)
        scores = np.array(match[1].split(), dtype=float) if match else np.empty(0)
        table[player] = scores.reshape(3, 2)
    return table


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("setting", "size", "max_steps"), [(0, 4, 100), (1, 3, 50), (2, 2, 20)])
@pytest.mark.parametrize(
    ("player", "make_policy"),
    [
        ("knows the map", map_reader),
        ("with memory", explorer),
        ("without memory", lambda env: walker(env, (0, 0.5, 0.5, 0))),
        ("random actions", blind),
    ],
)
def test_scores_of_the_spec_sheet(player, make_policy, setting, size, max_steps):
    env = MemoryPlanningVector(4000, size, max_steps, autoreset_mode="Disabled")
    scores = read_score_table()[player][setting]
    for sample, score, rounding in zip(play(env, make_policy(env)), scores, (0.05, 0.005), strict=True):
        assert abs(sample.mean() - score) <= rounding + 4 * sample.std() / np.sqrt(sample.size)


def test_the_walk_of_the_spec_sheet_beats_other_walks():
    """Solve for mean hitting times of one place from all others, for all mixes in steps of a tenth."""
    following, _ = torus(4)
    mixes = np.array([mix for mix in np.ndindex(11, 11, 11, 11) if sum(mix) == 10]) / 10
    step = np.zeros((4, 16, 16))
    for move in range(4):
        step[move, np.arange(16), following[:, move]] = 1
    stays = np.eye(15) - np.tensordot(mixes, step[:, 1:, 1:], axes=1)
    # Walks along one line never find most places.
    stays, mixes = (values[np.abs(np.linalg.det(stays)) > 1e-9] for values in (stays, mixes))
    times = np.linalg.solve(stays, np.ones((len(stays), 15, 1))).mean(axis=(1, 2))
    best = np.isclose(times, times.min())
    assert [0.0, 0.5, 0.5, 0.0] in mixes[best].tolist()


@pytest.mark.parametrize("size", [2, 4])
def test_maps_starts_and_goals_are_uniform(size):
    env = MemoryPlanningVector(20_000, size, 20)
    env.reset(seed=3)
    rows, places = np.arange(env.num_envs), size**2
    assert (np.sort(env.symbols, axis=1) == np.arange(places)).all()
    hops = [(env.goals[:, 0] - env.place) % places, (env.goals[:, 5] - env.goals[:, 4]) % places]
    for sample, choices in (
        (env.symbols[:, 0], range(places)),
        (env.symbols[rows, env.place], range(places)),
        (env.place, range(places)),
        (env.place * places + env.symbols[:, 1], range(places**2)),
        (env.goals[:, 3], range(places)),
        *((hop, range(1, places)) for hop in hops),
        (hops[0] * places + hops[1], [a * places + b for a in range(1, places) for b in range(1, places)]),
    ):
        counts = np.bincount(sample, minlength=places**2)
        expected = env.num_envs / len(choices)
        assert counts.sum() == counts[list(choices)].sum()
        assert np.abs(counts[list(choices)] - expected).max() < 5 * np.sqrt(expected)


def test_collecting_elsewhere_does_nothing():
    env = MemoryPlanningVector(50, 4, 100)
    first, _ = env.reset(seed=0)
    for _ in range(20):
        observations, rewards, *_ = env.step(np.full(50, COLLECT))
        np.testing.assert_array_equal(observations, first)
        assert not rewards.any()


@pytest.mark.parametrize("size", [1, 17, 4.0, "4", True])
def test_impossible_sizes_are_refused_by_name(size):
    with pytest.raises(ValueError, match=f"size={size!r}: expected an integer from 2 to 16"):
        gymnasium.make("scrubjay.envs:scrubjay/MemoryPlanning-v0", size=size)


@pytest.mark.parametrize("max_steps", [0, 4, 10_001, 50.0, None])
def test_impossible_horizons_are_refused_by_name(max_steps):
    with pytest.raises(ValueError, match=f"max_steps={max_steps!r}: expected an integer from 5 to 10000"):
        MemoryPlanning(max_steps=max_steps)
