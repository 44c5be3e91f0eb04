"""KVzap against a slow definition: tokens stay if a linear map of their hidden state exceeds a threshold."""

import json
from typing import Any

import pytest
import torch
from by_layer import MAPS, SMALL, close, make_for, pad, read
from families import make
from safetensors.torch import save_file
from torch import Tensor
from transformers import DynamicCache

from scrubjay.memory import context
from scrubjay.memory.context.identity import architecture, sample_weights
from scrubjay.memory.context.policies.scored.kvzap import KVzapWeights

pytestmark = pytest.mark.requires("transformers")

FIELDS: dict[str, Any] = {"budget": 40, "window": 6, "num_sinks": 2, "threshold": 0.0}


def find_states(model, ids) -> list[Tensor]:
    """Return the inputs of the attention of each layer, "tokens dim", for a text that is read at once."""
    states = []
    hooks = [
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, options: states.append(options["hidden_states"][0]), with_kwargs=True
        )
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(ids, cache=DynamicCache(config=model.config))
    for hook in hooks:
        hook.remove()
    return states


def find_maps(policy) -> KVzapWeights:
    from scrubjay.memory.context.policies.scored import kvzap

    return kvzap._REGISTERED[policy.weights]


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_every_head_keeps_what_its_map_rates_above_the_threshold(family, text):
    """Also beside sliding windows, and for a row with padding."""
    model: Any = make(family)
    policy: Any = make_for(model, "kvzap", **FIELDS)
    ids, mask = pad(text, 9)
    cache = context.PolicyCache(policy, model, track_tokens=True)
    read(model, cache, ids, mask=mask)
    tokens, numbers = cache.get_retained_tokens(), set()
    for row in range(2):
        own = ids[row : row + 1, mask[row].bool()]
        states, length = find_states(model, own), own.shape[1]
        for layer in (layer.index for layer in cache.attention_layers if layer.sees_everything):
            table = find_maps(policy).maps[layer].double()
            for head, marks in enumerate(tokens[layer].stored_mask[row]):
                scores = [float(table[head, :-1] @ state + table[head, -1]) for state in states[layer]]
                expected = {t for t in range(length) if scores[t] >= 0 or t < 2 or t >= length - 6}
                assert set(marks.nonzero().flatten().tolist()) == expected
                numbers.add(len(expected))
    assert len(numbers) > 1


def test_a_generated_token_is_evicted_when_it_leaves_the_window(tiny_llama, text):
    """The states of later layers depend on earlier evictions, so the first layer is compared."""
    model = tiny_llama()
    policy: Any = context.make("kvzap", weights=MAPS, **FIELDS)
    cache = context.PolicyCache(policy, model, track_tokens=True)
    read(model, cache, text[:1, :12])
    states = find_states(model, text[:1])[0]
    scores = states @ find_maps(policy).maps[0][:, :-1].mT
    for end in range(13, 41):
        read(model, cache, text[:1, end - 1 : end])
        marks = cache.get_retained_tokens()[0].stored_mask[0]
        place = torch.arange(end)
        safe = (place < 2) | (place >= end - 6)
        assert torch.equal(marks, (safe[:, None] | (scores[:end] >= 0)).mT)


@pytest.mark.parametrize("heads", ["equal", "adaptive"])
def test_the_budget_evicts_the_tokens_with_the_lowest_scores(heads, tiny_llama, text):
    model = tiny_llama()
    fields = FIELDS | {"budget": 14, "threshold": -float("inf"), "heads": heads}
    policy: Any = context.make("kvzap", weights=MAPS, **fields)
    cache = context.PolicyCache(policy, model, track_tokens=True)
    read(model, cache, text[:1])
    scores = (find_states(model, text[:1])[0] @ find_maps(policy).maps[0][:, :-1].mT).mT
    scores[:, :2] = scores[:, -6:] = float("inf")
    marks = cache.get_retained_tokens()[0].stored_mask[0]
    if heads == "equal":
        least = scores.sort(dim=1, descending=True).values[:, 13:14]
    else:
        least = scores.flatten().sort(descending=True).values[27]
    assert torch.equal(marks, scores >= least)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_threshold_of_minus_infinity_keeps_all_tokens(dtype, tiny_llama, text):
    model = tiny_llama(dtype=dtype)
    policy = context.make("kvzap", weights=MAPS, **FIELDS | {"threshold": -float("inf")})
    cache = context.PolicyCache(policy, model)
    logits = read(model, cache, text, [20, 21, 22])
    assert cache.dropped_tokens == 0
    assert cache.nbytes() == policy.nbytes(40, cache.shape())
    if dtype == torch.float32:
        close(logits, read(model, DynamicCache(config=model.config), text))


