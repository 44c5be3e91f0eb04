"""RepeatPrevious against a plain-Python reference and the closed forms of its docstring."""

from __future__ import annotations

from collections import deque

import gymnasium
import numpy as np
import pytest
from gymnasium.utils import seeding
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.envs.batched_env import SingleEnv
from scrubjay.envs.repeat_previous import RepeatPrevious, RepeatPreviousVector

MASK = 2**64 - 1


class SlowPack:
    """Reference implementation with a Python list of shown suits."""

    def __init__(self, k, decks, seed):
        self.k, self.cards = k, 52 * decks
        self.word = int(seeding.np_random(seed)[0].integers(2**64, dtype=np.uint64))
        self.reset()

    def reset(self):
        tickets = []
        for card in range(self.cards):
            self.word = word = (self.word + 0x9E3779B97F4A7C15) & MASK
            word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
            word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
            tickets.append((word ^ (word >> 31), card))
        self.pack = [card % 4 for _, card in sorted(tickets)]
        self.shown_cards, self.right = [self.pack[0]], 0
        return self.shown_cards[-1]

    def step(self, action):
        reward = 0.0
        if len(self.shown_cards) >= self.k:
            right = action == self.shown_cards[-self.k]
            self.right += right
            reward = (1 if right else -1) / (self.cards - self.k)
        self.shown_cards.append(self.pack[len(self.shown_cards)])
        last = len(self.shown_cards) == self.cards
        return (
            self.shown_cards[-1],
            reward,
            last,
            {"success": self.right / (self.cards - self.k)} if last else {},
        )


def mean_success(env, policy, episodes):
    """Play `episodes` packs per row with `policy(observations)`; return successes and returns."""
    observations, _ = env.reset(seed=0)
    successes, returns = [], []
    for _ in range(episodes):
        total = np.zeros(env.num_envs)
        for _ in range(env.num_cards - 1):
            observations, rewards, terminated, _, infos = env.step(policy(observations))
            total += rewards
        assert terminated.all()
        successes.append(infos["final_info"]["success"])
        returns.append(total)
    return np.concatenate(successes), np.concatenate(returns)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), decks=st.integers(1, 3), seed=st.integers(0, 2**63))
def test_equals_the_slow_reference(data, decks, seed):
    k = data.draw(st.integers(1, 52 * decks - 1))
    env, slow = RepeatPrevious(k, decks), SlowPack(k, decks, seed)
    rng = np.random.default_rng(seed)
    assert env.reset(seed=seed)[0] == slow.shown_cards[-1]
    for action in rng.integers(0, 4, 60 * decks):
        observation, reward, terminated, truncated, info = env.step(action)
        assert (observation, reward, terminated, info) == slow.step(action)
        assert not truncated
        if terminated:
            assert env.reset()[0] == slow.reset()


@pytest.mark.parametrize(("k", "decks"), [(1, 1), (4, 1), (32, 2), (64, 3), (51, 1)])
def test_with_memory_return_and_success_are_one(k, decks):
    env = RepeatPreviousVector(5, k, decks, autoreset_mode="SameStep")
    last_k = deque(maxlen=k)

    def policy(observations):
        last_k.append(observations)
        return last_k[0]

    success, returns = mean_success(env, policy, episodes=1)
    assert (success == 1.0).all()
    np.testing.assert_allclose(returns, 1.0)


def test_alignment_of_the_spec_sheet():
    env = RepeatPrevious(k=4)
    cards = [env.reset(seed=9)[0]]
    rewards = []
    for t in range(1, 8):
        # Step t queries card t - 4.
        card, reward, *_ = env.step(cards[t - 4] if t >= 4 else 0)
        cards.append(card)
        rewards.append(reward)
    assert rewards == [0.0] * 3 + [1 / 48] * 4


@pytest.mark.parametrize("decks", [1, 2])
def test_memoryless_policies_have_their_closed_form(decks):
    env = RepeatPreviousVector(1000, 4, decks, autoreset_mode="SameStep")
    cards = 52 * decks
    best = 13 * decks / (cards - 1)
    for policy, expected in (
        (lambda suits: (suits + 1) % 4, best),
        (lambda suits: suits, (13 * decks - 1) / (cards - 1)),
        (lambda suits: np.full_like(suits, 2), 0.25),
    ):
        success, returns = mean_success(env, policy, episodes=4)
        assert abs(success.mean() - expected) < 5 * success.std() / np.sqrt(success.size)
        np.testing.assert_allclose(returns, 2 * success - 1, atol=1e-12)


def test_docstring_numbers():
    assert round(13 / 51, 4) == 0.2549
    assert round(2 * 13 / 51 - 1, 4) == -0.4902
    assert "0.2549" in (RepeatPrevious.__doc__ or "")
    assert "-0.4902" in (RepeatPrevious.__doc__ or "")


@pytest.mark.parametrize("decks", [1, 3])
def test_every_pack_is_complete_and_shuffled_alike_everywhere(decks):
    env = RepeatPreviousVector(4000, 4, decks, autoreset_mode="SameStep")
    env.reset(seed=1)
    assert (np.sort(env.deck, axis=1) == np.repeat(np.arange(4), 13 * decks)).all()
    for suit in range(4):
        share = (env.deck == suit).mean(axis=0)
        assert np.abs(share - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 4000)


@pytest.mark.parametrize("k", [0, -1, 52, 4.0, "4", True])
def test_impossible_delays_are_refused_by_name(k):
    with pytest.raises(ValueError, match=f"k={k!r}: expected an integer from 1 to 51"):
        gymnasium.make("scrubjay.envs:scrubjay/RepeatPrevious-v0", k=k)


@pytest.mark.parametrize("num_decks", [0, 10**8, 1.5, None])
def test_impossible_packs_are_refused_by_name(num_decks):
    with pytest.raises(ValueError, match=f"num_decks={num_decks!r}: expected"):
        RepeatPrevious(num_decks=num_decks)


@settings(deadline=None, max_examples=30)
@given(
    k=st.integers(1, 51),
    seed=st.integers(0, 2**32 - 1),
    actions=st.lists(st.integers(0, 3), min_size=51, max_size=51),
    numpy_steps=st.sets(st.integers(0, 50)),
)
def test_the_single_environment_equals_a_vector_environment_of_one(k, seed, actions, numpy_steps):
    """Compare values, types and states for Python and numpy actions."""
    single, batch = RepeatPrevious(k), RepeatPrevious(k)
    assert single.reset(seed=seed) == batch.reset(seed=seed)
    for time, action in enumerate(actions):
        result = single.step(np.int64(action) if time in numpy_steps else action)
        expected = SingleEnv.step(batch, action)
        assert result == expected
        assert [type(part) for part in result] == [type(part) for part in expected]
        ours, theirs = single.get_state()["row"], batch.get_state()["row"]
        assert ours.keys() == theirs.keys()
        for name in set(ours) - {"settings"}:
            np.testing.assert_array_equal(ours[name], theirs[name], strict=True)
    assert result[2]


@pytest.mark.parametrize("action", [-1, 4, 1.0, "1", None, True, np.float32(1), np.array([1])])
def test_the_single_environment_raises_the_errors_of_the_vector_environment(action):
    single, batch = RepeatPrevious(), RepeatPrevious()
    single.reset(seed=3)
    batch.reset(seed=3)
    results = []
    for step in (single.step, lambda value: SingleEnv.step(batch, value)):
        try:
            results.append(step(action))
        except ValueError as error:
            results.append(str(error))
    assert results[0] == results[1]
