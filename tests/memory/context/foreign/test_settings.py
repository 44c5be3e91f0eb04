"""A setting of the wrong type is an error that names the file and the setting; honest types pass."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from scrubjay.agents import LocalChatModel
from scrubjay.memory import context
from scrubjay.memory.context.foreign.settings import TYPES, check_settings

from ....fuzz.samples import make_samples

pytestmark = pytest.mark.requires("transformers")

TOKENIZER, CONFIG, GENERATION = "tokenizer_config.json", "config.json", "generation_config.json"
WRONG = [
    (TOKENIZER, "model_max_length", "512", "a number"),
    (TOKENIZER, "model_max_length", [512], "a number"),
    (TOKENIZER, "model_max_length", float("nan"), "a number"),
    (TOKENIZER, "model_max_length", True, "a number"),
    (TOKENIZER, "bos_token", 5, "a text or an object"),
    (TOKENIZER, "chat_template", 5, "a text or a list or an object"),
    (GENERATION, "eos_token_id", {"a": 1}, "an integer of 64 bits or a list of integers"),
    (GENERATION, "eos_token_id", [[1]], "an integer of 64 bits or a list of integers"),
    (GENERATION, "temperature", "0.5", "a number"),
    (GENERATION, "suppress_tokens", [2**70], "a list of integers"),
    (CONFIG, "sliding_window", "512", "an integer of 64 bits"),
    (CONFIG, "sliding_window", {"a": 1}, "an integer of 64 bits"),
    (CONFIG, "sliding_window", 1.5, "an integer of 64 bits"),
    (CONFIG, "sliding_window", 10**30, "an integer of 64 bits"),
    (CONFIG, "output_hidden_states", "yes", "true or false or a list of integers"),
    (CONFIG, "is_encoder_decoder", 1, "true or false"),
    (CONFIG, "layer_types", [["a"]], "a list of texts"),
]


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(("file", "name", "value", "words"), WRONG)
def test_a_setting_of_the_wrong_type_is_named_with_its_file(folder, file, name, value, words, trust):
    change(folder / file, **{name: value})
    with pytest.raises(ValueError, match=rf"^{file} of the model .*: {name}=.*: must be {words}; correct"):
        context.load_model(folder, trust=trust)


def test_settings_of_submodels_are_checked_and_long_values_are_cut(folder):
    change(folder / CONFIG, text_config={"inner": {"sliding_window": ["x" * 1000]}})
    with pytest.raises(ValueError, match=r"sliding_window=\[\"x+\.\.\.: must be") as error:
        context.load_model(folder)
    assert len(str(error.value)) < 400 + len(str(folder))


def test_a_template_in_a_list_of_templates_is_a_text(folder):
    (folder / "chat_template.jinja").unlink()
    change(folder / TOKENIZER, chat_template=[{"name": "default", "template": 5}])
    with pytest.raises(ValueError, match=r"^the model at .*: chat_template=5: must be a text; correct"):
        context.load_model(folder, trust=True)


@pytest.mark.requires("gguf")
def test_a_template_in_a_gguf_file_is_a_text(tmp_path, monkeypatch):
    import gguf

    monkeypatch.setattr(
        gguf.GGUFWriter,
        "add_chat_template",
        lambda self, _: self.add_key_value("tokenizer.chat_template", 5, gguf.GGUFValueType.UINT32),
    )
    make_samples(tmp_path, ("ggufs",))
    with pytest.raises(ValueError, match=r"^the model at .*model.gguf': chat_template=5: must be a text"):
        context.load_model(tmp_path / "ggufs" / "model.gguf", trust=True)


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        (TOKENIZER, "model_max_length", 10**30),
        (TOKENIZER, "model_max_length", 1e30),
        (TOKENIZER, "model_max_length", None),
        (TOKENIZER, "bos_token", {"__type": "AddedToken", "content": "<|im_start|>"}),
        (GENERATION, "eos_token_id", [1, 2]),
        (GENERATION, "temperature", 1),
        (CONFIG, "sliding_window", None),
        (CONFIG, "output_hidden_states", True),
    ],
)
def test_honest_settings_pass(folder, file, name, value):
    change(folder / file, **{name: value})
    check_settings(folder)


def test_settings_of_saved_files_and_unreadable_files_pass(folder):
    check_settings(folder)
    (folder / CONFIG).write_text("[1")
    (folder / GENERATION).write_text("[1]")
    check_settings(folder)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is not None, reason="torchao is installed")
def test_a_missing_package_is_named_with_the_way_to_install_it(folder):
    change(folder / CONFIG, quantization_config={"quant_method": "torchao", "quant_type": "int8_weight_only"})
    with pytest.raises(ImportError, match=r"the model at .*needs the package torchao: pip install torchao"):
        context.load_model(folder, trust=True)


def test_outputs_have_names_whatever_the_config_says(folder):
    change(folder / CONFIG, return_dict=False)
    answer = LocalChatModel(model=folder, max_tokens=2, temperature=0, trust=True).invoke("Hello")
    assert isinstance(answer.content, str)


def test_a_model_with_an_encoder_is_not_supported_by_policies(folder):
    change(folder / CONFIG, is_encoder_decoder=True)
    with pytest.raises(ValueError, match="not supported: LlamaForCausalLM has an encoder"):
        LocalChatModel(model=folder, trust=True).invoke("Hello")


@pytest.mark.slow
def test_the_types_of_config_json_are_those_of_transformers():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    words = {bool: "bool", int: "int", str: "str", "integers": "list[int]", "texts": "list[str]"}
    narrow, count = set(), 0
    for name in CONFIG_MAPPING:
        main: Any = CONFIG_MAPPING[name]
        for config in (main, *main.sub_configs.values()):
            hints = [vars(kind).get("__annotations__", {}) for kind in config.__mro__]
            for setting, hint in ((one, hint) for part in hints for one, hint in part.items()):
                expected = TYPES[CONFIG].get(setting)
                text = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)
                if expected is None or "ClassVar" in text:
                    continue
                count += 1
                types = {*(words[one] for one in expected), "None", "tuple[int, ...]", "tuple[str, ...]"}
                if not set(text.split(" | ")) <= types:
                    narrow.add((name, setting, text))
    assert count > 1000
    assert not narrow
