"""Policies on a real model, with trained weights and trained sinks."""

import copy

import pytest
import torch
from transformers import DynamicCache

from scrubjay.memory import context
from scrubjay.memory.context.layers.rotation import find_rotation
from scrubjay.memory.context.policies.rotary import PairLayout

pytestmark = pytest.mark.requires("transformers")

TEXT = (
    "The lighthouse keeper wrote one line in the log each evening: the state of the sea, the oil left in "
    "the tank, "
    "and whether the relief boat had been seen. In winter the boat did not come for weeks, and he learned "
    "to bake "
    "bread from the flour that the storms had wetted. His daughter sent letters that arrived in bundles, so "
    "that he "
    "read a whole season in an hour, and then he read it again more slowly, one letter to an evening. "
)
SIZES = {
    "full": {},
    "flexprefill": {"block": 16, "min_budget": 16},
    "duo": {"num_sinks": 4, "recent": 44},
    "kvzap": {"budget": 48, "window": 16},
    "longheads": {"budget": 48, "chunk_size": 8},
    "task_kv": {"budget": 64, "num_sinks": 4, "recent": 16, "window": 16},
    "quest": {"budget": 48, "chunk_size": 8},
}
"""Fields of the policies without a budget, or with chunks that are longer."""


@pytest.fixture(scope="module")
def ids(smollm2):
    return smollm2[1](TEXT, return_tensors="pt").input_ids[:, :96]


@torch.no_grad()
def loss(model, ids, cache):
    logits = model(ids, cache=cache).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits[0, 40:], ids[0, 41:]).item()


@pytest.mark.slow  # dequantizing the model takes 15 seconds
def test_sinks_save_the_window(smollm2, ids):
    model, _ = smollm2
    full = loss(model, ids, DynamicCache(config=model.config))
    window, sinks = (
        loss(model, ids, context.PolicyCache(context.make(name, budget=24), model))
        for name in ("window", "sinks")
    )
    assert sinks < full + 0.5 < window


@pytest.mark.one_in(2)
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_policy_serves_half_precision_as_float32(smollm2, ids, dtype):
    """Keys have outlier channels, next to which the rotation of other pairs looks like rounding."""
    model = copy.deepcopy(smollm2[0]).to(dtype)
    assert {rotary and rotary.layout for rotary in find_rotation(model).by_layer} == {PairLayout(32)}
    for name in context.list_policies():
        policy = context.make(name, **SIZES.get(name, {"budget": 48}))
        exact, half = (loss(each, ids, context.PolicyCache(policy, each)) for each in (smollm2[0], model))
        assert half == pytest.approx(exact, abs=0.1), name
