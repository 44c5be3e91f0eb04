"""Suites: each is exactly solvable from its tokens and has the distribution of its definition."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, cast

import numpy as np
import pytest
import torch

from scrubjay.experiments.tasks.sequences import (
    IGNORED,
    MQAR,
    Induction,
    Needle,
    SelectiveCopy,
    StateTracking,
    Suite,
    Swaps,
    count_swaps,
    products,
)

SUITES = [
    MQAR(vocab_size=20, length=36, num_items=4),
    MQAR(vocab_size=20, length=33, num_items=8, random_filler=False),
    MQAR(vocab_size=18, length=32, num_items=8, power=1.0),
    Needle(vocab_size=16, length=20),
    Needle(vocab_size=16, length=7, num_items=3),
    SelectiveCopy(length=20, num_items=5),
    SelectiveCopy(length=10, num_items=5),
    Induction(length=3),
    Induction(length=40),
    StateTracking(group="Z2", length=1),
    StateTracking(group="Z5", length=30),
    StateTracking(length=30),
    StateTracking(group="S4", vocab_size=24, length=20),
    Swaps(size=3, num_items=2, vocab_size=6, length=20),
    Swaps(),
]


def solve_mqar(suite: Suite, tokens: list[int], positions: list[int]) -> dict[int, int]:
    pairs = dict(zip(tokens[0 : 2 * suite.num_items : 2], tokens[1 : 2 * suite.num_items : 2], strict=True))
    return {place: pairs[tokens[place]] for place in positions}


def solve_needle(suite: Suite, tokens: list[int], positions: list[int]) -> dict[int, int]:
    return {len(tokens) - 1: tokens[tokens.index(tokens[-1]) + 1]}


def solve_selective_copy(suite: Suite, tokens: list[int], positions: list[int]) -> dict[int, int]:
    markers = [place for place, token in enumerate(tokens) if token == 1]
    return dict(zip(markers, [token for token in tokens if token > 1], strict=True))


def solve_state_tracking(suite: Suite, tokens: list[int], positions: list[int]) -> dict[int, int]:
    """Solve state tracking: add numbers, or compose permutations."""
    if isinstance(suite, Swaps):
        kind, size = "S", suite.size
    else:
        assert isinstance(suite, StateTracking)
        kind, size = suite.group[0], int(suite.group[1:])
    if kind == "Z":
        return {t: sum(tokens[: t + 1]) % size for t in positions}
    moves = list(itertools.permutations(range(size)))
    things, answers = tuple(range(size)), {}
    for t, token in enumerate(tokens):
        things = tuple(things[place] for place in moves[token])
        answers[t] = moves.index(things)
    return answers


SOLVERS = {
    "state-tracking": solve_state_tracking,
    "swaps": solve_state_tracking,
    "mqar": solve_mqar,
    "needle": solve_needle,
    "selective-copy": solve_selective_copy,
    "induction": solve_needle,  # both: the token after the first occurrence of the last token
}


@pytest.mark.parametrize("suite", SUITES, ids=repr)
def test_an_exact_reader_answers_everything(suite):
    tokens, labels = suite.draw(200, seed=3)
    assert tokens.shape == labels.shape == (200, suite.length)
    assert tokens.dtype == labels.dtype == torch.int64
    assert 0 <= tokens.min() <= tokens.max() < suite.vocab_size
    for row, label in zip(tokens.tolist(), labels.tolist(), strict=True):
        targets = {place: value for place, value in enumerate(label) if value != IGNORED}
        assert SOLVERS[suite.kind](suite, row, list(targets)) == targets


@pytest.mark.parametrize("suite", SUITES, ids=repr)
def test_a_batch_is_a_function_of_seed_and_index(suite):
    first, second = suite.draw(8, seed=1, index=2), suite.draw(8, seed=1, index=2)
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.labels, second.labels)
    for seed, index in ((1, 3), (2, 2)):
        assert not torch.equal(suite.draw(8, seed, index).tokens, first.tokens)


@pytest.mark.parametrize("suite", SUITES, ids=repr)
def test_chance_is_the_share_of_the_likeliest_answer(suite):
    labels = suite.draw(4000, seed=5).labels
    answers = labels[labels != IGNORED]
    shares = torch.bincount(answers).double() / len(answers)
    shares = shares[shares > 0]
    assert len(shares) == round(1 / suite.chance)
    # Answers within a row may be dependent, which only reduces their variance.
    assert (shares - suite.chance).abs().max() < 5 * np.sqrt(suite.chance / len(answers))


@pytest.mark.parametrize(("group", "order"), [("Z2", 2), ("Z3", 3), ("Z5", 5), ("S3", 6), ("S4", 24)])
def test_products_are_those_of_a_group(group, order):
    table = products(group)
    every = np.arange(order)
    assert (table[0] == every).all()
    assert (table[:, 0] == every).all()
    for axis in (0, 1):  # each row and column is a permutation
        assert (np.sort(table, axis=axis) == np.expand_dims(every, 1 - axis)).all()
    assert (table[table] == table[every[:, None, None], table[None]]).all()
    assert (table == table.T).all() == (group[0] == "Z")


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_swaps_are_the_distance_from_the_identity(size):
    """Breadth-first search over swaps of two items finds the same distances."""
    permutations = list(itertools.permutations(range(size)))
    distances, border = {permutations[0]: 0}, [permutations[0]]
    while border:
        following = []
        for permutation in border:
            for first, second in itertools.combinations(range(size), 2):
                other = list(permutation)
                other[first], other[second] = other[second], other[first]
                if tuple(other) not in distances:
                    distances[tuple(other)] = distances[permutation] + 1
                    following.append(tuple(other))
        border = following
    assert count_swaps(size).tolist() == [distances[each] for each in permutations]


@pytest.mark.parametrize(("num_items", "tokens"), [(1, 11), (2, 46), (3, 96), (4, 120)])
def test_tokens_have_at_most_the_number_of_swaps(num_items, tokens):
    """The counts are sums of the Stirling numbers of the first kind of five items: 1, 10, 35, 50, 24."""
    suite = Swaps(num_items=num_items, length=50)
    sample = suite.draw(400, seed=0).tokens
    assert len(sample.unique()) == tokens
    assert count_swaps(5)[sample].max() == num_items
    shares = torch.bincount(sample.flatten(), minlength=120).double() / sample.numel()
    shares = shares[shares > 0]
    assert (shares - 1 / tokens).abs().max() < 5 * np.sqrt(1 / tokens / sample.numel())


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_gaps_follow_the_power_law(power):
    """The gap of the first key is a single sample, so it follows the power law exactly."""
    suite = MQAR(vocab_size=64, length=40, num_items=1, power=power)
    labels = suite.draw(20_000, seed=0).labels
    slots = (labels != IGNORED).nonzero()[:, 1] - 2
    assert (slots % 2 == 0).all()
    expected = power * np.arange(1, 20) ** (power - 1)
    expected /= expected.sum()
    frequencies = np.bincount(slots // 2, minlength=19) / 20_000
    assert np.abs(frequencies - expected).max() < 5 * np.sqrt(expected.max() / 20_000)


def test_gaps_are_drawn_without_replacement_one_after_the_other():
    """For two keys and three positions, ordered pairs have the probabilities of two successive draws."""
    suite = MQAR(vocab_size=16, length=10, num_items=2)
    tokens, labels = suite.draw(20_000, seed=0)
    weights = np.arange(1, 4) ** (0.01 - 1)
    weights /= weights.sum()
    is_scored = labels != IGNORED
    for first in range(3):
        for second in {0, 1, 2} - {first}:
            expected = weights[first] * weights[second] / (1 - weights[first])
            hits = (labels[:, 4 + 2 * first] == tokens[:, 1]) & (labels[:, 4 + 2 * second] == tokens[:, 3])
            assert abs(hits.double().mean() - expected) < 5 * np.sqrt(expected / 20_000)
    assert (is_scored.sum(dim=1) == 2).all()


def test_pairs_are_of_their_halves_and_filler_is_what_was_asked_for():
    zero = MQAR(vocab_size=30, length=40, num_items=5, random_filler=False)
    tokens, labels = zero.draw(300, seed=0)
    keys, values = tokens[:, 0:10:2], tokens[:, 1:10:2]
    assert set(keys.unique().tolist()) == set(range(1, 15))
    assert set(values.unique().tolist()) == set(range(15, 30))
    for row in torch.cat([keys, values], dim=1):
        assert len(row.unique()) == 10
    assert (tokens[:, 10:][labels[:, 10:] == IGNORED] == 0).all()
    tokens, labels = dataclasses.replace(zero, random_filler=True).draw(300, seed=0)
    assert len(tokens[:, 10:][labels[:, 10:] == IGNORED].unique()) == 30


def test_needles_lie_anywhere_and_any_is_asked_for():
    suite = Needle(vocab_size=32, length=9, num_items=3)
    tokens, _ = suite.draw(20_000, seed=0)
    is_key = (tokens[:, :-1] < 8).numpy()
    assert (is_key.sum(axis=1) == 3).all()
    arrangements, counts = np.unique(is_key, axis=0, return_counts=True)
    assert len(arrangements) == 10  # 5 choose 3, with needles shrunk to one token
    assert np.abs(counts / 20_000 - 0.1).max() < 5 * np.sqrt(0.1 / 20_000)
    positions = (tokens[:, :-1] == tokens[:, -1:]).long().argmax(dim=1)
    order = np.take_along_axis(is_key.cumsum(axis=1), positions.numpy()[:, None], axis=1)[:, 0]
    assert np.abs(np.bincount(order)[1:] / 20_000 - 1 / 3).max() < 5 * np.sqrt(1 / 3 / 20_000)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MQAR(num_items=0), "num_items=0: must be at least 1"),
        (lambda: MQAR(length=31), r"length=31: must be at least 32 \(four tokens for each of num_items=8"),
        (lambda: MQAR(vocab_size=16), "vocab_size=16: must be at least 18"),
        (lambda: MQAR(power=0.0), "power=0.0"),
        (lambda: Needle(length=2), "length=2: must be at least 3"),
        (lambda: Needle(vocab_size=7), "vocab_size=7: must be at least 8"),
        (lambda: SelectiveCopy(length=15), "length=15: must be at least 16"),
        (lambda: SelectiveCopy(vocab_size=3), "vocab_size=3: must be at least 4"),
        (lambda: Induction(length=2), "length=2: must be at least 3"),
        (lambda: StateTracking(group=cast(Any, "A5")), "group='A5'; choose from Z2, Z3, Z5, S3, S4, S5"),
        (lambda: StateTracking(group="S5"), r"vocab_size=6: must be at least 120 \(the elements of S5"),
        (lambda: Swaps(num_items=0), "num_items=0: must be at least 1"),
        (lambda: Swaps(num_items=5), "num_items=5: must be less than size=5; 4 swaps give every"),
        (lambda: Swaps(size=7), "size=7: choose from 2 to 6"),
        (lambda: Swaps(size=1), "size=1: choose from 2 to 6"),
        (lambda: Swaps(vocab_size=24), r"vocab_size=24: must be at least 120 \(the permutations of size=5"),
        (lambda: Swaps(length=0), "length=0: must be at least 1"),
        (lambda: Induction().with_sizes(2, 64), "num_items=2: induction always has 1 triggers"),
    ],
)
def test_impossible_sizes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
