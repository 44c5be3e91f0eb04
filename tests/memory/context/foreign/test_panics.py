"""A tokenizer that makes Rust code panic is an ordinary error, in whatever text it happens."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest

from scrubjay.agents import LocalChatModel
from scrubjay.memory import context
from scrubjay.memory.context.foreign.panics import no_panics

pytestmark = pytest.mark.requires("transformers")

SLOW = "(qw|qw)*~x?~"
TEXT = "qw" * 40 + "~"
"""Text on which the search for the regular expression gives up with a panic. No text of a trial has it."""


@pytest.fixture
def folder(folder):
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    split = {"type": "Split", "pattern": {"Regex": SLOW}, "behavior": "Isolated", "invert": False}
    parts = [split, tokenizer["pre_tokenizer"]]
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    replace = {"type": "Replace", "pattern": {"Regex": SLOW}, "content": ""}
    tokenizer["decoder"] = {"type": "Sequence", "decoders": [tokenizer["decoder"], replace]}
    file.write_text(json.dumps(tokenizer))
    return folder


def test_a_panic_on_a_text_is_a_value_error_that_names_the_model(folder, tiny_chat):
    _, tokenizer = context.load_model(folder, trust=True)
    ids = tiny_chat[1](TEXT, add_special_tokens=False).input_ids
    tokens: Any = tokenizer.convert_ids_to_tokens(ids)
    for call in (
        lambda: tokenizer(TEXT),
        lambda: tokenizer([TEXT, "b"], return_offsets_mapping=True),
        lambda: tokenizer.tokenize(TEXT),
        lambda: tokenizer.decode(ids),
        lambda: tokenizer.batch_decode([ids]),
        lambda: tokenizer.convert_tokens_to_string(tokens),
        lambda: copy.deepcopy(tokenizer)(TEXT),
        lambda: pickle.loads(pickle.dumps(tokenizer))(TEXT),
    ):
        with pytest.raises(ValueError, match=r"^the tokenizer of the model at .*model' fails: .*; use"):
            call()
    assert tokenizer.decode(tokenizer("Hello").input_ids) == "Hello"


@pytest.mark.slow
def test_a_model_that_passes_the_trial_may_still_panic(folder):
    with pytest.raises(ValueError, match=r"the tokenizer of the model at .* fails"):
        LocalChatModel(model=folder, max_tokens=2).invoke(TEXT)


def test_a_guarded_tokenizer_is_saved_as_it_was_read(folder, tmp_path):
    _, tokenizer = context.load_model(folder, trust=True)
    tokenizer.save_pretrained(tmp_path / "copy")
    before, after = (
        json.loads((parent / "tokenizer_config.json").read_text()) for parent in (folder, tmp_path / "copy")
    )
    assert after["tokenizer_class"] == before["tokenizer_class"]


@pytest.mark.parametrize("special", [False, True])
def test_a_token_without_an_embedding_is_a_value_error_that_names_it(folder, special):
    file = folder / "tokenizer.json"
    tokenizer_json = json.loads(file.read_text())
    tokenizer_json["model"]["vocab"]["a"] = 4_000_000_000
    tokenizer_json["added_tokens"].append(
        {**tokenizer_json["added_tokens"][0], "id": 4_000_000_001, "content": "<big>", "special": special}
    )
    file.write_text(json.dumps(tokenizer_json))
    _, tokenizer = context.load_model(folder, trust=True)
    assert tokenizer("Hello").input_ids
    for call in (
        lambda: tokenizer("a"),
        lambda: tokenizer(["b", "ba"]),
        lambda: tokenizer(["b", "a"], return_tensors="np"),
        lambda: tokenizer("a", return_tensors="pt"),
        lambda: tokenizer("<big>"),
        lambda: tokenizer.encode("a"),
    ):
        with pytest.raises(ValueError, match=r"model at .* returns token \d+, but the model has 258"):
            call()
    with pytest.raises(ValueError, match="but the model has 258 embeddings; use the tokenizer of this model"):
        LocalChatModel(model=folder, max_tokens=2, trust=True).invoke("a")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, TypeError])
def test_other_errors_pass_unchanged(error):
    with pytest.raises(error), no_panics("model"):
        raise error
