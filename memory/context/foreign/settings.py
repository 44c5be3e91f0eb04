"""Types of the settings in a model's JSON files.

transformers reads many settings without a check of their types. A wrong type then fails much later, in the
middle of an answer, with an error of Python.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_WORDS = {
    bool: "true or false",
    int: "an integer of 64 bits",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
    "integers": "a list of integers",
    "texts": "a list of texts",
}
_FLAG, _INTEGER, _NUMBER, _TEXT = (bool,), (int,), (float,), (str,)
_TOKEN, _TEXTS = (str, dict), ("texts",)

Types = Mapping[str, tuple[Any, ...]]


def _of(types: tuple[Any, ...], names: str) -> dict[str, tuple[Any, ...]]:
    return dict.fromkeys(names.split(), types)


_CONFIG: Types = {
    **_of(_FLAG, "alibi is_causal is_decoder is_encoder_decoder output_attentions return_dict"),
    **_of(_FLAG, "tie_last_hidden_states use_cache use_sliding_window"),
    **_of(_INTEGER, "attention_chunk_size kv_lora_rank n_recurrent_loops pad_token_id sliding_window"),
    **_of(_INTEGER, "bos_token_id max_position_embeddings vocab_size"),
    **_of(_TEXTS, "architectures kv_sharing_modes layer_types"),
    **_of((int, "integers"), "eos_token_id"),
    **_of((bool, "integers"), "output_hidden_states"),
    **_of(_TEXT, "model_type transformers_weights"),
}
_GENERATION: Types = {
    **_of(
        _FLAG, "assistant_early_exit disable_compile do_sample is_assistant output_attentions output_logits"
    ),
    **_of(_FLAG, "output_scores remove_invalid_values renormalize_logits return_dict_in_generate"),
    **_of(_FLAG, "token_healing use_cache"),
    **_of(_INTEGER, "encoder_no_repeat_ngram_size max_cache_len max_length max_new_tokens min_length"),
    **_of(_INTEGER, "min_new_tokens no_repeat_ngram_size num_beams num_return_sequences pad_token_id"),
    **_of(_INTEGER, "prefill_chunk_size prompt_lookup_num_tokens top_k"),
    **_of(_NUMBER, "encoder_repetition_penalty epsilon_cutoff eta_cutoff guidance_scale length_penalty"),
    **_of(_NUMBER, "max_time min_p repetition_penalty temperature top_h top_p typical_p"),
    **_of((int, "integers"), "bos_token_id decoder_start_token_id eos_token_id forced_eos_token_id"),
    **_of(_INTEGER, "forced_bos_token_id"),
    **_of(("integers",), "begin_suppress_tokens suppress_tokens"),
    **_of((str, "texts"), "stop_strings"),
}
_TOKENIZER: Types = {
    **_of(_FLAG, "add_bos_token add_eos_token clean_up_tokenization_spaces split_special_tokens"),
    **_of(_NUMBER, "model_max_length"),
    **_of(_TEXT, "padding_side tokenizer_class truncation_side"),
    **_of((str, list, dict), "chat_template"),
    **_of(_TEXTS, "model_input_names"),
    **_of(_TOKEN, "bos_token cls_token eos_token mask_token pad_token sep_token unk_token"),
    **_of((list, dict), "additional_special_tokens extra_special_tokens"),
    **_of((dict,), "added_tokens_decoder"),
}
TYPES: Mapping[str, Types] = {
    "config.json": _CONFIG,
    "generation_config.json": _GENERATION,
    "tokenizer_config.json": _TOKENIZER,
}
"""Types of settings by file and name. Any setting may also be null."""
_NESTED = ("config.json",)  # files whose settings may stand at any depth, in the configs of submodels


def read_settings(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. If the file is unreadable, return {}; transformers reports this."""
    with suppress(OSError, ValueError, RecursionError):
        if path.is_file() and isinstance(content := json.loads(path.read_text(encoding="utf-8")), dict):
            return content
    return {}


def check_settings(folder: Path, files: Iterable[str] = tuple(TYPES)) -> None:
    """Raise ValueError if a setting in a model's JSON files has another type than transformers expects."""
    for file in files:
        types = TYPES[file]
        for name, value in _settings(read_settings(folder / file), file in _NESTED):
            expected = types.get(name)
            if expected and value is not None and not any(_has_type(value, one) for one in expected):
                words = " or ".join(_WORDS[one] for one in expected)
                raise ValueError(
                    f"{file} of the model at {str(folder)!r}: {name}={_excerpt(value)}: must be {words}; "
                    "correct the file"
                )


def check_templates(tokenizer: Any, source: object) -> None:
    """Raise ValueError if a chat template of a loaded tokenizer is no text.

    A template may stand in a GGUF file, or in a list of templates, whose types `check_settings` does not see.
    """
    templates = tokenizer.chat_template
    for template in templates.values() if isinstance(templates, dict) else [templates]:
        if not isinstance(template, str | None):
            raise ValueError(  # noqa: TRY004  (the error is about the content of a file)
                f"the model at {str(source)!r}: chat_template={template!r:.80}: must be a text; correct the "
                "file"
            )


def _settings(config: Any, is_nested: bool) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of a config, and of the configs in it."""
    waiting = [config]
    while waiting:
        for name, value in waiting.pop().items():
            yield name, value
            if is_nested and isinstance(value, dict):
                waiting.append(value)


def _has_type(value: Any, kind: Any) -> bool:
    if kind in ("integers", "texts"):
        item_kind = int if kind == "integers" else str
        return isinstance(value, list) and all(_has_type(item, item_kind) for item in value)
    if kind is float:
        return type(value) in (int, float) and not math.isnan(value)
    return type(value) is kind and not (kind is int and abs(value) >= 2**63)


def _excerpt(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
