"""Block-sparse attention of a prompt, and its choice of blocks, against slow definitions with loops."""

import math

import pytest
import torch

from scrubjay.memory.context.policies.block_sparse import (
    attend_from_end,
    attend_to_blocks,
    choose_blocks,
    cover,
    measure_distance,
    sum_columns,
    sum_distances,
)
from scrubjay.memory.context.policies.dense import Scoring

GROUPS, SHARED, WIDTH, BLOCK, SCALE = 2, 3, 8, 4, 0.6
SCORING = Scoring(SCALE)


def make_prompt(tokens, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    heads = (GROUPS * SHARED, GROUPS, GROUPS)
    return tuple(torch.randn(n, tokens, WIDTH, dtype=dtype, generator=generator) for n in heads)


def attend_slowly(query, keys, values, blocks):
    """Return dense attention under the mask of the blocks."""
    tokens = query.shape[1]
    out = torch.zeros(*query.shape[:2], values.shape[2], dtype=torch.float64)
    for head in range(len(query)):
        group = head // SHARED
        for i in range(tokens):
            read = [j for j in range(i + 1) if blocks[head, i // BLOCK, j // BLOCK]]
            weights = torch.softmax(SCALE * keys[group, read].double() @ query[head, i].double(), dim=0)
            out[head, i] = weights @ values[group, read].double()
    return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("tokens", [1, 4, 23, 24, 25])
def test_the_output_is_that_of_a_mask(tokens, density, dtype):
    query, keys, values = make_prompt(tokens, dtype=dtype)
    values = values[..., :5]
    count = math.ceil(tokens / BLOCK)
    generator = torch.Generator().manual_seed(1)
    picks = torch.rand(len(query), count, count, generator=generator) < density
    blocks = (picks | torch.eye(count, dtype=torch.bool)).tril()
    out = attend_to_blocks(query, keys, values, blocks, BLOCK, SCALE)
    assert out.dtype == dtype
    expected = attend_slowly(query, keys, values, blocks)
    error = 0.03 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(out.double(), expected, atol=error, rtol=error)


def test_the_gradients_are_those_of_a_mask():
    tokens, count = 10, 3
    query, keys, values = tensors = [x.requires_grad_() for x in make_prompt(tokens)]
    blocks = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 1]], dtype=torch.bool)
    blocks = blocks.expand(GROUPS * SHARED, count, count)
    out = attend_to_blocks(query, keys, values, blocks, BLOCK, SCALE)
    grads = torch.autograd.grad(out.square().sum(), tensors)
    keys, values = (x.repeat_interleave(SHARED, dim=0) for x in (keys, values))
    mask = blocks.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)[:, :tokens, :tokens].tril()
    weights = torch.softmax((SCALE * query @ keys.mT).masked_fill(~mask, -math.inf), dim=-1)
    expected = torch.autograd.grad((weights @ values).square().sum(), tensors)
    torch.testing.assert_close(grads, expected)


def softmax(scores):
    most = max(scores)
    weights = [math.exp(score - most) for score in scores]
    return [weight / sum(weights) for weight in weights]


def mean(vectors) -> torch.Tensor:
    return torch.stack(list(vectors)).mean(dim=0)


def cover_slowly(shares, total, least, first=None):
    """Add entries, the largest first, until they sum to `total` and are `least` entries."""
    order = sorted(range(len(shares)), key=lambda i: (i != first, -shares[i]))
    entries: list[int] = []
    for entry in order:
        if sum(shares[i] for i in entries) >= total and len(entries) >= max(least, 1):
            break
        entries.append(entry)
    return entries


