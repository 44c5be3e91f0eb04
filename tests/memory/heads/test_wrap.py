"""Attention wrappers run in order, only in their layers, around the model's own attention."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from scrubjay.memory.heads.wrap import attention_modules, wrapped_attention


def tokens(time=12):
    return torch.randint(2, 64, (2, time), generator=torch.Generator().manual_seed(0))


def recording(name, calls):
    def wrapper(attention, module, *tensors, **options):
        calls.append((name, module.layer_idx))
        return attention(module, *tensors, **options)

    return wrapper


@torch.no_grad()
def test_wrappers_run_in_their_layers_the_first_outermost(tiny_llama):
    model, calls = tiny_llama(num_hidden_layers=3), []
    plain = model(tokens()).logits
    with (
        wrapped_attention(model, {0: recording("outer", calls), 2: recording("outer", calls)}),
        wrapped_attention(model, {2: recording("inner", calls)}),
    ):
        assert torch.equal(model(tokens()).logits, plain)
    assert calls == [("outer", 0), ("outer", 2), ("inner", 2)]
    calls.clear()
    model(tokens())
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
        expected = model(tokens(), attention_mask=mask).logits
        with wrapped_attention(model, {}):
            logits = model(tokens(), attention_mask=mask).logits
        visible = slice(None) if mask is None else mask.bool()
        torch.testing.assert_close(logits[visible], expected[visible], atol=1e-4, rtol=1e-4)


def test_missing_layers_are_named(tiny_llama):
    model = tiny_llama(num_hidden_layers=2)
    assert list(attention_modules(model)) == [0, 1]
    with pytest.raises(ValueError, match=r"layers \[5\]: the model has attention in layers \[0, 1\]"):
        wrapped_attention(model, {5: recording("", [])}).__enter__()
    assert model.config._attn_implementation == "sdpa"
