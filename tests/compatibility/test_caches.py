"""Caches of language models that d9e860e saved go on as it did, under every context policy."""

import json

import pytest
import torch
from material import MADE, POLICIES, PROMPT, REST, go_on, llama
from safetensors import safe_open
from safetensors.torch import load_file

from scrubjay.memory import context

pytest.importorskip("transformers")

CACHES = MADE / "caches"


@pytest.fixture(scope="module")
def model():
    return llama(load_file(CACHES / "llama.safetensors"))


def about(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["scrubjay"])


def assert_as_expected(name, logits):
    expected = load_file(CACHES / "expected.safetensors")[name]
    assert torch.equal(logits.argmax(dim=-1), expected.argmax(dim=-1))
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-3)  # of logits up to tens


@pytest.mark.parametrize("name", POLICIES)
def test_a_saved_cache_goes_on(name, model):
    cache = context.PolicyCache.load(
        CACHES / f"{name}.safetensors", context.make(name, **POLICIES[name]), model
    )
    assert cache.get_seq_length() == PROMPT.shape[1]
    assert_as_expected(name, go_on(model, cache, REST))


@pytest.mark.parametrize("name", POLICIES)
def test_a_prompt_read_anew_is_kept_and_written_alike(name, model, tmp_path):
    cache = context.PolicyCache(context.make(name, **POLICIES[name]), model)
    with torch.no_grad():
        model(PROMPT, cache=cache)
    cache.save(tmp_path / "cache.safetensors")
    assert about(tmp_path / "cache.safetensors") == about(CACHES / f"{name}.safetensors")
    ours, theirs = load_file(tmp_path / "cache.safetensors"), load_file(CACHES / f"{name}.safetensors")
    assert ours.keys() == theirs.keys()
    for part, value in theirs.items():
        assert torch.allclose(ours[part].double(), value.double(), rtol=1e-4, atol=1e-4), part
    assert_as_expected(name, go_on(model, cache, REST))


def test_a_cache_of_another_policy_is_refused(model):
    with pytest.raises(ValueError, match="saved with policy sinks"):
        context.PolicyCache.load(CACHES / "sinks.safetensors", context.make("window", budget=8), model)
