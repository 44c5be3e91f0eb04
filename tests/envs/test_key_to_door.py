"""Key to Door against a plain-Python reference and the closed forms of its docstring."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils import seeding
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.envs.key_to_door import KeyToDoor, KeyToDoorVector

UP, DOWN, LEFT, RIGHT = range(4)
STEPS = {UP: (-1, 0), DOWN: (1, 0), LEFT: (0, -1), RIGHT: (0, 1)}
DOOR_COLUMNS = {
    1: [2],
    2: [0, 4],
    3: [0, 2, 4],
    4: [0, 1, 3, 4],
    5: [0, 1, 2, 3, 4],
    7: [0, 1, 2, 3, 4, 5, 6],
}
MASK = 2**64 - 1


class SlowRoom:
    """Reference implementation for one room with (row, column) pairs."""

    def __init__(self, colours, explore, distract, apple_reward, shuffle, seed):
        self.colours, self.apple_reward, self.shuffle = colours, apple_reward, shuffle
        self.explore, self.distract = explore, distract
        self.side = max(5, colours)
        self.word = int(seeding.np_random(seed)[0].integers(2**64, dtype=np.uint64))
        self.reset()

    def draw(self):
        self.word = word = (self.word + 0x9E3779B97F4A7C15) & MASK
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
        return word ^ (word >> 31)

    def below(self, high):
        return ((self.draw() >> 32) * high) >> 32

    def other_cell(self, cell):
        index = (cell[0] * self.side + cell[1] + 1 + self.below(self.side**2 - 1)) % self.side**2
        return divmod(index, self.side)

    def reset(self):
        self.colour = self.below(self.colours)
        self.worth = self.apple_reward if self.below(2) else 0.1 * self.apple_reward
        tickets = sorted((self.draw() if self.shuffle else 0, slot) for slot in range(self.colours))
        self.doors = {
            colour: (-1, DOOR_COLUMNS[self.colours][slot]) for colour, (_, slot) in enumerate(tickets)
        }
        self.middle = (self.side // 2, self.side // 2)
        self.key = self.other_cell(self.middle)
        self.apples = [self.other_cell(self.middle)]
        for _ in range(self.distract):
            self.apples.append(self.other_cell(self.apples[-1]))
        self.agent, self.time, self.has_key, self.num_eaten = self.middle, 0, False, 0
        return self.look()

    def phase(self):
        if self.time < self.explore:
            return "explore"
        return "distract" if self.time < self.explore + self.distract else "use"

    def look(self):
        phase = self.phase()
        things = {}
        if phase == "explore" and not self.has_key:
            things[self.colour] = self.key
        elif phase == "distract":
            things[self.colours] = self.apples[self.num_eaten]
        elif phase == "use":
            things = self.doors
        observation = [float(phase == name) for name in ("explore", "distract", "use")]
        for index in range(self.colours + 1):
            if index in things:
                offsets = (things[index][axis] - self.agent[axis] for axis in (0, 1))
                observation += [1.0, *(offset / self.side for offset in offsets)]
            else:
                observation += [0.0, 0.0, 0.0]
        return observation

    def step(self, action):
        phase, reward, door_colour = self.phase(), 0.0, None
        down, right = STEPS[action]
        target = (self.agent[0] + down, self.agent[1] + right)
        if phase == "use" and target in self.doors.values():
            self.agent = target
            door_colour = next(colour for colour, place in self.doors.items() if place == target)
        elif 0 <= target[0] < self.side and 0 <= target[1] < self.side:
            self.agent = target
        self.time += 1
        if phase == "explore" and self.agent == self.key:
            self.has_key = True
        if phase == "distract" and self.agent == self.apples[self.num_eaten]:
            self.num_eaten += 1
            reward += self.worth
        success = float(door_colour == self.colour and self.has_key)
        last = door_colour is not None or self.time == self.explore + self.distract + 15
        if self.time in (self.explore, self.explore + self.distract):
            self.agent = self.middle
        info = {
            "key": float(self.has_key),
            "apples": self.num_eaten,
            "reached": float(door_colour is not None),
        }
        return self.look(), reward + success, last, info | {"success": success} if last else {}


def split_triples(observations):
    """Split observations into the phase `[rows]` and the objects `[rows, colours + 1, 3]`, apple last."""
    triples = observations.reshape(len(observations), -1, 3)
    return triples[:, 0].argmax(axis=1), triples[:, 1:]


def toward(offsets):
    """Return actions that walk to `offsets [rows, 2]`, sideways first, so that no other door is entered."""
    down, right = offsets.T
    return np.where(right > 0, RIGHT, np.where(right < 0, LEFT, np.where(down < 0, UP, DOWN)))


def player(env, choose_door, takes_key=True):
    """Build a policy that takes the key, eats apples and enters the door `choose_door(key_colours)`."""
    rows = np.arange(env.num_envs)
    key_colours = np.zeros(env.num_envs, dtype=int)

    def policy(observations):
        phase, things = split_triples(observations)
        keys = (phase == 0) & things[:, :-1, 0].any(axis=1)
        key_colours[keys] = things[keys, :-1, 0].argmax(axis=1)
        object_index = np.choose(
            phase, [key_colours, np.full_like(key_colours, env.num_colours), choose_door(key_colours)]
        )
        offsets = (
            things[rows, object_index, 1:]
            if takes_key
            else things[rows, object_index, 1:] * (phase > 0)[:, None]
        )
        return toward(offsets)

    return policy


def play(env, policy):
    """Run one episode per row; return returns, successes, keys and apples."""
    observations, _ = env.reset(seed=0)
    totals = np.zeros((4, env.num_envs))
    alive = np.ones(env.num_envs, dtype=bool)
    for _ in range(env.horizon):
        observations, rewards, terminated, _, infos = env.step(policy(observations))
        totals[0] += alive * rewards
        if terminated.any():
            totals[1:] += alive * np.stack([infos[name] for name in ("success", "key", "apples")])
            alive &= ~terminated
            env.reset(options={"reset_mask": terminated})
        if not alive.any():
            return totals
    raise AssertionError("the horizon did not end the episode")


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    colours=st.sampled_from(list(DOOR_COLUMNS)),
    explore=st.integers(6, 20),
    distract=st.integers(0, 25),
    apple_reward=st.sampled_from([0, 0.1, 1.0, 3]),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**63),
    aim=st.floats(0, 1),
)
def test_equals_the_slow_reference(colours, explore, distract, apple_reward, shuffle, seed, aim):
    env = KeyToDoor(colours, explore, distract, apple_reward, shuffle)
    slow = SlowRoom(colours, explore, distract, apple_reward, shuffle, seed)
    observation = env.reset(seed=seed)[0]
    np.testing.assert_allclose(observation, slow.look(), rtol=1e-6)
    rng = np.random.default_rng(seed)
    for _ in range(120):
        things = split_triples(observation[None])[1][0]
        offsets = things[things[:, 0] == 1, 1:]
        aims = len(offsets) and rng.random() < aim
        action = toward(offsets[rng.integers(len(offsets))][None])[0] if aims else rng.integers(4)
        observation, reward, terminated, truncated, info = env.step(action)
        expected, *results = slow.step(action)
        np.testing.assert_allclose(observation, expected, rtol=1e-6)
        assert [reward, terminated, info] == results
        assert not truncated
        assert env.observation_space.contains(observation)
        if terminated:
            observation = env.reset()[0]
            np.testing.assert_allclose(observation, slow.reset(), rtol=1e-6)


@pytest.mark.parametrize(("colours", "distract"), [(1, 30), (2, 0), (3, 30), (6, 5), (8, 100)])
def test_with_memory_success_is_one(colours, distract):
    env = KeyToDoorVector(400, colours, 2 * (max(5, colours) // 2), distract, autoreset_mode="Disabled")
    returns, success, key, apples = play(env, player(env, lambda key_colours: key_colours))
    assert (success == 1.0).all()
    assert (key == 1.0).all()
    apple_rewards = returns - success
    rich, poor = np.isclose(apple_rewards, 0.1 * apples), np.isclose(apple_rewards, 0.01 * apples)
    assert (rich | poor).all()
    if distract >= 30:
        assert abs((rich & ~poor).mean() - 0.5) < 5 * np.sqrt(0.25 / 400)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("colours", [2, 3, 8])
@pytest.mark.parametrize(
    "choose_door",
    [np.zeros_like, np.ones_like, lambda key_colours: np.arange(len(key_colours)) % 2],
    ids=["0", "1", "either"],
)
def test_doors_chosen_without_memory_are_right_by_chance(colours, choose_door, shuffle):
    env = KeyToDoorVector(6000, colours, distract_steps=0, shuffle_doors=shuffle, autoreset_mode="Disabled")
    _, success, key, _ = play(env, player(env, choose_door))
    assert (key == 1.0).all()
    assert abs(success.mean() - 1 / colours) < 5 * np.sqrt(0.25 / 6000)


def test_nothing_is_right_without_the_key():
    env = KeyToDoorVector(300, 3, distract_steps=4, autoreset_mode="Disabled")
    returns, success, key, apples = play(env, player(env, lambda key_colours: key_colours, takes_key=False))
    # The policy stays still in the first phase, but still takes a key that lies below the start.
    assert 0 < (key == 0).sum() < 300
    assert (success == key).all()
    assert (returns[key == 0] <= 0.1 * apples[key == 0] + 1e-9).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), colours=st.integers(2, 5))
def test_after_the_explore_phase_nothing_depends_on_the_key(seed, colours):
    """Check that rows with different keys get equal observations and rewards up to the door."""
    env: Any = KeyToDoorVector(6, colours, 15, 12, autoreset_mode="Disabled")
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(15):
        env.step(rng.integers(4, size=6))
    state = env.get_state()
    shared_state = {
        name: np.repeat(state[name][:1], 6, axis=0)
        for name in ("apples", "doors", "rich", "place", "apples_eaten")
    }
    env.set_state(
        {**state, **shared_state, "has_key": np.arange(6) % 2 == 0, "key_colour": np.arange(6) % colours}
    )
    for _ in range(27):
        observations, rewards, terminated, *_ = env.step(np.full(6, rng.choice([UP, UP, LEFT, RIGHT])))
        assert (observations == observations[0]).all()
        assert (terminated == terminated[0]).all()
        if terminated[0]:
            return
        assert (rewards == rewards[0]).all()


def test_before_the_use_phase_nothing_depends_on_the_order_of_doors():
    env: Any = KeyToDoorVector(3, 3, 15, 10, autoreset_mode="Disabled")
    env.reset(seed=0)
    state = env.get_state()
    shared_state = {name: np.repeat(state[name][:1], 3, axis=0) for name in env.row_arrays if name != "doors"}
    doors = np.array([[0, 1, 2], [1, 2, 0], [2, 1, 0]]) + 25
    env.set_state({**state, **shared_state, "doors": doors})
    rng = np.random.default_rng(0)
    for _ in range(24):
        observations, rewards, *_ = env.step(np.full(3, rng.integers(4)))
        assert (observations == observations[0]).all()
        assert (rewards == rewards[0]).all()
    observations, *_ = env.step(np.zeros(3, dtype=int))
    assert len(np.unique(observations, axis=0)) == 3


def test_layouts_are_uniform():
    env = KeyToDoorVector(20_000, 3, distract_steps=10)
    env.reset(seed=2)
    cells = [*range(12), *range(13, 25)]
    orders = env.doors[:, 0] * 3 + env.doors[:, 1] - 25 * 4
    hops = (env.apples[:, 4] - env.apples[:, 3]) % 25
    for sample, choices in (
        (env.key_colour, [0, 1, 2]),
        (env.key_place, cells),
        (env.apples[:, 0], cells),
        (hops, range(1, 25)),
        (env.rich, [0, 1]),
        (orders, [1, 2, 3, 5, 6, 7]),
        (
            env.key_colour * 8 + orders,
            [8 * colour + order for colour in range(3) for order in (1, 2, 3, 5, 6, 7)],
        ),
        (env.key_place * 3 + env.key_colour, [3 * cell + colour for cell in cells for colour in range(3)]),
    ):
        counts = np.bincount(sample, minlength=100)
        expected = env.num_envs / len(choices)
        assert counts.sum() == counts[list(choices)].sum()
        assert np.abs(counts[list(choices)] - expected).max() < 5 * np.sqrt(expected)


def test_numbers_of_the_spec_sheet():
    env = KeyToDoorVector(4000, autoreset_mode="Disabled")
    rng = np.random.default_rng(0)
    best, blind = (
        play(env, policy)
        for policy in (
            player(env, lambda key_colours: key_colours),
            lambda observations: rng.integers(4, size=4000),
        )
    )
    for sample, number, rounding in (
        (best[3], "9.0 apples", 0.05),
        (best[0], "return of 1.49", 0.005),
        (best[0] - best[1] + 1 / 3, "(0.82)", 0.005),
        (blind[1], "success 0.02", 0.005),
    ):
        assert number in " ".join((KeyToDoor.__doc__ or "").split())
        value = float("".join(letter for letter in number if letter in "0123456789."))
        assert abs(sample.mean() - value) < rounding + 4 * sample.std() / np.sqrt(sample.size)


@pytest.mark.parametrize("num_colours", [0, 9, 3.0, "3", True, None])
def test_impossible_numbers_of_colours_are_refused_by_name(num_colours):
    with pytest.raises(ValueError, match=f"num_colours={num_colours!r}: expected an integer from 1 to 8"):
        gymnasium.make("scrubjay.envs:scrubjay/KeyToDoor-v0", num_colours=num_colours)


@pytest.mark.parametrize(("num_colours", "explore_steps"), [(5, 3), (6, 5), (8, 7), (3, 4.0), (3, None)])
def test_explorations_too_short_for_the_farthest_key_are_refused_by_name(num_colours, explore_steps):
    farthest = {5: 4, 6: 6, 8: 8, 3: 4}[num_colours]
    with pytest.raises(
        ValueError, match=f"explore_steps={explore_steps!r}: expected .* from {farthest} to 10000"
    ):
        KeyToDoor(num_colours, explore_steps)
    assert KeyToDoor(num_colours, farthest).reset(seed=0)[0].any()


@pytest.mark.parametrize("distract_steps", [-1, 10_001, 2.5, False])
def test_impossible_distractions_are_refused_by_name(distract_steps):
    with pytest.raises(
        ValueError, match=f"distract_steps={distract_steps!r}: expected an integer from 0 to 10000"
    ):
        KeyToDoor(distract_steps=distract_steps)


@pytest.mark.parametrize("apple_reward", [-0.1, float("nan"), float("inf"), "1", None, True])
def test_impossible_apples_are_refused_by_name(apple_reward):
    with pytest.raises(ValueError, match=f"apple_reward={apple_reward!r}: expected a finite number"):
        KeyToDoor(apple_reward=apple_reward)


def test_doors_are_shuffled_or_not():
    with pytest.raises(ValueError, match="shuffle_doors=0: expected True or False"):
        KeyToDoor(shuffle_doors=0)  # pyright: ignore[reportArgumentType]
