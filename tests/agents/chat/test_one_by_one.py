"""Models whose state restarts with every call of several tokens give the answers of a full recomputation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import JambaConfig, JambaForCausalLM, ZambaConfig, ZambaForCausalLM

from scrubjay.agents import LocalChatModel

pytestmark = pytest.mark.requires("transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "num_hidden_layers": 6,
    "mamba_d_state": 8,
    "mamba_dt_rank": 4,
    "use_mamba_kernels": False,
}
MODELS = {
    "jamba": lambda **more: JambaForCausalLM(
        JambaConfig(
            **SIZES, num_experts=2, num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=1, **more
        )
    ),
    "zamba": lambda **more: ZambaForCausalLM(
        ZambaConfig(
            **SIZES,
            n_mamba_heads=2,
            attention_head_dim=16,
            layers_block_type=["linear_attention", "linear_attention", "hybrid"] * 2,
            **more,
        )
    ),
}


@pytest.mark.one_in(2, rest="slow")
@pytest.mark.parametrize("family", MODELS)
@torch.no_grad()
def test_a_second_turn_and_a_long_prompt_are_read_as_the_whole(family, tiny_chat):
    tokenizer = tiny_chat[1]
    torch.manual_seed(0)
    model = MODELS[family](vocab_size=len(tokenizer), tie_word_embeddings=False).eval()
    # Generated text must tokenize to the same tokens; only ASCII tokens do.
    text = tokenizer("".join(map(chr, range(32, 127)))).input_ids
    model.lm_head.weight[
        torch.ones(len(tokenizer), dtype=torch.bool).index_fill(0, torch.tensor(text), False)
    ] = 0
    chat = LocalChatModel(model=(model, tokenizer), policy="full", max_tokens=6)
    thread: Any = {"configurable": {"thread_id": "t"}}
    turns: list[tuple[str, str]] = []
    for text in ("hello " * 120, "and then?", "what else?"):
        turns.append(("user", text))
        answer = chat.invoke(turns, thread).content
        fresh = LocalChatModel(model=(model, tokenizer), policy="full", max_tokens=6).invoke(turns).content
        assert answer == fresh
        turns.append(("assistant", str(answer)))
