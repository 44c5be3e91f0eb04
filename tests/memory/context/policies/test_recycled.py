"""Recycled attention that compares queries, against a slow definition with loops over tokens and heads."""

import math
from typing import Any

import pytest
import torch
from by_layer import read

from scrubjay.memory import context
from scrubjay.memory.context.policies.base import Step
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.recycled import RecycledMemory, RefreshedMemory, RefreshKVPolicy

pytestmark = pytest.mark.requires("transformers")

GROUPS, SHARED, WIDTH, SCALE, KERNEL = 2, 3, 8, 0.6, 3


def attend(query, keys):
    """Return the attention weights of one query over a list of keys."""
    scores = [math.exp(SCALE * float(query @ key)) for key in keys]
    return [score / sum(scores) for score in scores]


class SlowRow:
    """Definition for one row; a copy is a list of token numbers for each key head."""

    def __init__(self, policy):
        self.policy = policy
        self.queries, self.keys, self.values = [], [], []
        self.copies, self.since = [[] for _ in range(GROUPS)], 0
        self.mean: Any = None
        self.full_steps = []

    def read(self, query, keys, values, is_prompt):
        """Add a token and return its output for each query head; a token of a prompt is a full step."""
        number = len(self.keys)
        self.keys.append(keys)
        self.values.append(values)
        mean = torch.stack([query[head] for head in range(len(query))]).mean(dim=0)
        is_full = is_prompt
        if not is_prompt and self.since == self.policy.stride:
            cosine = float(mean @ self.mean) / float(mean.norm() * self.mean.norm())
            is_full, self.since = cosine < self.policy.similarity, 0
        self.since = 1 if is_prompt else self.since + 1
        tokens = [list(range(number + 1)) if is_full else [*copy, number] for copy in self.copies]
        out, best = [], [[0.0] * len(tokens[group]) for group in range(GROUPS)]
        for head in range(GROUPS * SHARED):
            group = head // SHARED
            weights = attend(query[head], [self.keys[token][group] for token in tokens[group]])
            pairs = zip(weights, tokens[group], strict=True)
            out.append(sum(weight * self.values[token][group] for weight, token in pairs))
            best[group] = [max(pair) for pair in zip(best[group], weights, strict=True)]
        for group in range(GROUPS):
            self.copies[group] = (self.select if is_full else self.drop)(tokens[group], best[group])
        if is_full:
            self.mean = mean
            self.full_steps.append(number)
        return torch.stack(out)

    def select(self, tokens, weights):
        sinks, reach = self.policy.num_sinks, KERNEL // 2
        weights = [0.0] * sinks + weights[sinks:]
        worth = [max(weights[max(token - reach, 0) : token + reach + 1]) for token in tokens]
        others = sorted(tokens[sinks:], key=lambda token: (-worth[token], token))
        return sorted([*tokens[:sinks], *others[: max(self.policy.budget - sinks, 0)]])

    def drop(self, tokens, weights):
        if len(tokens) > self.policy.budget:
            places = range(self.policy.num_sinks, len(tokens) - 1)
            tokens.pop(min(places, key=lambda place: weights[place]))
        return tokens


def make_step(first, last, padding):
    """Return columns `first` to `last` as a step; each row begins with padding."""
    time = torch.arange(first, last) - padding[:, None]
    before, after = ((torch.full_like(padding, end) - padding).clamp(min=0) for end in (first, last))
    return Step(time, time.clamp(min=0), first, before, after, bool(padding.any()), None)


@pytest.mark.parametrize("similarity", [-1.0, 0.0, 0.2, 1.0])
@pytest.mark.parametrize("padding", [[0, 0], [3, 0], [7, 0]])
@pytest.mark.parametrize("prompt", [9, 14])
def test_the_copy_and_the_output_are_those_of_the_definition(similarity, padding, prompt):
    torch.manual_seed(3)
    policy = RefreshKVPolicy(budget=8, stride=3, kernel=KERNEL, num_sinks=2, similarity=similarity)
    memory = policy.build()
    length, padding = 40, torch.tensor(padding)
    query = torch.randn(2, GROUPS * SHARED, length, WIDTH, dtype=torch.float64)
    keys, values = (torch.randn(2, GROUPS, length, WIDTH, dtype=torch.float64) for _ in range(2))
    rows = [SlowRow(policy) for _ in padding]
    for row, own in enumerate(rows):
        for column in range(int(padding[row]), prompt):
            own.read(query[row, :, column], keys[row, :, column], values[row, :, column], True)
    whole = (query, keys, values)

    def attend_part(first, last):
        q, k, v = (x[:, :, first:last] for x in whole)
        return memory.attend(q, k, v, make_step(first, last, padding), Scoring(SCALE))

    attend_part(0, prompt)
    for column in range(prompt, length):
        out = attend_part(column, column + 1)
        copy = memory.state["copied_keys"]
        assert copy.shape[2] == min(policy.copy_size, column + 1)
        for row, own in enumerate(rows):
            expected = own.read(query[row, :, column], keys[row, :, column], values[row, :, column], False)
            torch.testing.assert_close(out[row, :, 0], expected)
            for group in range(GROUPS):
                tokens = [int(padding[row]) + token for token in own.copies[group]]
                used = copy[row, group]
                if "copied_valid" in memory.state:
                    used = used[memory.state["copied_valid"][row]]
                assert torch.equal(used, keys[row, group, tokens])
    places = [{step + int(padding[row]) for step in own.full_steps} for row, own in enumerate(rows)]
    places = [{step for step in own if step >= prompt} for own in places]
    every = set(range(prompt + 2, length, 3))
    if similarity in (-1, 1):
        assert places == [every if similarity == 1 else set()] * 2
    else:
        assert places[0] != places[1]
        assert all(own < every for own in places)


