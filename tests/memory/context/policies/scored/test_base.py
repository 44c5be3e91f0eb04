"""Policies that keep the tokens with the highest scores, against slow definitions of their papers."""

import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from by_layer import close, pad, read
from families import make
from torch import Tensor

from scrubjay.memory import context
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.flat_table import RaggedTokens
from scrubjay.memory.context.policies.rotary import PairLayout, Rotary
from scrubjay.memory.context.policies.scored.base import ScoredMemory, ScoredPolicy

pytestmark = pytest.mark.requires("transformers")

GROUPS, SHARED, TOKENS, QUERIES, WIDTH = 2, 3, 40, 6, 8


@pytest.fixture
def inputs():
    torch.manual_seed(5)
    keys, values = (torch.randn(1, GROUPS, TOKENS, WIDTH, dtype=torch.float64) for _ in range(2))
    return keys, values, torch.randn(1, GROUPS * SHARED, QUERIES, WIDTH, dtype=torch.float64)


SCORING = Scoring(WIDTH**-0.5)


def slow_weights(keys: Tensor, queries: Tensor) -> Tensor:
    """Return the causal attention weights of the last queries, "heads queries tokens", by loops."""
    weights = torch.zeros(GROUPS * SHARED, QUERIES, TOKENS, dtype=torch.float64)
    for head, query in itertools.product(range(GROUPS * SHARED), range(QUERIES)):
        reach = TOKENS - QUERIES + query + 1
        exps = [
            math.exp(float(keys[0, head // SHARED, t] @ queries[0, head, query]) / WIDTH**0.5)
            for t in range(reach)
        ]
        weights[head, query, :reach] = torch.tensor(exps) / sum(exps)
    return weights


def test_keydiff_is_minus_the_cosine_to_the_mean_of_unit_keys(inputs):
    keys, values, queries = inputs
    policy: Any = context.make("keydiff")
    scores = policy.score(keys, values, queries)
    for group in range(GROUPS):
        units = [key / key.norm() for key in keys[0, group]]
        mean = torch.stack(units).mean(dim=0)
        expected = [-float(unit @ mean / mean.norm()) for unit in units]
        torch.testing.assert_close(scores[0, group], torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_tova_is_the_attention_of_the_last_token_over_all_heads(inputs):
    keys, values, queries = inputs
    policy: Any = context.make("tova")
    scores = policy.score(keys, values, queries, scoring=SCORING)
    expected = slow_weights(keys, queries)[:, -1].mean(dim=0)
    for group in range(GROUPS):
        torch.testing.assert_close(scores[0, group], expected)


def test_cake_has_the_mean_and_the_variance_of_the_attention(inputs):
    keys, values, queries = inputs
    policy: Any = context.make(
        "cake", window=QUERIES, kernel=5, gamma=200.0, tau_entropy=1.6, tau_variance=0.4
    )
    scores = policy.score(keys, values, queries, scoring=SCORING)
    weights = slow_weights(keys, queries)
    prefix = weights[..., : TOKENS - QUERIES]
    entropy = -(prefix * (prefix + 1e-10).log()).sum()
    expected = entropy ** (1 / 1.6) * prefix.var(dim=1).sum() ** (1 / 0.4)
    torch.testing.assert_close(policy.measure(keys, queries, SCORING), expected[None])
    for group in range(GROUPS):
        own = prefix[group * SHARED : (group + 1) * SHARED]
        one = (own.mean(dim=1) + 200 * own.var(dim=1)).mean(dim=0).tolist()
        around = [0.0, 0.0, *one, *[0.0] * (QUERIES + 2)]
        means = [sum(around[t : t + 5]) / 5 for t in range(TOKENS)]
        torch.testing.assert_close(
            scores[0, group, : TOKENS - QUERIES], torch.tensor(means).double()[: TOKENS - QUERIES]
        )


def test_cake_weighs_uniform_attention_by_its_entropy_alone():
    policy: Any = context.make("cake", window=4)
    weights = torch.full((1, 3, 4, 104), 1 / 104)
    assert policy.prefer(weights).tolist() == [0]
    assert policy.prefer(weights[..., :4]).tolist() == [1]


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate pairs (i, i + half) of the last axis, as Llama does."""
    half = WIDTH // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)


def test_expected_attention_is_the_mean_weight_of_normal_queries(inputs):
    """Rotations are averaged over the next positions as matrices, as the authors do."""
    keys, values, queries = inputs
    frequencies = torch.tensor([1.0, 0.3, 0.1, 0.01], dtype=torch.float64)
    layout = PairLayout(WIDTH // 2)
    rotary = Rotary(layout, lambda: frequencies, torch.float64)
    policy: Any = context.make("expected_attention", num_sinks=2, future=9, epsilon=0.01)
    options = {"scoring": SCORING, "rotary": rotary, "position": TOKENS}
    scores = policy.score(keys, values, layout.interleave(queries), **options)
    units = torch.eye(WIDTH, dtype=torch.float64)
    # Its rows are the rotated unit vectors.
    matrix = torch.stack([rotate(units, (TOKENS + t) * frequencies) for t in range(9)]).mean(dim=0)
    for group in range(GROUPS):
        weights = torch.zeros(TOKENS, dtype=torch.float64)
        for head in range(group * SHARED, (group + 1) * SHARED):
            own = queries[0, head, 2:]
            mean = own.mean(dim=0)
            covariance = (own - mean).T @ (own - mean) / len(own)
            mean, covariance = mean @ matrix, matrix.T @ covariance @ matrix
            logits = [key @ mean / WIDTH**0.5 + key @ covariance @ key / WIDTH / 2 for key in keys[0, group]]
            weights += torch.softmax(torch.stack(logits), dim=0) / SHARED
        expected = (weights + 0.01) * values[0, group].norm(dim=-1)
        torch.testing.assert_close(scores[0, group].double(), expected, atol=1e-5, rtol=1e-4)


def test_budgets_of_pyramidkv_fall_linearly_and_keep_their_mean():
    policy: Any = context.make("pyramidkv", budget=532, window=32)
    budgets = [policy.for_layer(index, 30).num_tokens - 32 for index in range(30)]
    assert budgets[0] == 2 * 500 - 25
    assert budgets[-1] == 500 // 20
    assert sum(budgets) == pytest.approx(30 * 500, abs=15)
    steps = [a - b for a, b in itertools.pairwise(budgets)]
    assert max(steps) - min(steps) <= 1


@pytest.mark.parametrize("safeguard", [0, 0.2, 1])
def test_adaptive_heads_keep_the_best_of_all_heads_and_their_share(safeguard):
    torch.manual_seed(3)
    lengths = torch.tensor([[30, 12], [9, 20]])
    count = int(lengths.sum())
    tokens = RaggedTokens(torch.randn(count, 2), torch.randn(count, 3), lengths)
    scores = torch.randn(count)
    policy: Any = context.make("adakv", budget=10, window=2, num_sinks=1, safeguard=safeguard)
    memory = ScoredMemory(policy)
    stays = memory._choose(tokens, scores, torch.tensor([20, 20]))
    for row, (parts, marks) in enumerate(zip(scores.split([42, 29]), stays.split([42, 29]), strict=True)):
        heads = list(zip(parts.split(lengths[row].tolist()), marks.split(lengths[row].tolist()), strict=True))
        least = int(10 * safeguard)
        safe = {
            (h, t) for h, (own, _) in enumerate(heads) for t in own.argsort(descending=True)[:least].tolist()
        }
        rest = sorted(
            (
                (float(own[t]), h, t)
                for h, (own, _) in enumerate(heads)
                for t in range(len(own))
                if (h, t) not in safe
            ),
            reverse=True,
        )
        expected = safe | {(h, t) for _, h, t in rest[: 20 - len(safe)]}
        assert {
            (h, t) for h, (_, mark) in enumerate(heads) for t in mark.nonzero().flatten().tolist()
        } == expected


@dataclass(frozen=True)
class AlternatePolicy(ScoredPolicy):
    """Prefer even tokens in even heads, in twenty lines and without keyword arguments."""

    def score(self, keys, values, queries):
        return (torch.arange(keys.shape[2]) % 2 == 0).float().expand(keys.shape[:3])


def test_a_policy_of_ones_own_needs_only_a_score(tiny_llama, text):
    model = tiny_llama()
    cache = context.PolicyCache(AlternatePolicy(budget=12, window=4, num_sinks=2), model)
    read(model, cache, text)
    tokens = cache.attention_layers[0].memory
    assert tokens.count_retained(torch.tensor([40, 40])).tolist() == [12, 12]


@dataclass(frozen=True)
class SignPolicy(ScoredPolicy):
    """Evict all tokens whose keys have a negative first coordinate, and prefer later ones of the others."""

    exact_bytes: ClassVar = False

    def score(self, keys, values, queries):
        places = torch.arange(keys.shape[2]).expand(keys.shape[:3]).float()
        return places.masked_fill(keys[..., 0] < 0, float("-inf"))


@pytest.mark.parametrize("cuts", [[], [25]], ids=["prompt", "prompts"])
@pytest.mark.parametrize("heads", ["equal", "adaptive"])
def test_minus_infinity_evicts_tokens_within_the_budget(heads, cuts, tiny_llama, text):
    """Every head of every row keeps its own number of tokens, also after a second prompt."""
    model, (ids, mask) = tiny_llama(), pad(text, 6)
    policy = SignPolicy(budget=40, window=4, num_sinks=2, heads=heads)
    full = context.PolicyCache(context.make("full"), model)
    read(model, full, ids, mask=mask)
    all_keys = full.attention_layers[0].memory.state["keys"]
    cache = context.PolicyCache(policy, model)
    read(model, cache, ids, cuts, mask)
    expected = []
    for row, head in itertools.product(range(2), range(2)):
        padding = 6 * (row == 0)
        keys, stays, before = all_keys[row, head, padding:], [], 0
        for end in [cut - padding for cut in [*cuts, 40]]:
            stays, before = [*stays, *range(before, end)], end
            stays = [t for t in stays if keys[t, 0] >= 0 or t in stays[:2] or t in stays[-4:]]
        expected.append(len(stays))
    assert cache.attention_layers[0].memory.state["lengths"].flatten().tolist() == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("heads", ["equal", "adaptive"])
def test_heads_of_different_lengths_stay_within_the_budget(heads, tiny_llama, text):
    model, (ids, mask) = tiny_llama(), pad(text, 6)
    policy = SignPolicy(budget=12, window=4, num_sinks=2, heads=heads, safeguard=0.0)
    cache = context.PolicyCache(policy, model)
    for end in (25, *range(26, 41)):
        with torch.no_grad():
            model(ids[:, cache.get_seq_length() : end], cache=cache, attention_mask=mask[:, :end])
        lengths = torch.stack([layer.memory.state["lengths"] for layer in cache.attention_layers])
        assert (lengths.sum(dim=2) <= 2 * (12 if end == 25 else 12 + 3)).all()
        assert cache.nbytes() <= policy.nbytes(end, cache.shape(), at_once=end == 25) + 16
    assert len(lengths.unique()) > 1


@pytest.mark.parametrize("name", ["adakv", "snapkv"])
@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_a_row_without_a_token_yet_and_heads_with_learned_sinks_are_scored(family, name, text):
    """One row begins with padding alone. Heads with different numbers of tokens are scored one by one."""
    model = make(family)
    policy: Any = context.make(name, budget=12, window=4, num_sinks=1, kernel=1)
    ids, mask = pad(text, 21)
    cuts = [20, *range(36, 40)]
    cache = context.PolicyCache(policy, model)
    logits = read(model, cache, ids, cuts, mask)
    close(logits[:1, 21:], read(model, context.PolicyCache(policy, model), text[:1, :19], range(15, 19)))
    close(logits[1:], read(model, context.PolicyCache(policy, model), text[1:2], cuts))
    lengths = torch.stack([layer.memory.state["lengths"] for layer in full_layers(cache)])
    assert (lengths[..., 0] != lengths[..., 1]).any() == (name == "adakv")


def full_layers(cache) -> list[Any]:
    return [layer for layer in cache.attention_layers if layer.sees_everything]


def test_scores_of_another_shape_are_refused(tiny_llama, text):
    class Wrong(AlternatePolicy):
        def score(self, keys, values, queries):
            return keys.norm(dim=-1)[:, 0]

    model = tiny_llama()
    with pytest.raises(ValueError, match=r"Wrong.score returned the shape \(2, 40\); expected \(2, 2, 40\)"):
        read(model, context.PolicyCache(Wrong(budget=12, window=4, num_sinks=2), model), text)


def test_heads_with_different_budgets_free_their_memory(tiny_llama, text):
    """After a prompt a layer holds exactly its budget, split unevenly among its heads."""
    model = tiny_llama(initializer_range=0.6)
    policy: Any = context.make("adakv", budget=14, window=4, num_sinks=1, safeguard=0.0, kernel=1)
    cache = context.PolicyCache(policy, model)
    ids, mask = pad(text, 6)
    read(model, cache, ids, mask=mask)
    lengths = torch.stack([layer.memory.state["lengths"] for layer in cache.attention_layers])
    assert lengths.sum(dim=2).unique().tolist() == [28]
    assert (lengths != 14).any()
    assert isinstance(cache.count, Tensor)
    assert cache.nbytes() - cache.count.nbytes == policy.nbytes(40, cache.shape())


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("keydiff", {"heads": "some"}, "heads='some': must be 'equal' or 'adaptive'"),
        ("keydiff", {"safeguard": 1.5}, r"safeguard=1\.5: must be from 0 to 1"),
        ("keydiff", {"budget": 35}, "budget=35: must be at least 36"),
        ("tova", {"heads": "adaptive"}, "heads='adaptive': must be 'equal'"),
        ("kvzip", {"heads": "equal"}, "heads='equal': must be 'adaptive'"),
        ("kvzip", {"chunk": 0}, "chunk=0: must be at least 1"),
        ("kvzip", {"instruction": (3, -1)}, r"instruction=\(3, -1\): token ids must not be negative"),
        ("cake", {"budget": 32}, "budget=32: must be at least 33"),
        ("cake", {"gamma": -1.0}, r"gamma=-1\.0: must be finite and not negative"),
        ("cake", {"tau_entropy": 0.0}, r"tau_entropy=0\.0: must be positive"),
        ("pyramidkv", {"steepness": 0.5}, r"steepness=0\.5: must be at least 1"),
        ("expected_attention", {"epsilon": -0.1}, r"epsilon=-0\.1: must not be negative"),
    ],
)
def test_invalid_fields_are_reported(name, fields, message):
    with pytest.raises(ValueError, match=message):
        context.make(name, **fields)


def test_short_rows_of_a_batch_keep_the_share_of_their_layer(tiny_llama, text, monkeypatch):
    """A row that fits the mean budget still exceeds the smaller share of a layer."""
    policy = context.make("cake", budget=12, window=4)
    monkeypatch.setattr(type(policy), "allocate", lambda self, stats, shape: [8, 16][: len(stats)])
    model = tiny_llama()
    cache = context.PolicyCache(policy, model)
    ids, mask = pad(text, 30)
    read(model, cache, ids, mask=mask)
    lengths = [layer.memory.state["lengths"].tolist() for layer in cache.attention_layers]
    assert lengths == [[[8, 8], [8, 8]], [[10, 10], [16, 16]]]


@pytest.mark.parametrize("name", ["pyramidkv", "adakv", "keydiff"])
def test_bytes_of_a_model_with_windows_are_as_stated(name):
    model = make("gemma3")
    policy = context.make(name, budget=12, window=4, num_sinks=2)
    cache = context.PolicyCache(policy, model)
    read(model, cache, torch.arange(2, 42)[None])
    layers = [layer for layer in cache.attention_layers if layer.sees_everything]
    assert len(layers) < len(cache.attention_layers)
    assert sum(layer.nbytes() for layer in layers) == policy.nbytes(40, cache.shape())


def test_only_a_cache_without_evictions_is_cropped(tiny_llama, text):
    model = tiny_llama()
    cache = context.PolicyCache(context.make("keydiff", budget=12, window=4, num_sinks=2), model)
    read(model, cache, text[:, :12])
    cache.crop(-12)
    assert cache.nbytes() == cache.get_seq_length() == 0
    read(model, cache, text[:, :13])
    with pytest.raises(ValueError, match="KeyDiffPolicy has evicted tokens that the shorter text may need"):
        cache.crop(-1)


@pytest.mark.parametrize("family", ["llama", "falcon", "gemma3", "gpt_oss"])
def test_a_policy_may_read_the_inputs_of_the_attention_layers(family, text):
    """Without padding and with it: keys follow from the inputs by the layer's own projection."""
    calls = []

    @dataclass(frozen=True)
    class Reader(ScoredPolicy):
        reads_hidden: ClassVar = True

        def score(self, keys, values, queries, *, module, hidden):
            calls.append((keys, hidden))
            return keys[..., 0]

    model = make(family)
    ids, mask = pad(text, 6)
    read(model, context.PolicyCache(Reader(budget=12, window=4, num_sinks=2), model), ids, mask=mask)
    assert len(calls) == 2 * sum(
        layer.sees_everything for layer in context.PolicyCache(Reader(12, 4), model).attention_layers
    )
    for keys, hidden in calls:
        assert hidden.shape == (1, keys.shape[2], model.config.hidden_size)
        assert hidden.any()


def test_a_layer_that_does_not_pass_its_inputs_is_refused(tiny_llama, text, monkeypatch):
    @dataclass(frozen=True)
    class Reader(AlternatePolicy):
        reads_hidden: ClassVar = True

    model = tiny_llama()
    monkeypatch.setattr("scrubjay.memory.context.cache.record_inputs", lambda decoder: None)
    cache = context.PolicyCache(Reader(budget=12, window=4, num_sinks=2), model)
    with pytest.raises(
        ValueError, match=r"Reader reads the inputs .* LlamaAttention does not pass them; use"
    ):
        read(model, cache, text)