def test_the_scores_of_a_token_do_not_change_and_are_saved(tiny_llama, text, tmp_path):
    model = tiny_llama()
    policy = context.make("kvzap", weights=MAPS, **FIELDS)
    cache = context.PolicyCache(policy, model)
    read(model, cache, text[:, :20])
    before = [layer.memory.state["scores"].clone() for layer in cache.attention_layers]
    cache.save(tmp_path / "cache")
    second = context.PolicyCache.load(tmp_path / "cache", policy, model)
    for layer, scores in zip(second.attention_layers, before, strict=True):
        assert torch.equal(layer.memory.state["scores"], scores)
    assert torch.equal(read(model, second, text[:, 20:]), read(model, cache, text[:, 20:]))


@pytest.fixture
def weights_of(tiny_llama):
    """Return a function that makes weights of zeros for a model."""

    def make_weights(model):
        maps = {layer: torch.zeros(2, 33, dtype=torch.float16) for layer in range(2)}
        return KVzapWeights(maps, architecture(model), tuple(sample_weights(model)))

    return make_weights


def test_weights_come_back_from_a_file_and_serve_fine_tunes(tiny_llama, weights_of, tmp_path):
    model = tiny_llama()
    weights = weights_of(model)
    weights.maps[1][0, 3] = 0.5
    weights.save(tmp_path / "maps")
    again = KVzapWeights.load(tmp_path / "maps")
    assert again.register() == weights.register()
    with torch.no_grad():
        model.model.embed_tokens.weight += 0.01 * torch.randn(64, 32)
    cache: Any = context.PolicyCache(context.make("kvzap", weights=str(tmp_path / "maps")), model)
    assert cache.policy.weights == weights.register()
    assert context.PolicyCache(cache.policy, model).policy == cache.policy


def test_other_maps_have_another_name(tiny_llama, weights_of):
    weights = weights_of(tiny_llama())
    name = weights.register()
    weights.maps[0][1, -1] = 1
    assert weights.register() != name


def test_a_model_without_weights_is_refused_with_the_command(tiny_llama):
    with pytest.raises(ValueError, match=r"stored for this LlamaForCausalLM: .*training\.kvzap FOLDER"):
        context.PolicyCache(context.make("kvzap"), tiny_llama())


def test_weights_of_another_model_are_refused(tiny_llama, weights_of, tmp_path):
    file = tmp_path / "maps"
    policy = context.make("kvzap", weights=str(file))
    with pytest.raises(ValueError, match="maps': no such file"):
        context.PolicyCache(policy, tiny_llama())
    weights_of(tiny_llama()).save(file)
    context.PolicyCache(policy, tiny_llama())
    others = {
        "fitted to another model, llama-2-4-32-64: fit them": {"seed": 1},
        "to this llama-2-4-32-63": {"vocab_size": 63},
        r"no map of layer 2, but of \[0, 1\]": {"num_hidden_layers": 3},
        "key_heads=2, but the model has 4": {"num_key_value_heads": 4},
        "hidden_size=32, but the model has 64": {"hidden_size": 64},
    }
    for message, fields in others.items():
        with pytest.raises(ValueError, match=message):
            context.PolicyCache(policy, tiny_llama(**fields))


@pytest.mark.parametrize("damage", ["bytes", "metadata", "names", "matrix", "nan"])
def test_a_file_with_another_content_is_refused(damage, tiny_llama, weights_of, tmp_path):
    file, model = tmp_path / "maps", tiny_llama()
    table = torch.zeros(2, 33)
    tensors = {"x" if damage == "names" else "0": table[0] if damage == "matrix" else table}
    if damage == "nan":
        table[0, 0] = float("nan")
    metadata = {"kvzap": json.dumps({"architecture": architecture(model), "sample": []})}
    save_file(tensors, file, {"other": "x"} if damage == "metadata" else metadata)
    if damage == "bytes":
        file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match="is damaged or has no KVzap weights"):
        context.PolicyCache(context.make("kvzap", weights=str(file)), model)


def test_a_policy_outside_of_a_cache_is_refused(tiny_llama):
    policy: Any = context.make("kvzap", weights="maps.safetensors")
    module = tiny_llama().model.layers[0].self_attn
    empty = torch.zeros(1, 2, 3, 8)
    with pytest.raises(ValueError, match=r"weights='maps.safetensors': build a PolicyCache"):
        policy.score(empty, empty, empty, module=module, hidden=torch.zeros(1, 3, 32))


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_a_threshold_that_is_no_number_is_refused(threshold):
    with pytest.raises(ValueError, match=f"threshold={threshold}: must be a number or minus infinity"):
        context.make("kvzap", threshold=threshold)


def test_the_bytes_before_are_a_bound_and_those_after_are_exact(tiny_llama, text):
    model = tiny_llama()
    policy = context.make("kvzap", **SMALL["kvzap"])
    cache = context.PolicyCache(policy, model)
    read(model, cache, text)
    states = [layer.memory.state for layer in cache.attention_layers]
    tokens = sum(int(state["lengths"].sum()) for state in states)
    # Keys and values of 8 numbers and a score, and a length for each head.
    assert cache.nbytes() == tokens * (2 * 8 + 1) * 4 + 2 * 2 * 2 * 8
    assert cache.nbytes() <= policy.nbytes(40, cache.shape())
