"""Tiny random models of current model families, by name."""

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "initializer_range": 0.3,
}
_EXPERTS = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
LINEAR_SIZES = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
MAMBA_SIZES = {
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 1,
    "mamba_d_conv": 4,
    "mamba_chunk_size": 8,
    "mamba_d_ssm": 32,
}
FULL, SLIDING = "full_attention", "sliding_attention"

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "qwen3_moe": ("Qwen3Moe", {"head_dim": 8} | _EXPERTS),
    "qwen3_next": (
        "Qwen3Next",
        {"head_dim": 8, "layer_types": ["linear_attention", FULL], "shared_expert_intermediate_size": 16}
        | _EXPERTS
        | LINEAR_SIZES,
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 7}),
    "ministral": ("Ministral", {"sliding_window": 7, "layer_types": [SLIDING, FULL], "head_dim": 8}),
    "gemma2": ("Gemma2", {"sliding_window": 7, "head_dim": 8, "attn_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3", {"sliding_window": 7, "head_dim": 8, "layer_types": [SLIDING, FULL]}),
    "gpt_oss": (
        "GptOss",
        {"sliding_window": 7, "head_dim": 8, "layer_types": [SLIDING, FULL], "rope_parameters": None}
        | _EXPERTS,
    ),
    "llama4": (
        "Llama4",
        {
            "attention_chunk_size": 8,
            "head_dim": 8,
            "no_rope_layers": [1, 0],
            "layer_types": ["chunked_attention", FULL],
            "intermediate_size_mlp": 32,
            "floor_scale": 16,
            "num_experts_per_tok": 1,
            "num_local_experts": 2,
        },
    ),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "phi": ("Phi", {"partial_rotary_factor": 0.5}),
    "phi3": ("Phi3", {}),
    "olmo2": ("Olmo2", {}),
    "granite": ("Granite", {"attention_multiplier": 0.2}),
    "stablelm": ("StableLm", {"partial_rotary_factor": 0.5}),
    "cohere2": ("Cohere2", {"sliding_window": 7, "layer_types": [SLIDING, FULL], "head_dim": 8}),
    "cohere": ("Cohere", {}),
    "gpt_neox": ("GPTNeoX", {"rotary_pct": 0.5}),
    "falcon": ("Falcon", {"alibi": False, "multi_query": True, "new_decoder_architecture": False}),
    "falcon-new": ("Falcon", {"alibi": False, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "lfm2": ("Lfm2", {"layer_types": ["conv", FULL], "conv_L_cache": 3}),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        {
            "layer_types": ["mamba", "attention"],
            "shared_intermediate_size": 16,
            "position_embedding_type": "rope",
        }
        | _EXPERTS
        | MAMBA_SIZES,
    ),
    "granitemoehybrid-still": (
        "GraniteMoeHybrid",
        {
            "layer_types": ["mamba", "attention"],
            "shared_intermediate_size": 16,
            "position_embedding_type": None,
        }
        | _EXPERTS
        | MAMBA_SIZES,
    ),
    "falcon_h1": ("FalconH1", {"head_dim": 8} | MAMBA_SIZES),
    "bamba": ("Bamba", {"attn_layer_indices": [1]} | MAMBA_SIZES),
    "nemotron_h": (
        "NemotronH",
        {
            "layers_block_type": ["linear_attention", "mlp", FULL],
            "head_dim": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
        },
    ),
    "afmoe": ("Afmoe", {"sliding_window": 7, "head_dim": 8, "layer_types": [SLIDING, FULL]} | _EXPERTS),
    "modernbert-decoder": ("ModernBertDecoder", {"layer_types": [FULL, FULL]}),
}
"""Families that every policy supports: class name, and differences from a small Llama config."""

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "bloom": ("Bloom", {"n_layer": 1, "n_head": 2}, "ALiBi"),
    "falcon-alibi": ("Falcon", {"alibi": True, "num_hidden_layers": 1}, "ALiBi"),
    "deepseek_v3": ("DeepseekV3", {}, "MLA"),
    "gemma3n": (
        "Gemma3n",
        {
            "num_kv_shared_layers": 2,
            "num_hidden_layers": 4,
            "layer_types": [SLIDING, FULL] * 2,
            "vocab_size_per_layer_input": 128,
            "hidden_size_per_layer_input": 8,
        },
        "keys of other layers",
    ),
    "recurrent_gemma": ("RecurrentGemma", {"num_hidden_layers": 3}, "states in its modules"),
    "dory": ("Dory", {}, "times in a call"),
    "mamba2": ("Mamba2", {"num_heads": 4, "head_dim": 16}, "no attention layer"),
}
"""Families that no policy supports: as above, with a part of the error message."""


def config_of(name: str, options: dict[str, Any]) -> Any:
    """Build the config of a model class."""
    class_name = f"{name}TextConfig" if name in ("Gemma3", "Gemma3n", "Llama4") else f"{name}Config"
    return getattr(transformers, class_name)(**{**SIZES, **options})


def make(family: str, seed: int = 0, **options: Any) -> PreTrainedModel:
    """Build a tiny random model of a family, in float64 unless it has experts."""
    name, family_options = FAMILIES[family]
    config = config_of(name, family_options | options)
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    if family == "gpt_oss":
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.self_attn.sinks)
    return model.eval() if hasattr(config, "num_experts_per_tok") else model.double().eval()
