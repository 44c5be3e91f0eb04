"""A layer as transformers sees it: it counts tokens seen, kept or not, and asks its policy where it may."""

import pytest
import torch
from families import make

from scrubjay.memory import context
from scrubjay.memory.context import PolicyCache
from scrubjay.memory.context.layers.policy import PolicyLayer

TOKENS = 30


@pytest.fixture(params=["gemma3", "llama4", "falcon_h1"])
def cache(request):
    model = make(request.param)
    cache = PolicyCache(context.make("sinks", budget=8, num_sinks=2), model)
    with torch.no_grad():
        for begin, end in ((0, 20), (20, TOKENS - 1), (TOKENS - 1, TOKENS)):
            model(torch.randint(2, 128, (3, end - begin)), cache=cache)
    return cache


def test_tokens_seen_are_counted_and_no_more_are_held_than_may_be(cache):
    assert cache.get_seq_length() == TOKENS
    assert cache.get_mask_sizes(5, 0) == (TOKENS + 5, 0)
    assert cache.get_max_length() == -1
    for layer in cache.attending:
        assert layer.get_seq_length() == TOKENS
        most = 8 if layer.sees_everything else layer.policy.window
        assert layer.memory.state["keys"].shape[2] == most


def test_the_policy_has_a_say_in_layers_that_see_everything_alone(cache):
    for layer in cache.attending:
        assert (layer.policy == cache.policy) == layer.sees_everything
    shape = cache.shape()
    under = [layer for layer in cache.attending if layer.sees_everything]
    assert (shape.layers, shape.batch) == (len(under), 3)
    assert sum(layer.memory.nbytes() for layer in under) == cache.policy.nbytes(TOKENS, shape)


def test_rows_are_kept_in_every_layer(cache):
    cache.batch_select_indices(torch.tensor([2, 0]))
    assert cache.batch_size == 2
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 4
    for layer in cache.layers:
        assert all(len(tensor) == 4 for tensor in layer.saved().values())
        if isinstance(layer, PolicyLayer) and layer.sees_everything:
            assert layer.shape is not None
            assert layer.shape.batch == 4
