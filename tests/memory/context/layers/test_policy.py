"""Transformers cache layers: they count all tokens, and use the policy only for full attention."""

import pytest
import torch
from families import make

from scrubjay.memory import context
from scrubjay.memory.context import PolicyCache
from scrubjay.memory.context.layers.policy import PolicyLayer

pytestmark = pytest.mark.requires("transformers")

TOKENS = 30


@pytest.fixture(params=["gemma3", "llama4", "falcon_h1"])
def cache(request):
    model = make(request.param)
    cache = PolicyCache(context.make("sinks", budget=8, num_sinks=2), model)
    with torch.no_grad():
        for begin, end in ((0, 20), (20, TOKENS - 1), (TOKENS - 1, TOKENS)):
            model(torch.randint(2, 128, (3, end - begin)), cache=cache)
    return cache


def test_all_tokens_are_counted_and_the_budget_holds(cache):
    assert cache.get_seq_length() == TOKENS
    assert cache.get_mask_sizes(5, 0) == (TOKENS + 5, 0)
    assert cache.get_max_length() == -1
    for layer in cache.attention_layers:
        assert layer.get_seq_length() == TOKENS
        most = 8 if layer.sees_everything else layer.policy.window
        assert layer.memory.state["keys"].shape[2] == most


def test_the_policy_only_applies_to_full_attention_layers(cache):
    for layer in cache.attention_layers:
        assert (layer.policy == cache.policy) == layer.sees_everything
    shape = cache.shape()
    policy_layers = [layer for layer in cache.attention_layers if layer.sees_everything]
    assert (shape.layers, shape.batch) == (len(policy_layers), 3)
    assert sum(layer.memory.nbytes() for layer in policy_layers) == cache.policy.nbytes(TOKENS, shape)


def test_rows_are_kept_in_every_layer(cache):
    cache.batch_select_indices(torch.tensor([2, 0]))
    assert cache.batch_size == 2
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 4
    for layer in cache.layers:
        assert all(len(tensor) == 4 for tensor in layer.state_dict().values())
        if isinstance(layer, PolicyLayer) and layer.sees_everything:
            assert layer.shape is not None
            assert layer.shape.batch == 4
