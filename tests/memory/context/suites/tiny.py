"""Tiny random models of every causal language model in transformers, by model type."""

import dataclasses
from typing import Any

import torch
import transformers
from families import FULL, LINEAR_SIZES, MAMBA_SIZES, SIZES, SLIDING
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LINEAR = "linear_attention"
WINDOW = 7
"""Window of the layers with a sliding window, and length of a chunk in chunked attention."""

NOTHING = object()
"""Marks an option of `_SIZES` that a config does not accept."""

_SIZES: dict[str, Any] = SIZES | {
    "head_dim": 8,
    "sliding_window": WINDOW,
    "num_experts": 2,
    "num_local_experts": 2,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "is_decoder": True,
    "init_std": 0.3,
}
_MIXED = {"layer_types": [SLIDING, FULL]}
_LINEAR = LINEAR_SIZES | {"layer_types": [LINEAR, FULL]}
_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 8,
    "n_group": 1,
    "topk_group": 1,
}
_DECODER = {
    "d_model": 32,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 32,
    "encoder_ffn_dim": 32,
}
_GROUPS = {"n_group": 1, "topk_group": 1}

_FULL = {"sliding_window": None}

OPTIONS: dict[str, dict[str, Any]] = {
    "afmoe": _MIXED,
    "axk1": _LATENT,
    "axk2": _LATENT,
    "bailing_hybrid": _LATENT | {"layer_types": [LINEAR, FULL]},
    "bamba": {"attn_layer_indices": [1]} | MAMBA_SIZES,
    "bart": _DECODER,
    "beam": _GROUPS,
    "bigbird_pegasus": _DECODER,
    "blenderbot": _DECODER,
    "blenderbot-small": _DECODER,
    "blt": {
        "vocab_size": 260,
        "encoder_hash_byte_group_vocab": 64,
        "sub_configs": ("patcher_config", "encoder_config", "decoder_config", "global_config"),
    },
    "codegen": {"rotary_dim": 4},
    "cohere2": _MIXED,
    "cohere2_moe": _MIXED,
    "cohere_compass_text": _MIXED
    | {"rope_parameters": {SLIDING: {"rope_type": "default", "rope_theta": 1e4}, FULL: None}},
    "cpmant": {"dim_ff": 32, "dim_head": 8, "position_bias_num_buckets": 32},
    "cwm": _MIXED,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "dory": {"layer_types": [SLIDING, FULL]},
    "dots1": _GROUPS | {"n_shared_experts": 1},
    "dots3_note_text": _LATENT | {"n_shared_experts": 1},
    "ergo": {"layer_types": [SLIDING, FULL], "first_dense_intermediate_size": 32}
    | {"shared_intermediate_size": 32},
    "exaone4": _MIXED,
    "exaone_moe": _MIXED,
    "dbrx": {
        "hidden_size": NOTHING,
        "d_model": 32,
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 2, "moe_top_k": 1},
    },
    "falcon": {"alibi": False, "head_dim": NOTHING},
    "falcon_h1": MAMBA_SIZES,
    "flint": _MIXED,
    "gemma2": _MIXED,
    "gemma3_text": _MIXED,
    "gemma3n_text": {
        "layer_types": [SLIDING, FULL] * 2,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 128,
        "hidden_size_per_layer_input": 8,
    },
    "gemma4_assistant": _MIXED
    | {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0},
    "gemma4_unified_assistant": _MIXED
    | {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0},
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _LATENT,
    "gemma4_text": _MIXED | {"vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    "gpt_oss": _MIXED | {"rope_parameters": None},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "position_embedding_type": "rope"}
    | MAMBA_SIZES,
    "hrm_text": {"H_cycles": 1, "L_cycles": 1},
    "hy_v4": _LATENT,
    "inkling2_loop_text": {
        "layer_types": ["hybrid_sliding", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 2,
        "sliding_window_size": WINDOW,
        "unpadded_vocab_size": 128,
        "n_layers_per_attn_res_block": 1,
    },
    "inkling2_text": {
        "layer_types": ["hybrid_sliding", "hybrid"],
        "sliding_window_size": WINDOW,
        "unpadded_vocab_size": 128,
    },
    "inkling_text": {"layer_types": ["hybrid_sliding", "hybrid"], "sliding_window_size": WINDOW},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
    "kimi_linear": _LATENT | {"layer_types": [LINEAR, FULL]},
    "kolibri1": _MIXED,
    "kolibri1_1": {"layer_types": [SLIDING, "indexed_attention"], "head_dim": 16, "index_num_heads": 2},
    "laguna": _MIXED,
    "lara_mini": _LINEAR | {"layer_types": [LINEAR, SLIDING, FULL], "num_hidden_layers": 3},
    "lfm2": {"layer_types": ["conv", FULL], "conv_L_cache": 3},
    "lfm2_moe": {"layer_types": ["conv", FULL], "conv_L_cache": 3},
    "lfm3": {"layer_types": ["conv", SLIDING, FULL], "num_hidden_layers": 3},
    "llama4_text": {
        "layer_types": ["chunked_attention", FULL],
        "attention_chunk_size": WINDOW,
        "no_rope_layers": [1, 0],
        "intermediate_size_mlp": 32,
        "floor_scale": 16,
    },
    "longcat_flash": _LATENT | {"num_layers": 1, "num_hidden_layers": 2},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "marian": _DECODER,
    "mbart": _DECODER,
    "mellum": _MIXED,
    "minimax": {"layer_types": [LINEAR, FULL], "sliding_window": None, "block_size": 8},
    "ministral": _MIXED,
    "ministral3": _FULL,
    "mistral": _FULL,
    "mixtral": _FULL,
    "modernbert-decoder": {"local_attention": 2 * WINDOW},
    "moshi": {"ffn_dim": 64},
    "musicgen": {"decoder": _SIZES | {"sliding_window": NOTHING, "ffn_dim": 32, "num_codebooks": 1}},
    "musicgen_melody": {
        "decoder": _SIZES
        | {"sliding_window": NOTHING, "ffn_dim": 32, "num_codebooks": 1, "num_key_value_heads": 4}
    },
    "mvp": _DECODER,
    "nemotron_h": {
        "layers_block_type": [LINEAR, "mlp", FULL],
        "sliding_window": None,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "olmo3": _MIXED,
    "olmo_hybrid": _LINEAR,
    "pegasus": _DECODER,
    "phi3": _FULL,
    "phi4_multimodal": _FULL,
    "phimoe": _FULL,
    "plbart": _DECODER,
    "prophetnet": {
        "num_hidden_layers": NOTHING,
        "num_attention_heads": NOTHING,
        "num_decoder_layers": 2,
        "num_encoder_layers": 2,
        "num_decoder_attention_heads": 4,
        "num_encoder_attention_heads": 4,
        "decoder_ffn_dim": 32,
        "encoder_ffn_dim": 32,
    },
    "qwen3_5": _LINEAR,
    "qwen3_5_moe": _LINEAR,
    "qwen3_next": _LINEAR,
    "qwen4_exp": _LINEAR
    | {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "reformer": {
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [16, 16],
        "attention_head_size": 8,
        "feed_forward_size": 32,
    },
    "roc_bert": {"shape_vocab_size": 128, "pronunciation_vocab_size": 128},
    "sarvam_mla": _LATENT,
    "smollm3": {"no_rope_layers": [1, 0]},
    "starcoder2": _FULL,
    "trocr": _DECODER,
    "whisper": _DECODER,
    "xlnet": {"max_position_embeddings": NOTHING, "d_inner": 32, "d_head": 8},
    "xlstm": {"num_heads": 4},
    "xmod": {"default_language": "en_XX"},
    "youtu": _LATENT,
    "zamba": {
        "layers_block_type": [LINEAR, "hybrid", "hybrid"],
        "num_hidden_layers": 3,
        "head_dim": NOTHING,
        "mamba_d_state": 8,
    },
    "zamba2": {
        "layers_block_type": [LINEAR, "hybrid"],
        "mamba_d_state": 8,
        "n_mamba_heads": 4,
        "chunk_size": 8,
        # With larger values the model's steps differ from its scan.
        "time_step_min": 1e-9,
        "time_step_floor": 1e-9,
    },
}
"""Differences from `_SIZES`; a type not listed here has none. A type with `_text` or `_moe` has its own."""


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"{name}-window": (name, {"sliding_window": WINDOW})
        for name, options in OPTIONS.items()
        if options is _FULL
    },
    "falcon-alibi": ("falcon", {"alibi": True}),
    "falcon-new": ("falcon", {"num_kv_heads": 2, "new_decoder_architecture": True}),
    "granitemoehybrid-still": ("granitemoehybrid", {"position_embedding_type": None}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "layer_types": [SLIDING, FULL]}),
    "qwen3-window": ("qwen3", {"use_sliding_window": True, "layer_types": [SLIDING, FULL]}),
}
"""Other configs of some types, by a name of their own."""


