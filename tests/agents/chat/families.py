"""Tokenizers like those of Llama 3, Qwen and Gemma, with their special tokens and similar chat templates."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_TURNS = (
    "{{% for m in messages %}}{{{{ '{begin}' + {role} + '{after}' + m['content'] | trim }}}}"
    "{{% for c in m['tool_calls'] or [] %}}{call}{{% endfor %}}{{{{ '{end}' }}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ '{begin}assistant{after}' }}}}{{% endif %}}"
)
LLAMA3 = "{{ '<|begin_of_text|>' }}" + _TURNS.format(
    begin="<|start_header_id|>",
    role="m['role']",
    after="<|end_header_id|>\\n\\n",
    call="",
    end="<|eot_id|>",
)
QWEN = (
    "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n"
    "</tools>\n<tool_call></tool_call><tool_response></tool_response><|im_end|>\n{% endif %}"
) + _TURNS.format(
    begin="<|im_start|>",
    role="m['role'] + (m['name'] or '')",
    after="\\n",
    call='<tool_call>\\n{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}\\n</tool_call>",
    end="<|im_end|>\\n",
)
GEMMA = "{{ '<bos>' }}" + _TURNS.format(
    begin="<start_of_turn>", role="m['role']", after="\\n", call="", end="<end_of_turn>\\n"
)


def llama3() -> Any:
    marks = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    marks += ["<|eom_id|>", "<|python_tag|>", *(f"<|reserved_special_token_{n}|>" for n in range(20))]
    return _make_byte_tokenizer(
        None, marks, [], LLAMA3, eos_token="<|eot_id|>", bos_token="<|begin_of_text|>"
    )


def qwen() -> Any:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_pad|>"]
    plain = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
    plain += ["<|fim_prefix|>", "<|repo_name|>", "<|file_sep|>"]
    return _make_byte_tokenizer(normalizers.NFC(), special, plain, QWEN, eos_token="<|im_end|>")


def gemma() -> Any:
    """Return a tokenizer whose marks are in the vocabulary; merges produce some of them from plain text."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<unused0>"]
    plain = ["<table>", "</table>", "[multimodal]", "<2mass>", "\n\n", "▁▁"]
    letters = sorted({*map(chr, range(32, 127)), "▁", "\n", *"éüß中"} - {" "})
    table = [*(("table"[:end], "table"[end]) for end in range(1, 5)), ("<", "table"), ("<table", ">")]
    merges = [*table, ("▁", "▁"), ("\n", "\n")]
    words = [f"<0x{byte:02X}>" for byte in range(256)] + letters + ["".join(pair) for pair in merges]
    words = dict.fromkeys([*special, *plain, *words])
    raw = Tokenizer(
        models.BPE(
            vocab={word: place for place, word in enumerate(words)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _add_marks(raw, special, plain, GEMMA, unk_token="<unk>", eos_token="<eos>", bos_token="<bos>")


def composing() -> Any:
    """Return a tokenizer that matches marks after compatibility normalization; one mark is a plain word."""
    raw_marks = ["<|im_start|>", "<|im_end|>"]
    tokenizer = _make_byte_tokenizer(normalizers.NFKC(), raw_marks, [], QWEN, eos_token="<|im_end|>")
    tokenizer.add_tokens([AddedToken(mark, normalized=True) for mark in ("<tool_call>", "</tool_call>")])
    tokenizer.add_tokens([AddedToken(mark, normalized=True) for mark in ("<<", "endofpage")])
    return tokenizer


def _make_byte_tokenizer(
    normalizer: Any, special: list[str], plain: list[str], template: str, **names: str
) -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("i", "m"), ("e", "n"), ("en", "d"), ("<", "|"), ("|", ">"), ("u", "s"), ("Ċ", "Ċ")]
    words = [*alphabet, *map("".join, merges)]
    vocabulary = {word: place for place, word in enumerate(words)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    raw.normalizer = normalizer
    words_apart = Regex(
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words_apart, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    return _add_marks(raw, special, plain, template, **names)


def _add_marks(raw: Tokenizer, special: list[str], plain: list[str], template: str, **names: str) -> Any:
    raw.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in special])
    raw.add_tokens([AddedToken(mark, normalized=False) for mark in plain])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    tokenizer.chat_template = template
    return tokenizer


FAMILIES = {"llama3": llama3, "qwen": qwen, "gemma": gemma, "composing": composing}
