"""KVzip against a slow definition: the attention of a model that repeats a text."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from by_layer import read
from families import make
from torch import Tensor

from scrubjay.memory import context
from scrubjay.memory.context import ScoredPolicy

pytestmark = pytest.mark.requires("transformers")


SMALL_KVZIP = {"budget": 14, "window": 3, "num_sinks": 2, "chunk": 9, "instruction": (5, 6)}


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_kvzip_keeps_the_tokens_that_are_read_when_the_text_is_repeated(family, tiny_llama, text):
    """A model of one layer repeats the text in two chunks; one threshold holds for its heads."""
    if family == "gemma3":
        model = make("gemma3")
    else:
        model = tiny_llama(num_hidden_layers=2, initializer_range=0.6)
    policy: Any = context.make("kvzip", budget=14, window=3, num_sinks=2, chunk=23, instruction=(5, 6, 7))
    cache = context.PolicyCache(policy, model, track_tokens=True)
    ids = text[:1]
    read(model, cache, ids)
    tokens = cache.get_retained_tokens()
    scores = slow_repetition(model, policy, ids[0].tolist())
    layers = sorted(scores)
    table = torch.stack([scores[layer] for layer in layers])
    table[..., :2] = table[..., -3:] = float("inf")
    threshold = table.flatten().sort(descending=True).values[len(layers) * table.shape[1] * 14 - 1]
    for index, layer in enumerate(layers):
        assert torch.equal(tokens[layer].stored_mask[0], table[index] >= threshold)


def slow_repetition(model, policy, ids: list[int]) -> dict[int, Tensor]:
    """Return the scores of KVzip by layer, "key_heads tokens", from the attention of the full model."""
    scores = {}
    count = len(ids)
    for first in range(0, count, policy.chunk):
        chunk = ids[first : first + policy.chunk]
        whole = torch.tensor([[*ids, *policy.instruction, *chunk]])
        keys, queries, scale = record_keys_and_queries(model, whole)
        for layer in keys:
            k, q = keys[layer][0], queries[layer][0]
            groups, shared = len(k), len(q) // len(k)
            table = scores.setdefault(layer, torch.zeros(groups, count))
            sinks = list(range(min(policy.num_sinks, first)))
            columns = [*sinks, *range(first, first + len(chunk)), *range(count, whole.shape[1])]
            for head in range(len(q)):
                for place in range(count, whole.shape[1]):
                    visible = [column for column in columns if column <= place]
                    weights = torch.softmax(
                        torch.stack([q[head, place] @ k[head // shared, c] for c in visible]) * scale[layer],
                        0,
                    )
                    own = weights[len(sinks) : len(sinks) + len(chunk)]
                    table[head // shared, first : first + len(chunk)] = table[
                        head // shared, first : first + len(chunk)
                    ].maximum(own)
    return scores


def record_keys_and_queries(model, ids):
    """Return the rotated keys and queries and the scale of the layers with full attention, by layer."""
    keys, queries, scale = {}, {}, {}

    @dataclass(frozen=True)
    class Recorder(ScoredPolicy):
        queries: ClassVar = "call"

        def score(self, layer_keys, values, layer_queries, *, module, scoring):
            index = module.layer_idx
            keys[index], queries[index], scale[index] = layer_keys, layer_queries, scoring.scale
            return layer_keys[..., 0]

    read(model, context.PolicyCache(Recorder(budget=12, window=4, num_sinks=2), model), ids)
    return keys, queries, scale


def test_learned_sinks_are_scored_in_a_second_prompt(text):
    """The heads of a layer then have different numbers of tokens."""
    model: Any = make("gpt_oss")
    policy = context.make("kvzip", **SMALL_KVZIP)
    cache = context.PolicyCache(policy, model)
    logits = read(model, cache, text, [25])
    (layer,) = [layer for layer in cache.attention_layers if layer.sees_everything]
    assert len(layer.memory.state["lengths"].unique()) > 1
    alone = read(model, context.PolicyCache(policy, model), text[1:], [25])
    torch.testing.assert_close(logits[1:], alone, atol=1e-4, rtol=1e-4)


def test_every_head_keeps_its_share_under_kvzip(tiny_llama, text):
    model = tiny_llama(initializer_range=0.6)
    policy = context.make("kvzip", **SMALL_KVZIP, safeguard=1.0)
    cache = context.PolicyCache(policy, model)
    read(model, cache, text)
    assert all((layer.memory.state["lengths"] == 14).all() for layer in cache.attention_layers)


def test_a_tokenizer_gives_the_instruction_that_is_not_set():
    def tokenize(text):
        return [len(word) for word in text.split()]

    policy = context.make("kvzip", budget=64)
    policy_with_ids: Any = policy.for_tokenizer(tokenize)
    assert policy_with_ids == context.make("kvzip", budget=64, instruction=(6, 3, 8, 7, 8))
    assert policy_with_ids.for_tokenizer(lambda text: [0]) == policy_with_ids
    for ids in ((), (3,)):
        own = context.make("kvzip", budget=64, instruction=ids)
        assert own.for_tokenizer(tokenize) == own
    outer: Any = context.make("flexprefill", policy=policy).for_tokenizer(tokenize)
    assert outer.policy == policy_with_ids
