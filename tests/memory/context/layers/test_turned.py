"""How keys are turned is found by trying: every layout, several kinds in one model, and what is none."""

import copy
from typing import Any

import pytest
import torch
from families import FULL, config_of, make
from transformers import CodeGenConfig, CodeGenForCausalLM, DoryForCausalLM, GPT2Config, GPT2LMHeadModel

from scrubjay.memory import context
from scrubjay.memory.context.cache import PolicyCache
from scrubjay.memory.context.layers.turned import turns_of
from scrubjay.memory.context.parts.rotary import Layout

EVERY = {"llama": Layout(4), "cohere": Layout(4, neighbours=True), "phi": Layout(2), "qwen3_next": Layout(1)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", EVERY)
def test_the_layout_is_found_in_any_precision(family, dtype):
    turns = turns_of(make(family).to(dtype))
    found = [rotary.layout for rotary in turns.by_layer if rotary is not None]
    assert set(found) == {EVERY[family]}
    assert turns.changing is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", [*EVERY, "smollm3", "gemma3", "gpt_oss"])
def test_channels_of_outliers_hide_no_rotation(family, dtype):
    """Trained keys have some channels that are hundreds of times as large as others."""
    at = torch.tensor([[7]])
    expected = turns_of(make(family)).by_layer
    for channel in range(4):
        model = make(family).to(dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("q_proj.weight", "k_proj.weight")):
                    parameter[channel::8] *= 200
        for found, wanted in zip(turns_of(model).by_layer, expected, strict=True):
            assert (found and found.layout) == (wanted and wanted.layout)
            if found and wanted:
                torch.testing.assert_close(found.angle(at), wanted.angle(at), rtol=1e-2, atol=1e-2)


def test_layers_turned_alike_share_and_others_do_not():
    first, second = turns_of(make("gemma3")).by_layer
    assert first is not None
    assert second is not None
    # Its two kinds of layers turn at two speeds.
    at = torch.tensor([[7]])
    assert not torch.allclose(first.angle(at), second.angle(at))
    one, same = turns_of(make("llama")).by_layer
    assert one is same


def test_layers_without_positions_are_told_from_others():
    turned, still = turns_of(make("smollm3")).by_layer
    assert turned is not None
    assert still is not None
    assert (turned.layout.pairs, still.layout.pairs) == (4, 0)
    x = torch.randn(1, 2, 3, 8)
    assert still.turn(torch.tensor([[5, 6, 7]]), torch.tensor([[0, 1, 2]]))(x) is x


def test_a_model_in_training_stays_in_training_and_is_tried_once():
    model = make("llama").train()
    parts = [module.training for module in model.modules()]
    assert turns_of(model) is turns_of(model)
    assert [module.training for module in model.modules()] == parts
    assert all(parameter.grad is None for parameter in model.parameters())


def test_models_of_few_positions_are_tried_within_them():
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    assert turns_of(GPT2LMHeadModel(config)).by_layer == (None, None)
    turned, _ = turns_of(make("llama", max_position_embeddings=32)).by_layer
    assert turned is not None
    assert turned.layout == EVERY["llama"]


def test_of_keys_of_zeros_nothing_is_said():
    model = make("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()  # pyright: ignore[reportCallIssue]
    assert turns_of(model).by_layer == (None, None)


def test_positions_in_embeddings_are_no_rotary_ones():
    turns = turns_of(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2)))
    assert turns.kinds == 0
    assert turns.by_layer == (None, None)


def test_a_config_need_not_tell_of_padding():
    config = CodeGenConfig(vocab_size=64, n_positions=128, n_embd=32, n_layer=1, n_head=4, rotary_dim=8)
    assert not hasattr(config, "pad_token_id")
    with pytest.raises(ValueError, match="has no rotary positions of a known kind"):
        PolicyCache(context.make("sinks"), CodeGenForCausalLM(config))


def test_queries_that_are_scaled_by_channel_once_turned_move_with_no_key():
    torch.manual_seed(0)
    layers = {"n_input_layers": 1, "n_output_layers": 1, "n_recurrent_layers": 0, "n_recurrent_loops": 1}
    config = config_of("Dory", {"head_dim": 8, "layer_types": [FULL, FULL], **layers})
    model: Any = DoryForCausalLM(config).double().eval()
    assert None not in turns_of(copy.deepcopy(model)).by_layer
    for layer in model.model.layers:
        torch.nn.init.uniform_(layer.self_attn.sqk)
    assert turns_of(model).by_layer == (None, None)
    PolicyCache(context.make("full"), model)
    with pytest.raises(ValueError, match="turns keys or queries of layer 0 in a way"):
        PolicyCache(context.make("sinks"), model)
