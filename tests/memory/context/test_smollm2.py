"""A real model, in short: what the policies promise holds for trained weights and trained sinks."""

import pytest
import torch
from transformers import DynamicCache

from scrubjay.memory import context

TEXT = (
    "The lighthouse keeper wrote one line in the log each evening: the state of the sea, the oil left in "
    "the tank, "
    "and whether the relief boat had been seen. In winter the boat did not come for weeks, and he learned "
    "to bake "
    "bread from the flour that the storms had wetted. His daughter sent letters that arrived in bundles, so "
    "that he "
    "read a whole season in an hour, and then he read it again more slowly, one letter to an evening. "
)


@pytest.fixture(scope="module")
def ids(smollm2):
    return smollm2[1](TEXT, return_tensors="pt").input_ids[:, :96]


@torch.no_grad()
def loss(model, ids, cache):
    logits = model(ids, cache=cache).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits[0, 40:], ids[0, 41:]).item()


@pytest.mark.slow  # unpacking the model takes a quarter of a minute
def test_sinks_save_the_window(smollm2, ids):
    model, _ = smollm2
    full = loss(model, ids, DynamicCache(config=model.config))
    window, sinks = (
        loss(model, ids, context.PolicyCache(context.make(name, budget=24), model))
        for name in ("window", "sinks")
    )
    assert sinks < full + 0.5 < window
