"""A random Llama of two layers and a byte tokenizer with a chat template."""

from __future__ import annotations

from typing import Any

import torch


def make_tiny_chat() -> tuple[Any, Any]:
    """Return the model and the tokenizer; both are the same after every call.

    One byte is one token, so text always has the same tokens. The model writes only ASCII.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    marks = ["<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(marks + alphabet)}, merges=[])
    )
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=marks[0], eos_token=marks[1], pad_token=marks[1]
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        # Large weights: the most likely token must not depend on the last bit of float32.
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    ascii_ids = tokenizer("".join(map(chr, range(32, 127)))).input_ids
    with torch.no_grad():
        silent = torch.ones(len(tokenizer), dtype=torch.bool).index_fill(0, torch.tensor(ascii_ids), False)
        model.lm_head.weight[silent] = 0
        # Quotes are likely, so JSON strings end soon.
        model.lm_head.weight[tokenizer('"').input_ids] *= 4
    return model, tokenizer
