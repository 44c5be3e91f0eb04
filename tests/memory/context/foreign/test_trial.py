"""A model's tokenizer and templates are tried once in a process with limits; the record is by contents."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from scrubjay.agents import LocalChatModel
from scrubjay.memory import context
from scrubjay.memory.context.foreign import trial
from scrubjay.memory.context.foreign.weights import ModelLimitError

from ....fuzz.samples import make_samples

pytestmark = pytest.mark.requires("transformers")


def records(folder: Path) -> list[Path]:
    return [*folder.parent.glob("state/scrubjay/models/*")]


def edit_tokenizer(folder: Path, **parts) -> None:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | parts))


@pytest.mark.slow
def test_a_model_that_passes_is_recorded_by_its_contents(folder):
    assert trial.try_model(folder) is None
    (record,) = records(folder)
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    before = record.stat()
    assert trial.try_model(folder) is None
    assert record.stat() == before
    with (folder / "chat_template.jinja").open("a") as file:
        file.write("x")
    assert trial.try_model(folder) is None
    assert len(records(folder)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (
            {"normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 50}] * 8}},
            "more than 1,000 characters of one",
        ),
        (
            {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(q|q)*~x?~"}, "behavior": "Isolated",
                               "invert": False}},
            "tokenizer (fails|takes)|limits of a trial",
        ),
    ],
)  # fmt: skip
def test_a_hostile_tokenizer_is_refused_with_the_limit_and_the_way_out(folder, parts, reason):
    edit_tokenizer(folder, **parts)
    with pytest.raises(ValueError, match=rf"model.* is refused: .*({reason}).*trust=True") as refusal:
        context.load_model(folder)
    assert type(refusal.value) is ValueError
    assert "\n" not in str(refusal.value)
    assert records(folder) == []


@pytest.mark.slow
def test_a_hostile_template_of_any_name_is_refused_before_it_is_used(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ 'a' * 10**11 }}")
    with pytest.raises(ValueError, match="the chat template is refused: it takes more than"):
        LocalChatModel(model=folder).invoke("Hello")


@pytest.mark.slow
def test_a_process_that_dies_is_one_error(folder, monkeypatch):
    monkeypatch.setattr(trial, "DATA_BYTES", 2**24)
    with pytest.raises(ModelLimitError, match=r"memory"):
        trial.try_model(folder)
    assert records(folder) == []


def test_files_that_are_too_large_or_not_regular_are_refused(folder):
    (folder / "config.json").write_text("[" * (trial.MAX_CONFIG + 1))
    with pytest.raises(ValueError, match=r"config.json has 2,097,153 bytes, limit 2,097,152.*trust=True"):
        context.load_model(folder)
    (folder / "config.json").unlink()
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "config.json")
        with pytest.raises(ValueError, match=r"config\.json is not a regular file"):
            context.load_model(folder)


def test_a_folder_without_a_tokenizer_needs_no_trial(folder):
    for file in folder.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    assert trial.try_model(folder) is None
    assert records(folder) == []


@pytest.mark.slow
@pytest.mark.requires("gguf")
def test_files_beside_a_gguf_file_are_tried_too(tmp_path, tiny_chat, monkeypatch):
    """transformers prefers a tokenizer.json to the tokenizer in the GGUF file."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    make_samples(tmp_path, ("ggufs",))
    folder = tmp_path / "ggufs"
    context.load_model(folder / "model.gguf")
    tiny_chat[1].save_pretrained(folder)
    grow = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 5000}
    edit_tokenizer(folder, normalizer=grow)
    with pytest.raises(ValueError, match="more than 1,000 characters of one"):
        context.load_model(folder / "model.gguf")
    edit_tokenizer(folder, normalizer=None)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"model_max_length": "512"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json.*model_max_length"):
        context.load_model(folder / "model.gguf")


def test_other_files_beside_a_gguf_file_do_not_count(tmp_path):
    (tmp_path / "model.gguf").touch()
    (tmp_path / "notes.json").write_text(" " * (trial.MAX_CONFIG + 1))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
    assert trial.list_files(tmp_path, "model.gguf") == [tmp_path / "model.gguf"]
    (tmp_path / "special_tokens_map.json").write_text(" " * (trial.MAX_CONFIG + 1))
    with pytest.raises(ModelLimitError, match=r"special_tokens_map\.json has"):
        trial.list_files(tmp_path, "model.gguf")
