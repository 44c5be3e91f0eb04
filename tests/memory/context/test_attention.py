"""A model with unsupported attention is refused by its first call, instead of giving wrong results."""

import pytest
import torch
from by_layer import close, make_for, read
from families import config_of, make
from transformers import AutoModelForCausalLM, DynamicCache

from scrubjay.memory import context
from scrubjay.memory.context import PolicyCache

pytestmark = pytest.mark.requires("transformers")

IDS = torch.arange(2, 12)[None]
INKLING = {
    "head_dim": 8,
    "swa_head_dim": 8,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "moe_intermediate_size": 16,
    "d_rel": 4,
    "rel_extent": 16,
    "num_hidden_layers": 1,
    "layer_types": ["hybrid"],
}


def full(model):
    return PolicyCache(context.make("full"), model)


def make_model(name, **options):
    return AutoModelForCausalLM.from_config(config_of(name, options)).eval()


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("DiffLlama", {}, "twice"),
        ("InklingText", INKLING, "position_bias"),
        ("Bert", {}, "non-causal attention mask"),
        ("Llama", {"is_causal": False}, "non-causal attention mask"),
        ("Doge", {}, "bias computed from the values"),
        ("Bart", {"d_model": 32, "decoder_layers": 3, "decoder_attention_heads": 4}, "attends in layer 2"),
    ],
)
def test_unsupported_attention_is_refused(name, options, reason):
    model = make_model(name, **options)
    with pytest.raises(ValueError, match=reason) as refusal:
        read(model, full(model), IDS)
    assert "\n" not in str(refusal.value)


def test_a_call_without_a_policy_cache_uses_the_models_attention():
    model = make("llama")
    cache = full(model)
    expected = read(model, DynamicCache(config=model.config), IDS)
    read(model, cache, IDS)
    close(read(model, DynamicCache(config=model.config), IDS), expected)


@pytest.mark.parametrize("name", context.list_policies())
def test_positions_are_those_of_the_text_in_every_call(name):
    """Bamba counts positions from 0 in every call without position ids."""
    model = make("bamba")
    text = torch.arange(2, 42)[None]
    with torch.no_grad():
        expected = model(text, use_cache=False).logits
    close(read(model, PolicyCache(make_for(model, name), model), text, [20, 27, *range(28, 40)]), expected)


_STATES = {"mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False}
ONE_BY_ONE = {
    "Jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, **_STATES},
    "Zamba": {
        "num_hidden_layers": 6,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2,
        "n_mamba_heads": 2,
        "attention_head_dim": 16,
        **_STATES,
    },
}


@pytest.mark.parametrize("family", ONE_BY_ONE)
def test_models_that_reset_their_states_are_read_at_once_and_then_one_by_one(family):
    """Several tokens in a later call would be read as the beginning of a text."""
    model = make_model(family, **ONE_BY_ONE[family])
    with torch.no_grad():
        expected = model(IDS, use_cache=False).logits
    for name in ("full", "sinks"):
        cache = PolicyCache(context.make(name), model)
        close(read(model, cache, IDS, [5, *range(6, 10)]), expected)
        with pytest.raises(ValueError, match="one by one"):
            read(model, cache, IDS)
        cache.reset()
        assert cache.call_length(5, 2) == 5
        read(model, cache, IDS[:, :5])
        assert cache.call_length(5, 2) == 1


def test_a_layer_that_is_read_twice_in_a_call_is_refused():
    """A looped model does so; its second loop would count as new tokens."""
    model = make_model("Llama")
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(ValueError, match="runs layer 0 twice in one call"):
        read(model, full(model), IDS)
