"""CountRecall against a plain-Python reference and the closed forms of its docstring."""

from __future__ import annotations

from math import comb

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Discrete, MultiDiscrete
from gymnasium.utils import seeding
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.envs.count_recall import CountRecall, CountRecallVector

MASK = 2**64 - 1
POPGYM = [(52, 2), (104, 4), (208, 13)]


class SlowPack:
    """Reference implementation with two Python lists, counted anew at every question."""

    def __init__(self, cards, values, seed):
        self.cards, self.values = cards, values
        self.word = int(seeding.np_random(seed)[0].integers(2**64, dtype=np.uint64))
        self.reset()

    def shuffle_pack(self):
        tickets = []
        for card in range(self.cards):
            self.word = word = (self.word + 0x9E3779B97F4A7C15) & MASK
            word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
            word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
            tickets.append((word ^ (word >> 31), card))
        return [card % self.values for _, card in sorted(tickets)]

    def reset(self):
        self.pack, self.queries = self.shuffle_pack(), self.shuffle_pack()
        self.shown_cards, self.right = self.pack[:1], 0
        return [self.pack[0], self.queries[0]]

    def step(self, action):
        num_shown = len(self.shown_cards)
        right = action == self.shown_cards.count(self.queries[num_shown - 1])
        self.right += right
        self.shown_cards.append(self.pack[num_shown])
        last = num_shown == self.cards - 1
        info = {"success": self.right / (self.cards - 1)} if last else {}
        return (
            [self.pack[num_shown], self.queries[num_shown]],
            (1 if right else -1) / (self.cards - 1),
            last,
            info,
        )


def play(env, policy, seed=0):
    """Play one pack per row with `policy(observations, time)`; return successes and returns."""
    observations, _ = env.reset(seed=seed)
    returns = np.zeros(env.num_envs)
    for time in range(env.num_cards - 1):
        observations, rewards, terminated, truncated, infos = env.step(policy(observations, time))
        assert (terminated == (time == env.num_cards - 2)).all()
        assert not truncated.any()
        returns += rewards
    return infos["final_info"]["success"], returns


def best_without_memory(cards, values):
    most = cards // values
    return (1 + (values - 1) * most / (most + 1)) / (cards - 1)


def likeliest(cards, values, time):
    """Return the likeliest count and its probability, if the card has the queried value and if not."""
    most, population = cards // values, cards - 1

    def mode(successes, already):
        chances = [
            comb(successes, j) * comb(population - successes, time - j) / comb(population, time)
            for j in range(min(successes, time) + 1)
        ]
        return int(np.argmax(chances)) + already, max(chances)

    return mode(most - 1, 1), mode(most, 0)


def best_with_a_clock(cards, values):
    chances = [
        (in_view + (values - 1) * elsewhere) / values
        for (_, in_view), (_, elsewhere) in (likeliest(cards, values, time) for time in range(cards - 1))
    ]
    return sum(chances) / (cards - 1)


@settings(max_examples=30, deadline=None)
@given(values=st.integers(2, 13), most=st.integers(2, 16), seed=st.integers(0, 2**63))
def test_equals_the_slow_reference(values, most, seed):
    cards = values * most
    env, slow = CountRecall(cards, values), SlowPack(cards, values, seed)
    rng = np.random.default_rng(seed)
    assert env.reset(seed=seed)[0].tolist() == [slow.pack[0], slow.queries[0]]
    for action in rng.integers(0, most + 1, 3 * cards):
        observation, reward, terminated, truncated, info = env.step(action)
        assert (observation.tolist(), reward, terminated, info) == slow.step(action)
        assert not truncated
        if terminated:
            assert env.reset()[0].tolist() == slow.reset()


@pytest.mark.parametrize(("cards", "values"), [*POPGYM, (4, 2), (26 * 2, 26)])
def test_with_memory_return_and_success_are_one(cards, values):
    env = CountRecallVector(5, cards, values, autoreset_mode="SameStep")
    counts = np.zeros((5, values), dtype=np.int64)

    def policy(observations, _):
        counts[np.arange(5), observations[:, 0]] += 1
        return counts[np.arange(5), observations[:, 1]]

    success, returns = play(env, policy)
    assert (success == 1.0).all()
    np.testing.assert_allclose(returns, 1.0)
    assert counts.sum() == 5 * (cards - 1)


