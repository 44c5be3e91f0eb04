"""Second passes of a cache: tokens without scores, files, interruptions and inputs that are read once."""

import pytest
import torch
from by_layer import pad, read

from scrubjay.memory import context

pytestmark = pytest.mark.requires("transformers")


SMALL_KVZIP = {"budget": 14, "window": 3, "num_sinks": 2, "chunk": 9, "instruction": (5, 6)}


@pytest.mark.parametrize("padding", [0, 6])
def test_kvzip_scores_generated_tokens_with_the_next_prompt(padding, tiny_llama, text, tmp_path):
    """Until then their ids are in the cache, also in a file and in a reordered batch."""
    model = tiny_llama()
    policy = context.make("kvzip", **SMALL_KVZIP)
    ids, mask = pad(text, padding)
    cache = context.PolicyCache(policy, model)
    read(model, cache, ids[:, :24], [20, 21, 22, 23], mask[:, :24])
    memory = cache.attention_layers[0].memory
    assert memory.state["ids"].tolist() == ids[:, 20:24].tolist()
    cache.save(tmp_path / "cache.safetensors")
    copy = context.PolicyCache.load(tmp_path / "cache.safetensors", policy, model)
    for each in (cache, copy):
        each.reorder_cache(torch.tensor([1, 0]))
    expected = read(model, cache, ids.flip(0), [32, 33], mask.flip(0))
    assert torch.equal(read(model, copy, ids.flip(0), [32, 33], mask.flip(0)), expected)
    for layer in cache.attention_layers:
        scores, lengths = layer.memory.state["scores"], layer.memory.state["lengths"]
        parts = scores.split(lengths.flatten().tolist())
        assert all(float(part[:-1].max()) <= 1 for part in parts)


def test_wrong_token_ids_in_a_file_are_reported(tiny_llama, text, tmp_path):
    model = tiny_llama()
    policy = context.make("kvzip", **SMALL_KVZIP)
    cache = context.PolicyCache(policy, model)
    read(model, cache, text[:, :22], [20, 21])
    for wrong in (torch.full((2, 2), 1000), torch.ones(2, 99, dtype=torch.long)):
        cache.attention_layers[0].memory.state["ids"] = wrong
        cache.save(tmp_path / "cache.safetensors")
        with pytest.raises(
            ValueError, match=r"damaged .* do not fit the vocabulary and the number of tokens"
        ):
            context.PolicyCache.load(tmp_path / "cache.safetensors", policy, model)


def test_an_interrupted_second_pass_is_reported(tiny_llama, text):
    model = tiny_llama()
    cache = context.PolicyCache(context.make("kvzip", **SMALL_KVZIP), model)
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    hook = model.model.layers[1].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        read(model, cache, text[:, :20])
    hook.remove()
    with pytest.raises(RuntimeError, match="was interrupted"):
        read(model, cache, text[:, 20:21])
    cache.reset()
    assert read(model, cache, text).isfinite().all()


def test_kvzip_refuses_embeddings(tiny_llama, text):
    model = tiny_llama()
    cache = context.PolicyCache(context.make("kvzip", budget=40), model)
    with pytest.raises(
        ValueError, match="KVzipPolicy reads every prompt twice, for which it needs token ids"
    ):
        model(inputs_embeds=model.get_input_embeddings()(text), cache=cache)