def names() -> list[str]:
    """Return the names in transformers' mapping of causal language models, and those of the variants."""
    return [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS]


_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 16,
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "num_blocks": 1,
    "pyramid_num_routed": [-1],
    "adapter_in_dim": 32,
    "adapter_out_dim": 32,
    "adapter_input_size": 32,
    "model_patch_size": 48,
    "mm_posemb_size": 16,
    "mlp_dim": 32,
    "output_channels": 32,
}
"""Sizes of the parts of a model that read images and sounds."""


def _without_nothing(options: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_nothing(value) if isinstance(value, dict) else value
        for key, value in options.items()
        if value is not NOTHING
    }


def _options_of(name: str) -> dict[str, Any]:
    base = name.removesuffix("_text")
    return OPTIONS.get(name) or OPTIONS.get(f"{base}_text") or OPTIONS.get(base, {})


def _sizes_of(cls: type) -> dict[str, Any]:
    """Return the sizes that a config class knows; transformers reads some even where a class does not."""
    settings = {field.name for field in dataclasses.fields(cls)} | set(cls.attribute_map)
    return {key: value for key, value in _SIZES.items() if key in settings}


def config_of(name: str, **changes: Any) -> Any:
    """Build a tiny config of a model type."""
    name, variant = VARIANTS.get(name, (name, {}))
    changes = variant | changes
    cls: Any = CONFIG_MAPPING[name]
    parts = set(getattr(cls, "sub_configs", {}))
    text: Any = getattr(cls, "sub_configs_defaults", {}).get("text_config", cls)
    if not isinstance(text, type):
        text = CONFIG_MAPPING[text.model_type]
    options = _sizes_of(text) | _options_of(name) | changes
    options = _without_nothing(options)
    for part in options.pop("sub_configs", ()):
        options[part] = _SIZES | {"vocab_size": options["vocab_size"]}
    towers = {part: _TOWER for part in parts & {"vision_config", "audio_config"}}
    if "text_config" in parts:
        return cls(text_config=options, **towers)
    return cls(**options, **towers)


def make(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> PreTrainedModel:
    """Build a tiny random model of a type."""
    config = config_of(name, **changes)
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    if "decoder" in vars(config):  # the mapped class of Musicgen takes the config of its decoder
        model = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name])(config.decoder)
    else:
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # zeros and ones would hide a wrong factor
            parameter += 0.1 * torch.randn(parameter.shape)
    return model.to(dtype).eval()