@pytest.mark.parametrize(("level", "actions"), list(zip(POPGYM, [27, 27, 17], strict=True)))
def test_sizes_of_popgym(level, actions):
    """Check POPGym's three levels: spaces, length, scale of rewards, complete packs."""
    cards, values = level
    env = CountRecall(cards, values)
    assert env.observation_space == MultiDiscrete([values, values])
    assert env.action_space == Discrete(actions)
    observations, rewards, done = [env.reset(seed=3)[0]], [], False
    while not done:
        # The current card is counted, and the current query is answered.
        cards_so_far, queries_so_far = np.transpose(observations)
        observation, reward, done, _, _ = env.step((cards_so_far == queries_so_far[-1]).sum())
        observations.append(observation)
        rewards.append(reward)
    np.testing.assert_array_equal(rewards, np.full(cards - 1, 1 / (cards - 1)))
    for column in np.transpose(observations):
        assert np.bincount(column).tolist() == [cards // values] * values


@pytest.mark.parametrize(("cards", "values"), [(8, 2), (24, 4), (52, 2)])
def test_memoryless_policies_have_their_closed_form(cards, values):
    env, most = CountRecallVector(4000, cards, values, autoreset_mode="SameStep"), cards // values
    for policy, expected in (
        (lambda obs, _: np.full(len(obs), 1), best_without_memory(cards, values)),
        (lambda obs, _: np.full(len(obs), most - 1), best_without_memory(cards, values)),
        (lambda obs, _: np.where(obs[:, 0] == obs[:, 1], 1, 0), best_without_memory(cards, values)),
        (lambda obs, _: np.full(len(obs), most), best_without_memory(cards, values) - 1 / (cards - 1)),
    ):
        success, returns = play(env, policy)
        assert abs(success.mean() - expected) < 5 * success.std() / np.sqrt(success.size)
        np.testing.assert_allclose(returns, 2 * success - 1, atol=1e-12)


@pytest.mark.parametrize(("cards", "values"), [(6, 2), (6, 3), (9, 3)])
def test_no_memoryless_policy_is_better(cards, values):
    """Check that the best answer per card and query does not exceed the documented success."""
    packs, most = 20000, cards // values
    env = CountRecallVector(packs, cards, values, autoreset_mode="SameStep")
    tally = np.zeros((values, values, most + 1))

    def policy(obs, _):
        counts = env.counts[np.arange(packs), obs[:, 1]]
        np.add.at(tally, (obs[:, 0], obs[:, 1], counts), 1)
        return counts

    success, _ = play(env, policy)
    assert (success == 1.0).all()
    best = tally.max(axis=-1).sum() / tally.sum()
    assert abs(best - best_without_memory(cards, values)) < 0.01


@pytest.mark.parametrize(("cards", "values"), [(24, 4), (52, 2)])
def test_a_clock_alone_reaches_what_the_spec_sheet_says(cards, values):
    env = CountRecallVector(4000, cards, values, autoreset_mode="SameStep")

    def policy(obs, time):
        (in_view, _), (elsewhere, _) = likeliest(cards, values, time)
        return np.where(obs[:, 0] == obs[:, 1], in_view, elsewhere)

    success, _ = play(env, policy)
    assert abs(success.mean() - best_with_a_clock(cards, values)) < 5 * success.std() / np.sqrt(4000)


def test_docstring_numbers():
    for best in (best_without_memory(52, 2), best_with_a_clock(52, 2)):
        assert f"{best:.4f}" in (CountRecall.__doc__ or "")
        assert f"{2 * best - 1:.4f}" in (CountRecall.__doc__ or "")


@pytest.mark.parametrize(("cards", "values"), [(12, 3), (208, 13)])
def test_every_pack_is_complete_and_shuffled_alike_everywhere(cards, values):
    env, share = CountRecallVector(4000, cards, values, autoreset_mode="SameStep"), 1 / values
    env.reset(seed=1)
    for pack in (env.deck, env.queries):
        assert (np.sort(pack, axis=1) == np.repeat(np.arange(values), cards // values)).all()
        for value in range(values):
            frequency = (pack == value).mean(axis=0)
            assert np.abs(frequency - share).max() < 5 * np.sqrt(share * (1 - share) / 4000)
    # Cards and queries are shuffled independently.
    agreement = (env.deck == env.queries).mean(axis=0)
    assert np.abs(agreement - share).max() < 5 * np.sqrt(share * (1 - share) / 4000)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), answer=st.integers(0, 5))
def test_text_tells_the_truth(seed, answer):
    env = CountRecall(10, 2, render_mode="ansi")
    card, query = env.reset(seed=seed)[0]
    card_text = "AB"[card]
    for time in range(1, 10):
        true_count, query_text = card_text.count("AB"[query]), "AB"[query]
        (card, query), reward, *_ = env.step(answer)
        card_text += "AB"[card]
        caption, cards, question, verdict = env.render().splitlines()
        assert caption.startswith(f"step {time} of 9 ")
        assert cards == f"seen {card_text}"
        assert question == (f"How many {'AB'[query]} so far?" if time < 9 else "The pack is dealt.")
        words = "right" if reward > 0 else f"wrong, it was {true_count}"
        assert verdict == f"last answer {answer} for {query_text}: {words}"


@pytest.mark.parametrize("num_values", [0, 1, 27, 2.0, "2", None, True])
def test_impossible_numbers_of_values_are_refused_by_name(num_values):
    with pytest.raises(ValueError, match=f"num_values={num_values!r}: expected an integer from 2 to 26"):
        gymnasium.make("scrubjay.envs:scrubjay/CountRecall-v0", num_values=num_values)


@pytest.mark.parametrize("num_cards", [0, 4, 4 * 10**8, 52.0, 53, "52", None, True])
def test_impossible_packs_are_refused_by_name(num_cards):
    with pytest.raises(ValueError, match=f"num_cards={num_cards!r}: expected a multiple of num_values=4"):
        CountRecall(num_cards, 4)
