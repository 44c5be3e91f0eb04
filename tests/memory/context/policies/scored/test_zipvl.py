"""ZipVL against a slow definition: the tokens that receive most of the attention of some queries."""

from typing import Any

import pytest
import torch
from by_layer import pad, read
from families import make
from transformers import DynamicCache

from scrubjay.memory import context
from scrubjay.memory.context.policies.dense import Scoring

pytestmark = pytest.mark.requires("transformers")

SMALL: dict[str, Any] = {"budget": 40, "window": 3, "num_sinks": 2, "probes_last": 6, "probes_random": 5}


def choose_slowly(weights, policy) -> set[int]:
    """Return the tokens of a layer that are kept, from its attention weights, "heads queries tokens"."""
    length = weights.shape[1]
    probes = policy.choose_probes(length).tolist()
    sums = [float(weights[:, probes, token].sum()) for token in range(length)]
    number, total = 0, 0.0
    for one in sorted(sums, reverse=True):
        number, total = number + 1, total + one
        if total >= policy.tau * sum(sums):
            break
    means = [one / sum(probe >= token for probe in probes) for token, one in enumerate(sums)]
    best = sorted(range(length), key=lambda token: -means[token])[:number]
    safe = {*range(policy.num_sinks), *range(length - policy.window, length)}
    return safe | set(best)


@pytest.mark.parametrize("tau", [0.5, 0.9, 0.975])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt_oss"])
@torch.no_grad()
def test_each_layer_keeps_the_tokens_that_its_attention_needs(family, tau, text):
    """Also with soft caps, learned sinks and sliding windows, and for a row with padding."""
    model: Any = make(family)
    policy: Any = context.make("zipvl", tau=tau, **SMALL)
    ids, mask = pad(text, 9)
    cache = context.PolicyCache(policy, model, track_tokens=True)
    read(model, cache, ids, mask=mask)
    tokens_by_layer, numbers = cache.get_retained_tokens(), set()
    model.set_attn_implementation("eager")
    for row in range(2):
        own = ids[row : row + 1, mask[row].bool()]
        out = model(own, cache=DynamicCache(config=model.config), output_attentions=True)
        for layer in cache.attention_layers:
            if layer.sees_everything:
                expected = choose_slowly(out.attentions[layer.index][0].double(), policy)
                for head in tokens_by_layer[layer.index].stored_mask[row]:
                    assert set(head.nonzero().flatten().tolist()) == expected
                numbers.add(len(expected))
    assert max(numbers) < 40


def test_the_number_follows_from_the_sums_and_the_tokens_from_the_means():
    """Three queries of one head: the first tokens have the largest sums, and the last the largest means."""
    policy: Any = context.make("zipvl", tau=0.5, **SMALL | {"probes_last": 3, "probes_random": 0})
    weights = torch.tensor([[0.55, 0.45, 1.0, 1.0], [0.25, 0.25, 0.5, 1.0], [0.1, 0.1, 0.2, 0.6]])
    # Unit keys make the logits equal to the queries, whose softmax is the weights.
    queries = weights.log()[None, None]
    keys = torch.eye(4)[None, None]
    scores = policy.score(keys, keys, queries, scoring=Scoring(1.0))[0, 0]
    # The sums are .9, .8, .7 and .6, so two of them reach half. The means are .3, .27, .35 and .6.
    assert scores.isfinite().tolist() == [False, False, True, True]
    torch.testing.assert_close(scores[2:], torch.tensor([0.35, 0.6]))


def test_one_hot_attention_keeps_one_token_besides_the_safe_ones():
    policy: Any = context.make("zipvl", **SMALL | {"probes_random": 0})
    keys = torch.zeros(1, 2, 30, 8)
    keys[:, :, 11] = 100
    scores = policy.score(keys, keys, torch.ones(1, 4, 30, 8), scoring=Scoring(1.0))
    assert scores[0, 0].isfinite().nonzero().flatten().tolist() == [11]
    assert torch.equal(scores[:, 0], scores[:, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_whole_share_keeps_all_tokens_within_the_budget(dtype, tiny_llama, text):
    model = tiny_llama(dtype=dtype)
    for budget in (40, 14):
        policy: Any = context.make("zipvl", **SMALL | {"budget": budget, "tau": 1.0})
        cache = context.PolicyCache(policy, model)
        read(model, cache, text)
        assert cache.dropped_tokens == 40 - budget
        assert cache.nbytes() == policy.nbytes(40, cache.shape())


def test_the_bytes_before_are_a_bound_and_those_after_are_exact(tiny_llama, text):
    model = tiny_llama(initializer_range=0.6)
    policy: Any = context.make("zipvl", tau=0.6, **SMALL)
    cache = context.PolicyCache(policy, model)
    ids, mask = pad(text, 6)
    read(model, cache, ids, mask=mask)
    columns = sum(int(layer.memory.state["lengths"].sum()) for layer in cache.attention_layers)
    states = [layer.memory.state for layer in cache.attention_layers]
    others = sum(state["lengths"].nbytes + state["queries"].nbytes for state in states)
    assert isinstance(cache.count, torch.Tensor)
    assert cache.nbytes() == columns * 2 * 8 * 4 + others + cache.count.nbytes
    assert cache.nbytes() < policy.nbytes(40, cache.shape())


def test_generation_stays_within_the_stated_bound(tiny_llama, text):
    model = tiny_llama()
    policy: Any = context.make("zipvl", tau=0.8, **SMALL | {"budget": 12, "window": 4})
    cache = context.PolicyCache(policy, model)
    read(model, cache, text[:, :20])
    for end in range(21, 41):
        read(model, cache, text[:, end - 1 : end])
        assert cache.nbytes() <= policy.nbytes(end, cache.shape(), at_once=False)
        lengths = torch.stack([layer.memory.state["lengths"] for layer in cache.attention_layers])
        assert int(lengths.max()) <= 12 + 4 - 1


@pytest.mark.parametrize("count", [1, 3, 6, 7, 12, 100])
def test_probes_are_the_last_queries_and_others_and_repeat(count):
    policy: Any = context.make("zipvl", **SMALL)
    probes = policy.choose_probes(count).tolist()
    assert probes == policy.choose_probes(count).tolist() == sorted(set(probes))
    assert len(probes) == min(count, 11)
    assert probes[-min(count, 6) :] == list(range(max(count - 6, 0), count))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tau": 0.0}, r"tau=0\.0: must be above 0 and at most 1"),
        ({"tau": 1.5}, r"tau=1\.5: must be above 0 and at most 1"),
        ({"tau": float("nan")}, "tau=nan: must be above 0"),
        ({"probes_last": 0}, "probes_last=0: must be at least 1"),
        ({"probes_random": -1}, "probes_random=-1: must be at least 0"),
        ({"heads": "adaptive"}, "heads='adaptive': must be 'equal'"),
    ],
)
def test_invalid_fields_are_reported(fields, message):
    with pytest.raises(ValueError, match=message):
        context.make("zipvl", **fields)
