"""Captured weights match eager attention, wrappers run in order, and the model stays unchanged."""

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, FalconConfig, FalconForCausalLM, Gemma2Config, Gemma2ForCausalLM

from scrubjay.memory import context
from scrubjay.memory.context.capture import (
    attention_modules,
    attention_weights,
    capture_attention,
    wrapped_attention,
)

pytestmark = pytest.mark.requires("transformers")


@pytest.fixture
def model(tiny_llama):
    return tiny_llama(num_hidden_layers=3)


def tokens(batch=2, time=11, seed=0):
    return torch.randint(2, 64, (batch, time), generator=torch.Generator().manual_seed(seed))


def eager(model, ids, **options):
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(ids, output_attentions=True, **options)
    model.set_attn_implementation(before)
    return out.attentions


def padded():
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[0, :4] = 0
    return mask


@pytest.mark.parametrize("mask", [None, padded()], ids=["whole", "padded"])
@torch.no_grad()
def test_weights_are_those_of_eager_attention(model, mask):
    ids = tokens()
    expected = eager(model, ids, attention_mask=mask)
    plain = model(ids, attention_mask=mask).logits
    with capture_attention(model, {0: None, 2: [3, 1]}, slice(-3, None)) as weights:
        logits = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(weights[0][0], expected[0][:, :, -3:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights[2][0], expected[2][:, [3, 1], -3:], atol=1e-5, rtol=1e-5)
    assert torch.equal(logits, plain)
    early = attention_weights(model, ids, {1: None}, slice(5, 7), attention_mask=mask)
    torch.testing.assert_close(early[1][1], expected[1][1, :, 5:7], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_after_a_cache_see_the_cache(model):
    ids = tokens()
    expected = eager(model, ids)[1]
    cache = DynamicCache(config=model.config)
    model(ids[:, :6], cache=cache)
    weights = attention_weights(model, ids[:, 6:], {1: [2]}, slice(-4, None), cache=cache)
    torch.testing.assert_close(weights[1], expected[:, [2], -4:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("before", ["sdpa", "eager"])
def test_the_model_has_its_own_attention_back_even_after_an_error(model, before):
    model.set_attn_implementation(before)
    with pytest.raises(ValueError, match="heads"), capture_attention(model, {0: [9]}):
        model(tokens())
    assert model.config._attn_implementation == before
    ids = tokens()
    attention_weights(model, ids, {0: None})
    assert model.config._attn_implementation == before
    with capture_attention(model, {0: None}) as weights:
        pass
    model(ids)
    assert weights == {0: []}


@torch.no_grad()
def test_nothing_above_the_layer_runs(model):
    ran = []
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_pre_hook(lambda *_, at=number: ran.append(at))
    attention_weights(model, tokens(), {0: None, 1: [0]})
    assert ran == [0, 1]


def test_other_models_are_left_alone(model, tiny_llama):
    other = tiny_llama()
    with capture_attention(model, {0: None}) as weights, torch.no_grad():
        other(tokens())
    assert weights[0] == []


def test_missing_layers_and_heads_are_named(model):
    with pytest.raises(ValueError, match=r"layers \[7\]"):
        attention_weights(model, tokens(), {7: None})
    with pytest.raises(ValueError, match="heads \\[4\\] of layer 1"):
        attention_weights(model, tokens(), {1: [4]})


def test_a_policy_cannot_run_inside(model):
    before = model.config._attn_implementation
    cache = context.PolicyCache(context.make("window", budget=8), model)
    with capture_attention(model, {0: None}), pytest.raises(ValueError, match="would have no effect"):
        model(tokens(), cache=cache)
    assert model.config._attn_implementation == before


SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


ONE_HEAD = {"alibi": False, "multi_query": True, "new_decoder_architecture": False}
TWO_HEADS = {"alibi": False, "num_kv_heads": 2, "new_decoder_architecture": True}


@pytest.mark.parametrize(
    ("kind", "use_policy"),
    [
        pytest.param(ONE_HEAD, False, id="one head of keys"),
        pytest.param(ONE_HEAD, True, id="one head of keys, used with a policy before"),
        pytest.param(TWO_HEADS, False, id="two"),
        pytest.param(TWO_HEADS, True, id="two, used with a policy before"),
        pytest.param(ONE_HEAD | {"alibi": True}, False, id="ALiBi"),
    ],
)
@torch.no_grad()
def test_weights_of_falcon_are_those_of_eager_attention(kind: dict[str, Any], use_policy):
    torch.manual_seed(0)
    model = FalconForCausalLM(FalconConfig(**SIZES, **kind)).eval()
    plain = model(tokens()).logits
    if use_policy:
        model(tokens(), cache=context.PolicyCache(context.make("window", budget=8), model))
    eager_model = FalconForCausalLM._from_config(
        copy.deepcopy(model.config), attn_implementation="eager"
    ).eval()
    eager_model.load_state_dict(model.state_dict())
    for mask in (None, padded()):
        expected = eager_model(tokens(), attention_mask=mask, output_attentions=True).attentions
        weights = attention_weights(model, tokens(), {0: None, 1: [2]}, attention_mask=mask)
        visible = torch.ones(2, 11, dtype=torch.bool) if mask is None else mask.bool()
        for layer, heads in ((0, slice(None)), (1, [2])):
            actual, target = (x.transpose(1, 2)[visible] for x in (weights[layer], expected[layer][:, heads]))
            torch.testing.assert_close(actual, target, atol=1e-5, rtol=1e-4)
    with capture_attention(model, {1: None}) as recorded_weights:
        torch.testing.assert_close(model(tokens()).logits, plain)
    assert len(recorded_weights[1]) == 1
    assert torch.equal(model(tokens()).logits, plain)
    assert model.config._attn_implementation == "sdpa"


def recording(name, calls):
    def wrapper(attention, module, *tensors, **options):
        calls.append((name, module.layer_idx))
        return attention(module, *tensors, **options)

    return wrapper


@torch.no_grad()
def test_wrappers_run_in_their_layers_the_first_outermost(tiny_llama):
    model, calls = tiny_llama(num_hidden_layers=3), []
    plain = model(tokens(time=12)).logits
    with (
        wrapped_attention(model, {0: recording("outer", calls), 2: recording("outer", calls)}),
        wrapped_attention(model, {2: recording("inner", calls)}),
    ):
        assert torch.equal(model(tokens(time=12)).logits, plain)
    assert calls == [("outer", 0), ("outer", 2), ("inner", 2)]
    calls.clear()
    model(tokens(time=12))
    assert calls == []


@pytest.mark.parametrize("cap", [None, 1.0])
@torch.no_grad()
def test_the_softcap_applies_inside_the_block(cap):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.4}
    model = Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, attn_logit_softcapping=cap)).eval()
    model.set_attn_implementation("eager")
    padded = torch.ones(2, 12, dtype=torch.long)
    padded[0, :3] = 0
    for mask in (None, padded):
        expected = model(tokens(time=12), attention_mask=mask).logits
        with wrapped_attention(model, {}):
            logits = model(tokens(time=12), attention_mask=mask).logits
        visible = slice(None) if mask is None else mask.bool()
        torch.testing.assert_close(logits[visible], expected[visible], atol=1e-4, rtol=1e-4)


def test_missing_layers_are_named(tiny_llama):
    model = tiny_llama(num_hidden_layers=2)
    assert list(attention_modules(model)) == [0, 1]
    with pytest.raises(ValueError, match=r"layers \[5\]: the model has attention in layers \[0, 1\]"):
        wrapped_attention(model, {5: recording("", [])}).__enter__()
    assert model.config._attn_implementation == "sdpa"
