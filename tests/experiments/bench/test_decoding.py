"""Benchmark of decoding: caches have the expected length; `sinks` with sink_attention has equal logits."""

import dataclasses
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from scrubjay.experiments.bench.decoding import (
    DYNAMIC_CACHE,
    KERNEL_SINKS,
    SIZES,
    DecodingBench,
    list_caches,
    measure,
)

pytestmark = pytest.mark.requires("transformers")

TOKENS = 8
BENCH = DecodingBench(budget=32, policies=("full", "window", "sinks"), turn=4)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    own = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes: Any = SIZES["4 layers of width 256"] | own
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


@torch.no_grad()
def test_sinks_by_the_kernel_read_as_sinks(model):
    ids = torch.randint(0, 512, (1, 3 * BENCH.budget))
    logits = {}
    for name, (make, num_seen) in list_caches(model, BENCH, TOKENS).items():
        cache = make()
        model(ids[:, :num_seen], cache=cache)
        tokens = ids[:, num_seen : num_seen + TOKENS].split(1, dim=1)
        logits[name] = torch.cat([model(token, cache=cache).logits for token in tokens], dim=1)
        assert cache.get_seq_length() == num_seen + TOKENS
    torch.testing.assert_close(logits[KERNEL_SINKS], logits["sinks"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits["full"], logits[DYNAMIC_CACHE], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits["sinks"], logits["window"], atol=1e-2)


def test_every_cache_is_timed_in_every_round(model):
    times = measure(model, dataclasses.replace(BENCH, policies=("sinks",)), TOKENS, rounds=3)
    assert set(times) == {DYNAMIC_CACHE, "sinks", KERNEL_SINKS}
    assert all(len(rounds) == 3 for rounds in times.values())
