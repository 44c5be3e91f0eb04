"""Mutators of tokenizer.json and of the configs beside it: components, vocabulary and special tokens."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from .values import ESCAPE, TEXTS, any_value

_GROW = {"type": "Replace", "pattern": {"Regex": "."}, "content": "abcdefgh" * 4}
_NORMALIZERS = (
    _GROW,
    {"type": "Sequence", "normalizers": [_GROW] * 7},
    {
        "type": "Sequence",
        "normalizers": [{"type": "Replace", "pattern": {"String": ""}, "content": "xyz" * 99}] * 4,
    },
    {"type": "Prepend", "prepend": "w" * 5_000_000},
    {"type": "Precompiled", "precompiled_charsmap": "////AAAA"},
    {"type": "Precompiled", "precompiled_charsmap": "AAEAAAAAAAAA"},
    {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": 1,
    },
    {"type": "Replace", "pattern": {"Regex": "(?=(a*)*$)(x+x+)+y"}, "content": ""},
    {"type": "Replace", "pattern": {"Regex": "(("}, "content": ""},
    {"type": "NFKC"},
    {"type": "Nothing"},
)
_PRE_TOKENIZERS = (
    {"type": "Split", "pattern": {"Regex": "(\\w+\\s?)+$"}, "behavior": "Removed", "invert": True},
    {
        "type": "Split",
        "pattern": {"Regex": "^(([a-z])+.)+[A-Z]([a-z])+$"},
        "behavior": "Isolated",
        "invert": False,
    },
    {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": ""}, "behavior": "MergedWithNext", "invert": False},
    {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}] * 5000},
    {"type": "Metaspace", "replacement": "__", "prepend_scheme": "always", "split": True},
    {"type": "CharDelimiterSplit", "delimiter": ""},
    {"type": "FixedLength", "length": 0},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    None,
)
_DECODERS = (
    {"type": "Fuse"},
    {"type": "Strip", "content": "x", "start": 2**60, "stop": 2**60},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "z" * 4_000_000},
    {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "z"}, "content": "zz"}] * 40},
    {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True},
    {"type": "ByteFallback"},
)


def _template(piece: dict[str, Any], count: int, token: dict[str, Any] | None = None) -> dict[str, Any]:
    tokens = {} if token is None else {"x": {"id": "x", **token}}
    return {"type": "TemplateProcessing", "single": [piece] * count, "pair": [], "special_tokens": tokens}


_TOKEN, _TEXT = {"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
_PROCESSORS = (
    _template(_TOKEN, 50_000, {"ids": [0] * 900, "tokens": ["x"] * 900}),
    _template(_TOKEN, 1, {"ids": [4_000_000_000], "tokens": ["x"]}),
    _template(_TEXT, 400_000),
    _template(_TEXT, 0),
    {"type": "BertProcessing", "sep": ["", 2**31], "cls": ["", 2**31]},
    {
        "type": "RobertaProcessing",
        "sep": ["a", 1],
        "cls": ["b", 0],
        "trim_offsets": True,
        "add_prefix_space": True,
    },
)
_WORDS = {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "?", "continuing_subword_prefix": ""}
_MODELS = (
    {**_WORDS, "max_input_chars_per_word": 2**40},
    {"type": "Unigram", "vocab": [["a", float("-inf")], ["b", 1e308]], "unk_id": 7, "byte_fallback": True},
    {"type": "Unigram", "vocab": [["", 0.0]], "unk_id": 0},
    {"type": "WordLevel", "vocab": {"a": 2**31}, "unk_token": "a"},
    {"type": "BPE", "vocab": {"a": 0, "aa": 1}, "merges": [["a", "a"]] * 9, "dropout": 2.0},
    {"type": "BPE", "vocab": {}, "merges": []},
)  # fmt: skip


def change_component(file: Path, draw: random.Random) -> None:
    """Replace a component of the tokenizer."""
    tree = json.loads(file.read_text("utf-8"))
    truncation = {"strategy": "LongestFirst", "stride": 9, "direction": "Right"}
    padding = {
        "direction": "Left",
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
        "pad_to_multiple_of": None,
    }
    components: dict[str, tuple[Any, ...]] = {
        "normalizer": _NORMALIZERS,
        "pre_tokenizer": _PRE_TOKENIZERS,
        "decoder": _DECODERS,
        "post_processor": _PROCESSORS,
        "model": _MODELS,
        "truncation": tuple({**truncation, "max_length": length} for length in (0, 1, 2**63)),
        "padding": tuple({**padding, "strategy": {"Fixed": length}} for length in (0, 4000, 2**28, 2**40)),
    }
    name, choices = draw.choice([("normalizer", _NORMALIZERS), *components.items()])
    tree[name] = draw.choice(choices)
    _write(file, tree)


def change_vocabulary(file: Path, draw: random.Random) -> None:
    """Change ids, words or merges of the vocabulary."""
    tree = json.loads(file.read_text("utf-8"))
    vocabulary = tree["model"]["vocab"]
    word = draw.choice(list(vocabulary))
    way = draw.randrange(6)
    if way == 0:
        vocabulary[word] = draw.choice((0, -1, 300, 2**31, 2**32 - 1, 2**40, "1", None))
    elif way == 1:
        vocabulary[draw.choice(TEXTS)] = vocabulary.pop(word)
    elif way == 2:
        vocabulary |= {
            f"{word}{number}": len(vocabulary) + number for number in range(draw.choice((1, 40_000)))
        }
    elif way == 3:
        tree["model"]["merges"] = [draw.sample(list(vocabulary), 2) for _ in range(draw.choice((1, 50)))]
    elif way == 4:
        tree["model"][draw.choice(("unk_token", "continuing_subword_prefix", "dropout"))] = any_value(draw)
    else:
        tree["model"]["vocab"] = dict.fromkeys(vocabulary, 0)
    _write(file, tree)


def change_tokens(file: Path, draw: random.Random) -> None:
    """Add, change or repeat special tokens."""
    tree = json.loads(file.read_text("utf-8"))
    tokens = tree["added_tokens"]
    token = dict(draw.choice(tokens))
    way = draw.randrange(4)
    if way == 0:
        token["content"] = draw.choice((*TEXTS, "", " ", "a", ESCAPE))
    elif way == 1:
        token["id"] = draw.choice((0, 5, 10**6, 2**31, 2**32 - 1))
    elif way == 2:
        token |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), draw.random() < 0.5)
    tokens += [{**token, "content": token["content"] + "x" * (number > 0) + str(number) * (number > 0)}
               for number in range(draw.choice((1, 2, 8000)))]  # fmt: skip
    _write(file, tree)


_SETTINGS: dict[str, tuple[Any, ...]] = {
    "auto_map": ({"AutoConfig": "evil.C", "AutoTokenizer": ["evil.T", None]},),
    "model_type": ("gpt_neox", "evil", "mamba", "t5", []),
    "tokenizer_class": ("evil.T", "T5Tokenizer", 3),
    "architectures": (["os.system"], ["M"]),
    "quantization_config": tuple({"quant_method": name} for name in ("hqq", "awq", "fp8", "mxfp4", "x")),
    "rope_parameters": tuple(
        {"rope_type": name, "factor": 0.0} for name in ("yarn", "linear", "longrope", "x")
    ),
    "num_hidden_layers": (0, -3, 3, 1000, 10**5),
    "vocab_size": (0, -1, 257, 259, 10**8),
    "num_attention_heads": (3, 0),
    "num_key_value_heads": (7, 0),
    "head_dim": (2**20, 0, 7),
    "intermediate_size": (2**34,),
    "hidden_size": (33, 2**20),
    "hidden_act": ("os.system", []),
    "max_position_embeddings": (0, -5),
    "sliding_window": (-1, 0),
    "tie_word_embeddings": (True,),
    "is_encoder_decoder": (True,),
    "use_cache": ("x",),
    "dtype": ("load", "float8_e5m2"),
    "attn_implementation": ("x/y", "nothing"),
    "_attn_implementation_internal": ("x/y",),
    "eos_token_id": (-1, 10**9, [], [0] * 9000, "x", None),
    "max_new_tokens": (10**9,),
    "min_length": (10**9,),
    "num_beams": (500,),
    "assistant_model": ("x",),
    "forced_bos_token_id": (10**6,),
    "suppress_tokens": ([10**9],),
    "temperature": (-1,),
    "top_k": (-1,),
    "watermarking_config": ({"bias": "x"},),
    "cache_implementation": ("static",),
    "guidance_scale": (3.0,),
    "model_max_length": (0, -1, 1, 10**30, "x"),
    "chat_template": ("{{ 1/0 }}", "{{ 'x' * 10**9 }}", 5, [], ["a"]),
    "bos_token": ({"__type": "AddedToken", "content": ESCAPE},),
    "pad_token": ("never seen",),
    "sp_model_kwargs": (1,),
    "transformers_weights": ("../victim/precious.txt",),
    "base_model_name_or_path": ("/etc",),
    "text_config": ({},),
    "configuration_files": (["config.4.0.0.json"],),
    "custom_generate": ("x/y",),
    "kernel_config": ({"a": "x/y"},),
}
"""Values for entries of config.json, generation_config.json and tokenizer_config.json."""


def change_setting(file: Path, draw: random.Random) -> None:
    """Set an entry of a model's config, generation config or tokenizer config."""
    tree = json.loads(file.read_text("utf-8"))
    if draw.random() < 0.1:
        tree[draw.choice((*tree, "x"))] = any_value(draw)
    else:
        key = draw.choice(list(_SETTINGS))
        tree[key] = draw.choice(_SETTINGS[key])
    _write(file, tree)


def _write(file: Path, tree: Any) -> None:
    file.write_text(json.dumps(tree), "utf-8", errors="surrogatepass")


WAYS = (change_component, change_component, change_component, change_vocabulary, change_tokens)
SETTING_WAYS = (change_setting, change_setting, change_setting)
