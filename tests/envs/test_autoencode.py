"""Autoencode against a plain-Python reference and the closed forms of its docstring."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Discrete, MultiDiscrete
from gymnasium.utils import seeding
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.envs.autoencode import Autoencode, AutoencodeVector

MASK = 2**64 - 1
SIZES = [4, 12, 52, 104, 156]


class SlowPack:
    """Reference implementation with Python lists: a pack to deal from and a pile of shown cards."""

    def __init__(self, cards, seed):
        self.cards = cards
        self.word = int(seeding.np_random(seed)[0].integers(2**64, dtype=np.uint64))
        self.reset()

    def reset(self):
        tickets = []
        for card in range(self.cards):
            self.word = word = (self.word + 0x9E3779B97F4A7C15) & MASK
            word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
            word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
            tickets.append((word ^ (word >> 31), card))
        self.pack = [card % 4 for _, card in sorted(tickets)][::-1]
        self.pile, self.right = [self.pack.pop()], 0
        return [1, self.pile[-1]]

    def step(self, action):
        if self.pack:
            self.pile.append(self.pack.pop())
            return [int(bool(self.pack)), self.pile[-1]], 0.0, False, {}
        right = action == self.pile.pop()
        self.right += right
        info = {} if self.pile else {"success": self.right / self.cards}
        return [0, 0], (1 if right else -1) / self.cards, not self.pile, info


def play(env, policy, seed=0):
    """Play one pack per row with `policy(observations)`; return successes and returns."""
    observations, _ = env.reset(seed=seed)
    returns = np.zeros(env.num_envs)
    for step in range(1, 2 * env.num_cards):
        observations, rewards, terminated, truncated, infos = env.step(policy(observations))
        assert (terminated == (step == 2 * env.num_cards - 1)).all()
        assert not truncated.any()
        returns += rewards
    return infos["final_info"]["success"], returns


@settings(max_examples=30, deadline=None)
@given(quarter=st.integers(1, 39), seed=st.integers(0, 2**63))
def test_equals_the_slow_reference(quarter, seed):
    cards = 4 * quarter
    env, slow = Autoencode(cards), SlowPack(cards, seed)
    rng = np.random.default_rng(seed)
    assert env.reset(seed=seed)[0].tolist() == [1, slow.pile[-1]]
    for action in rng.integers(0, 4, 5 * cards):
        observation, reward, terminated, truncated, info = env.step(action)
        assert (observation.tolist(), reward, terminated, info) == slow.step(action)
        assert not truncated
        if terminated:
            assert env.reset()[0].tolist() == slow.reset()


@pytest.mark.parametrize("cards", SIZES)
def test_with_memory_return_and_success_are_one(cards):
    env = AutoencodeVector(5, cards, autoreset_mode="SameStep")
    pile, was_watching = [], True

    def policy(observations):
        nonlocal was_watching
        watch, suit = observations.T
        # The last card comes with the first question, flag 0.
        if was_watching:
            pile.append(suit)
        was_watching = watch.all()
        return np.zeros(5, dtype=np.int64) if was_watching else pile.pop()

    success, returns = play(env, policy)
    assert (success == 1.0).all()
    np.testing.assert_allclose(returns, 1.0)


@pytest.mark.parametrize(("cards", "steps"), [(52, 103), (104, 207), (156, 311)])
def test_sizes_of_popgym(cards, steps):
    """Check POPGym's three levels: lengths, phases, observations and scale of rewards."""
    env = Autoencode(cards)
    assert env.observation_space == MultiDiscrete([2, 4])
    assert env.action_space == Discrete(4)
    observations, rewards, done = [env.reset(seed=3)[0]], [], False
    while not done:
        observation, reward, done, _, _ = env.step(0)
        observations.append(observation)
        rewards.append(reward)
    watch, suit = np.transpose(observations)
    assert len(rewards) == steps
    np.testing.assert_array_equal(watch, np.arange(steps + 1) < cards - 1)
    assert np.bincount(suit[:cards]).tolist() == [cards // 4] * 4
    assert not suit[cards:].any()
    assert not np.any(rewards[: cards - 1])
    np.testing.assert_array_equal(np.abs(rewards[cards - 1 :]), 1 / cards)
    # The playback is in reverse order.
    np.testing.assert_array_equal(np.array(rewards[cards - 1 :]) > 0, suit[:cards][::-1] == 0)


@pytest.mark.parametrize("cards", [4, 8, 52])
def test_memoryless_policies_have_their_closed_form(cards):
    env = AutoencodeVector(4000, cards, autoreset_mode="SameStep")
    for policy, expected in (
        (lambda obs: obs[:, 1], 1 / 4 + 3 / (4 * cards)),
        (lambda obs: np.where(obs[:, 1] == 0, 2, obs[:, 1]), 1 / 4 + 1 / (2 * cards)),
        (lambda obs: np.full(len(obs), 3), 1 / 4),
    ):
        success, returns = play(env, policy)
        assert abs(success.mean() - expected) <= 5 * success.std() / np.sqrt(success.size)
        np.testing.assert_allclose(returns, 2 * success - 1, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("cards", [4, 8])
def test_no_memoryless_policy_is_better(cards):
    """Enumerate all policies over the four observations of the playback and all packs."""
    packs = np.array(sorted(set(permutations(list(range(4)) * (cards // 4)))))
    policies = np.array(list(product(range(4), repeat=4)))
    env: Any = AutoencodeVector(len(packs) * len(policies), cards, autoreset_mode="SameStep")
    env.reset()
    env.deck = np.repeat(packs, len(policies), axis=0).astype(np.int8)
    policy_of_row = np.tile(np.arange(len(policies)), len(packs))
    suit = np.zeros(env.num_envs, dtype=np.int64)
    for _ in range(2 * cards - 1):
        observations, *_, infos = env.step(policies[policy_of_row, suit])
        suit = observations[:, 1]
    scores = infos["final_info"]["success"].reshape(len(packs), -1).mean(axis=0)
    assert policies[scores > scores.max() - 1e-9].tolist() == [[0, 1, 2, 3]]
    assert scores.max() == pytest.approx(1 / 4 + 3 / (4 * cards))


def test_docstring_numbers():
    best = 1 / 4 + 3 / (4 * 52)
    assert f"52 cards {best:.4f}" in (Autoencode.__doc__ or "")
    assert f"{2 * best - 1:.4f}" in (Autoencode.__doc__ or "")


@pytest.mark.parametrize("cards", [8, 156])
def test_every_pack_is_complete_and_shuffled_alike_everywhere(cards):
    env = AutoencodeVector(4000, cards, autoreset_mode="SameStep")
    env.reset(seed=1)
    assert (np.sort(env.deck, axis=1) == np.repeat(np.arange(4), cards // 4)).all()
    for suit in range(4):
        share = (env.deck == suit).mean(axis=0)
        assert np.abs(share - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 4000)


def test_actions_during_the_watch_do_not_count():
    one, other = (Autoencode(8) for _ in range(2))
    one.reset(seed=5)
    other.reset(seed=5)
    for action in range(7):
        one.step(action % 4)
        other.step(0)
    for action in (0, 1, 2, 3, 3, 2, 1, 0):
        mine, theirs = one.step(action), other.step(action)
        np.testing.assert_array_equal(mine[0], theirs[0])
        assert mine[1:] == theirs[1:]


def test_text_shows_the_pack_and_the_answers():
    env = Autoencode(8, render_mode="ansi")
    env.reset(seed=5)
    for _ in range(9):
        env.step(2)
    caption, cards, answers = env.render().splitlines()
    assert caption.startswith("step 9 of 15")
    assert sorted(cards.split()[1]) == sorted("♣♦♥♠" * 2)
    assert answers.split()[1] == "......♥♥"


@pytest.mark.parametrize("cards", [0, -4, 2, 50, 4 * 10**8, 52.0, "52", None, True])
def test_impossible_packs_are_refused_by_name(cards):
    with pytest.raises(ValueError, match=f"num_cards={cards!r}: expected a multiple of 4"):
        gymnasium.make("scrubjay.envs:scrubjay/Autoencode-v0", num_cards=cards)
