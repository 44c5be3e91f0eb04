"""The probe finds the rotary positions of a model: all layouts, several types per model, and none."""

import copy
from typing import Any

import pytest
import torch
from families import FULL, config_of, make
from transformers import CodeGenConfig, CodeGenForCausalLM, DoryForCausalLM, GPT2Config, GPT2LMHeadModel

from scrubjay.memory import context
from scrubjay.memory.context.cache import PolicyCache
from scrubjay.memory.context.layers.rotation import find_rotation
from scrubjay.memory.context.policies.rotary import PairLayout

pytestmark = pytest.mark.requires("transformers")

EVERY = {
    "llama": PairLayout(4),
    "cohere": PairLayout(4, is_interleaved=True),
    "phi": PairLayout(2),
    "qwen3_next": PairLayout(1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", EVERY)
def test_the_layout_is_found_in_any_precision(family, dtype):
    rotation = find_rotation(make(family).to(dtype))
    layouts = [rotary.layout for rotary in rotation.by_layer if rotary is not None]
    assert set(layouts) == {EVERY[family]}
    assert rotation.dynamic_type is None


@pytest.mark.one_in(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", [*EVERY, "smollm3", "gemma3", "gpt_oss"])
def test_channels_of_outliers_hide_no_rotation(family, dtype):
    """Trained keys have channels hundreds of times as large as others."""
    at = torch.tensor([[7]])
    expected = find_rotation(make(family)).by_layer
    for channel in range(4):
        model = make(family).to(dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("q_proj.weight", "k_proj.weight")):
                    parameter[channel::8] *= 200
        for actual, target in zip(find_rotation(model).by_layer, expected, strict=True):
            assert (actual and actual.layout) == (target and target.layout)
            if actual and target:
                torch.testing.assert_close(
                    actual.compute_angles(at), target.compute_angles(at), rtol=1e-2, atol=1e-2
                )


def test_only_layers_with_equal_rotations_share_them():
    first, second = find_rotation(make("gemma3")).by_layer
    assert first is not None
    assert second is not None
    # Its two layer types have different frequencies.
    at = torch.tensor([[7]])
    assert not torch.allclose(first.compute_angles(at), second.compute_angles(at))
    one, same = find_rotation(make("llama")).by_layer
    assert one is same


def test_layers_without_positions_are_told_from_others():
    rotary, without_positions = find_rotation(make("smollm3")).by_layer
    assert rotary is not None
    assert without_positions is not None
    assert (rotary.layout.pairs, without_positions.layout.pairs) == (4, 0)
    x = torch.randn(1, 2, 3, 8)
    assert without_positions.make_rotation(torch.tensor([[5, 6, 7]]), torch.tensor([[0, 1, 2]]))(x) is x


def test_a_model_in_training_stays_in_training_and_is_tried_once():
    model = make("llama").train()
    parts = [module.training for module in model.modules()]
    assert find_rotation(model) is find_rotation(model)
    assert [module.training for module in model.modules()] == parts
    assert all(parameter.grad is None for parameter in model.parameters())


def test_models_of_few_positions_are_tried_within_them():
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    assert find_rotation(GPT2LMHeadModel(config)).by_layer == (None, None)
    rotary, _ = find_rotation(make("llama", max_position_embeddings=32)).by_layer
    assert rotary is not None
    assert rotary.layout == EVERY["llama"]


def test_zero_keys_have_unknown_rotations():
    model = make("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()  # pyright: ignore[reportCallIssue]
    assert find_rotation(model).by_layer == (None, None)


def test_positions_in_embeddings_are_no_rotary_ones():
    rotation = find_rotation(GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2)))
    assert rotation.num_types == 0
    assert rotation.by_layer == (None, None)


def test_a_config_needs_no_padding_token():
    config = CodeGenConfig(vocab_size=64, n_positions=128, n_embd=32, n_layer=1, n_head=4, rotary_dim=8)
    assert not hasattr(config, "pad_token_id")
    with pytest.raises(ValueError, match="has no rotary positions of a known type"):
        PolicyCache(context.make("sinks"), CodeGenForCausalLM(config))


def test_queries_scaled_by_channel_after_rotation_are_refused():
    torch.manual_seed(0)
    layers = {"n_input_layers": 1, "n_output_layers": 1, "n_recurrent_layers": 0, "n_recurrent_loops": 1}
    config = config_of("Dory", {"head_dim": 8, "layer_types": [FULL, FULL], **layers})
    model: Any = DoryForCausalLM(config).double().eval()
    assert None not in find_rotation(copy.deepcopy(model)).by_layer
    for layer in model.model.layers:
        torch.nn.init.uniform_(layer.self_attn.sqk)
    assert find_rotation(model).by_layer == (None, None)
    PolicyCache(context.make("full"), model)
    with pytest.raises(ValueError, match="rotates keys or queries of layer 0 in an unknown way"):
        PolicyCache(context.make("sinks"), model)
