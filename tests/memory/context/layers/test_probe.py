"""The probe of a model: layers whose attention is not that of their config, and caches that do not fit."""

import pytest
import torch
from by_layer import make_for
from families import config_of, make
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from scrubjay.memory import context
from scrubjay.memory.context import PolicyCache
from scrubjay.memory.context.layers.layer_types import LayerType, get_layer_types
from scrubjay.memory.context.layers.probe import check_layers, read_single_token

pytestmark = pytest.mark.requires("transformers")

FULL, WINDOW, CHUNKS = (
    LayerType(True, None, False, 0),
    LayerType(True, 7, False, 0),
    LayerType(True, 8, True, 0),
)


@pytest.fixture(scope="module")
def models():
    return {name: make(name) for name in ("llama", "mistral-window", "llama4", "gemma3")}


@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("llama", [FULL, WINDOW]),
        ("llama", [CHUNKS, FULL]),
        ("mistral-window", [WINDOW, FULL]),
        ("mistral-window", [WINDOW, WINDOW._replace(window=8)]),
        ("mistral-window", [WINDOW._replace(window=6), WINDOW]),
        ("mistral-window", [WINDOW._replace(is_chunked=True), WINDOW]),
        ("llama4", [CHUNKS._replace(is_chunked=False), FULL]),
        ("llama4", [CHUNKS._replace(window=9), FULL]),
        ("gemma3", [FULL, WINDOW]),
    ],
)
def test_layers_that_attend_to_other_tokens_than_their_config_says_are_refused(models, family, wrong):
    model = models[family]
    check_layers(model, get_layer_types(model.config))
    with pytest.raises(ValueError, match=r"gives layer \d .* attends to other tokens, .* correct"):
        check_layers(model, wrong)


@pytest.mark.parametrize("name", context.list_policies())
def test_a_window_that_the_layers_do_not_use_is_refused(name):
    """Llama ignores the setting, but a cache of transformers drops what is outside of the window."""
    model = make("llama", sliding_window=7)
    with pytest.raises(ValueError, match="layer 0 a window of 7 tokens, but the layer attends to other"):
        PolicyCache(context.make(name), model)


def test_moshi_is_refused():
    """Its config has a window of 3000 tokens, and its layers attend to all tokens."""
    model = AutoModelForCausalLM.from_config(config_of("Moshi", {"ffn_dim": 64}))
    with pytest.raises(ValueError, match="a window of 3000 tokens, but the layer attends to other tokens"):
        PolicyCache(context.make("sinks"), model)


def test_a_model_with_another_cache_is_refused_and_other_errors_stay(monkeypatch):
    model = make("qwen3")
    layer = model.model.layers[1]
    forward = layer.forward

    def read_states(*args, cache=None, **options):
        assert cache is None or cache.states
        return forward(*args, cache=cache, **options)

    monkeypatch.setattr(layer, "forward", read_states)
    with pytest.raises(ValueError, match=r"other than its own \(AttributeError: .*'states'\): use"):
        PolicyCache(context.make("full"), model)

    def fail(*_, **__):
        raise RuntimeError("the weights are damaged")

    monkeypatch.setattr(layer, "forward", fail)
    with pytest.raises(RuntimeError, match="weights are damaged"):
        PolicyCache(context.make("full"), model)
    monkeypatch.setattr(layer, "forward", forward)
    PolicyCache(context.make("full"), model)


def test_a_layer_without_keys_is_refused(monkeypatch):
    model = make("qwen3")
    layer = model.model.layers[1].self_attn
    monkeypatch.setattr(layer, "forward", lambda hidden_states, **_: (hidden_states, None))
    with pytest.raises(ValueError, match="layer 1 of Qwen3ForCausalLM stores no keys in its cache"):
        PolicyCache(context.make("full"), model)


def test_the_first_record_is_made_once_and_the_model_stays_in_training(monkeypatch):
    model = make("gemma3").train()
    calls = []
    hook = model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        PolicyCache(context.make("full"), model)
    hook.remove()
    assert len(calls) == 1
    assert model.model.layers[0].training
    probe = read_single_token(model, 0)
    assert probe.keys.keys() == probe.queries.keys() == probe.mask_functions.keys() == {0, 1}


@torch.no_grad()
def test_a_model_that_also_reads_images_is_served_for_texts_and_refuses_images():
    """Its outer module makes the masks, before the decoder is called."""
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = Gemma3Config(
        text_config=make("gemma3").config.to_dict(),
        vision_config=tower | {"image_size": 32, "patch_size": 16},
    )
    model = Gemma3ForConditionalGeneration(config).double().eval()
    ids = torch.randint(2, 128, (1, 30))
    expected = model(ids, use_cache=False).logits
    for name in context.list_policies():
        cache = PolicyCache(make_for(model, name), model)
        logits = torch.cat([model(part, cache=cache).logits for part in ids.split([20, 9, 1], dim=1)], dim=1)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    images = torch.zeros_like(ids)
    images[:, 4:8] = 1
    with pytest.raises(ValueError, match="custom or non-causal attention mask"):
        model(ids, token_type_ids=images, cache=PolicyCache(context.make("full"), model))