def choose_slowly(query, keys, gamma, tau, least):
    """Return the pairs of blocks that one head reads, and whether it is query-aware."""
    tokens = len(query)
    count, last = math.ceil(tokens / BLOCK), range(max(tokens - BLOCK, 0), tokens)
    columns, steps = [0.0] * count, [0.0] * (count + 1)
    for i in last:
        weights = softmax([SCALE * float(query[i] @ keys[j]) for j in range(i + 1)])
        for j, weight in enumerate(weights):
            columns[j // BLOCK] += weight / len(last)
            # Queries at all places inside their block read at this distance.
            for place in range(BLOCK):
                steps[place // BLOCK - (place - (i - j)) // BLOCK] += weight / len(last) / BLOCK
    parts = [range(b * BLOCK, min((b + 1) * BLOCK, tokens)) for b in range(count)]
    mean_keys = [mean([keys[j] for j in part]) for part in parts]
    mean_queries = [mean([query[j] for j in part]) for part in parts]
    end = mean([query[i] for i in last])
    estimate = softmax([SCALE * float(end @ key) for key in mean_keys])
    divergence = 0.0
    for p, q in zip(columns, estimate, strict=True):
        divergence += sum(x * math.log(2 * x / (p + q)) / 2 for x in (p, q) if x > 0)
    is_aware = math.sqrt(max(divergence, 0)) < tau
    share = 0.0 if is_aware else gamma
    vertical = cover_slowly(columns, share, least, 0)
    slash = cover_slowly(steps[:-1], share, least, 0)
    pairs = {(i, j) for i in range(count) for j in range(i + 1) if j in vertical or i - j in slash}
    if is_aware:
        places, shares = [], []
        for i in range(count):
            shares += softmax([SCALE * float(mean_queries[i] @ key) for key in mean_keys[: i + 1]])
            places += [(i, j) for j in range(i + 1)]
        pairs |= {places[entry] for entry in cover_slowly(shares, gamma * count, 1)}
    return pairs, is_aware


@pytest.mark.parametrize("least", [1, 3])
@pytest.mark.parametrize("tau", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("gamma", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("tokens", [24, 27, 33])
def test_the_blocks_are_those_of_the_definition(tokens, gamma, tau, least):
    query, keys, _ = make_prompt(tokens, seed=tokens)
    # Smaller queries of some heads have flatter attention, which the means estimate well.
    query = query * torch.tensor([2, 1, 0.5, 0.3, 0.2, 0.05])[:, None, None]
    blocks = choose_blocks(query, keys, BLOCK, gamma, tau, least, SCORING)
    aware = set()
    for head in range(len(query)):
        pairs, is_aware = choose_slowly(query[head], keys[head // SHARED], gamma, tau, least)
        aware.add(is_aware)
        assert {(i, j) for i, j in blocks[head].nonzero().tolist()} == pairs
    assert aware == {0.0: {False}, 0.2: {True, False}, 1.0: {True}}[tau]


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("tokens", [40, 43])
def test_the_last_queries_keep_the_share_of_their_attention(tokens, gamma):
    query, keys, _ = make_prompt(tokens)
    blocks = choose_blocks(2 * query, keys, BLOCK, gamma, 0.0, 1, SCORING)
    assert not blocks.all()
    for head in range(len(query)):
        weights = attend_from_end(2 * query[head, -BLOCK:], keys[head // SHARED], SCORING)
        read = blocks[head].repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:tokens, :tokens]
        assert float((weights * read[-BLOCK:]).sum()) / BLOCK >= gamma - 1e-9


def test_a_diagonal_needs_one_slash_block():
    weights = torch.eye(24)[-BLOCK:]
    assert sum_distances(weights, BLOCK).tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("offset", range(9))
def test_a_diagonal_counts_for_the_distances_that_it_crosses(offset):
    weights = torch.eye(24).roll(-offset, 1)[-BLOCK:]
    expected = [0.0] * 6
    for row in range(20, 24):
        expected[row // BLOCK - (row - offset) // BLOCK] += 1 / BLOCK
    assert sum_distances(weights, BLOCK).tolist() == expected


@pytest.mark.parametrize("tokens", [24, 26])
def test_shares_sum_to_one(tokens):
    query, keys, _ = make_prompt(tokens)
    weights = attend_from_end(query[0, -BLOCK:], keys[0], SCORING)
    assert float(sum_columns(weights, BLOCK).sum()) == pytest.approx(1)
    assert 0.9 < float(sum_distances(weights, BLOCK).sum()) <= 1 + 1e-9


def test_the_distance_of_distributions():
    """It is 0 for equal ones and the root of log 2 for disjoint ones, also where a share is 0."""
    left, right = torch.tensor([0.5, 0.5, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.25, 0.75])
    assert measure_distance(left, left) == 0
    assert measure_distance(left, right) == pytest.approx(math.sqrt(math.log(2)))
    assert measure_distance(left, right) == measure_distance(right, left)


def test_the_fewest_entries_cover_a_total():
    shares = torch.tensor([0.1, 0.4, 0.2, 0.3])
    assert cover(shares, 0.7, 1).tolist() == [1, 3]
    assert cover(shares, 0.0, 1).tolist() == [1]
    assert cover(shares, 0.0, 3).tolist() == [1, 3, 2]
    assert cover(shares, 0.5, 1, 0).tolist() == [0, 1]
    assert sorted(cover(shares, 2.0, 1).tolist()) == [0, 1, 2, 3]
    assert cover(shares, 0.0, 9).tolist() == [1, 3, 2, 0]