@pytest.fixture
def full_steps(monkeypatch):
    """Return a list that gets an entry for each full step of a layer."""
    steps, refresh = [], RefreshedMemory._refresh

    def record(self, query, scoring):
        steps.append(self)
        return refresh(self, query, scoring)

    monkeypatch.setattr(RefreshedMemory, "_refresh", record)
    return steps


def count_full_steps(full_steps, model, ids, similarity):
    """Return the number of full steps of the layers after a prompt of 20 tokens."""
    policy = context.make("refreshkv", budget=8, stride=4, num_sinks=2, similarity=similarity)
    full_steps.clear()
    read(model, context.PolicyCache(policy, model), ids, range(20, ids.shape[1]))
    return len(full_steps) - len(model.model.layers)


def test_one_refreshes_at_every_stride_and_minus_one_never(full_steps, tiny_llama, text):
    model = tiny_llama()
    for ids in (text[:1], torch.full((1, 40), 5)):
        assert count_full_steps(full_steps, model, ids, 1.0) == 2 * (20 // 4)
        assert count_full_steps(full_steps, model, ids, -1.0) == 0


def test_a_repeated_text_is_refreshed_less_often(full_steps, tiny_llama, text):
    """The queries of a repeated token differ only by their rotations."""
    model = tiny_llama()
    counts = [count_full_steps(full_steps, model, ids, 0.1) for ids in (torch.full((1, 40), 5), text[:1])]
    assert counts[0] < counts[1]


@pytest.mark.parametrize("end", range(21, 27))
def test_a_cache_that_is_saved_between_full_steps_goes_on(end, tiny_llama, text, tmp_path):
    model = tiny_llama()
    policy = context.make("refreshkv", budget=8, stride=4, num_sinks=2, similarity=0.5)
    cache = context.PolicyCache(policy, model)
    read(model, cache, text[:, :end], range(20, end))
    cache.save(tmp_path / "cache")
    again = context.PolicyCache.load(tmp_path / "cache", policy, model)
    assert again.nbytes() == cache.nbytes() == policy.nbytes(end, cache.shape())
    rest = text[:, end:]
    assert torch.equal(*(read(model, each, rest, range(1, rest.shape[1])) for each in (cache, again)))


def test_without_a_similarity_the_policy_is_recycled(tiny_llama, text):
    model, fields = tiny_llama(), {"budget": 12, "stride": 4, "num_sinks": 2}
    recycled, other = context.make("recycled", **fields), RefreshKVPolicy(**fields, similarity=None)
    assert type(other.build()) is RecycledMemory
    outputs = (
        read(model, context.PolicyCache(each, model), text, range(20, 40)) for each in (recycled, other)
    )
    assert torch.equal(*outputs)


def test_the_step_after_a_crop_is_full(full_steps, tiny_llama, text):
    model = tiny_llama()
    policy = context.make("refreshkv", budget=8, stride=4, num_sinks=2, similarity=-1.0)
    cache = context.PolicyCache(policy, model)
    read(model, cache, text[:, :30], range(20, 30))
    cache.crop(-3)
    full_steps.clear()
    read(model, cache, text[:, 27:29], [1])
    assert len(full_steps) == 2


@pytest.mark.parametrize("similarity", [1.5, -2, math.nan])
def test_a_similarity_that_is_no_cosine_is_refused(similarity):
    with pytest.raises(ValueError, match=f"similarity={similarity}: must be from -1 to 1"):
        context.make("refreshkv", similarity=similarity)


def test_a_copy_of_nothing_but_first_tokens_is_refused():
    with pytest.raises(ValueError, match="budget=4: must be at least 5, for 4 sinks and a token"):
        context.make("refreshkv", budget=4)
    assert context.make("refreshkv", budget=5, num_sinks=4)
