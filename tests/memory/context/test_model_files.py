"""An untrusted model folder runs no code and is not unpickled; a harmless one loads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scrubjay.agents import LocalChatModel
from scrubjay.memory import context

pytestmark = pytest.mark.requires("transformers")

CODE = """open({mark!r}, "w").close()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class C(LlamaConfig):
    model_type = "strange"
class M(LlamaForCausalLM):
    config_class = C
class T(PreTrainedTokenizerFast):
    pass
"""


class Runs:
    """Pickle that runs a command when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def folder(tmp_path, tiny_chat):
    """Return a folder with a model, its tokenizer and its template."""
    for part in tiny_chat:
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def _never_asked(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def with_model_code(folder: Path, mark: Path) -> None:
    change(
        folder / "config.json",
        model_type="strange",
        auto_map={"AutoConfig": "strange.C", "AutoModelForCausalLM": "strange.M"},
    )


def with_config_code(folder: Path, mark: Path) -> None:
    change(folder / "config.json", model_type="strange", auto_map={"AutoConfig": "strange.C"})


def with_tokenizer_code(folder: Path, mark: Path) -> None:
    auto_map = {"AutoTokenizer": ["strange.T", "strange.T"]}
    change(folder / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="T")


def with_generation_code(folder: Path, mark: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(mark)!r}, 'w').close()")


@pytest.mark.one_in(5, rest="slow")
@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(
    "write", [with_model_code, with_config_code, with_tokenizer_code, with_generation_code]
)
def test_code_in_a_folder_is_never_run(folder, tmp_path, write, trust):
    mark = tmp_path / "ran"
    (folder / "strange.py").write_text(CODE.format(mark=str(mark)))
    write(folder, mark)
    for under_policy in (False, True):
        try:
            context.load_model(folder, under_policy=under_policy, trust=trust)
        except ValueError as error:
            assert "needs Python code" in str(error)  # noqa: PT017
            assert "trust_remote_code" not in str(error)  # noqa: PT017
    assert not mark.exists()


@pytest.mark.slow
def test_the_command_runs_none_either_whatever_is_typed(folder, tmp_path):
    mark = tmp_path / "ran"
    (folder / "strange.py").write_text(CODE.format(mark=str(mark)))
    with_model_code(folder, mark)
    for words in (["chat", "--model", folder], ["agent", "hi?", "--model", folder, "--tools", "none"]):
        command = [sys.executable, "-P", "-m", "scrubjay", *map(str, words)]
        result = subprocess.run(command, input="y\ny\nhello\n", capture_output=True, text=True, check=False)
        assert result.returncode == 2
        assert "Do you wish to run" not in result.stdout + result.stderr
        assert "needs Python code from its own folder, which is never run" in result.stderr
        assert not mark.exists()


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def pickle_weights(folder: Path, mark: Path | None = None) -> None:
    """Replace a folder's weights by a pickle, which runs a command if `mark` is given."""
    weights: dict[str, Any] = dict(weights_of(folder))
    (folder / "model.safetensors").unlink()
    torch.save(weights if mark is None else {**weights, "x": Runs(mark)}, folder / "pytorch_model.bin")


def pickle_in_shards(folder: Path) -> None:
    pickle_weights(folder)
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00001.bin")
    names = torch.load(folder / "pytorch_model-00001-of-00001.bin", weights_only=True)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "pytorch_model-00001-of-00001.bin")}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def pickle_under_a_safetensors_name(folder: Path) -> None:
    pickle_in_shards(folder)
    (folder / "pytorch_model.bin.index.json").rename(folder / "model.safetensors.index.json")


def pickle_with_name_in_config(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "backup")
    pickle_weights(folder)
    (folder / "pytorch_model.bin").rename(folder / "adapter_model.bin")
    (folder / "backup").rename(folder / "model.safetensors")
    change(folder / "config.json", transformers_weights="adapter_model.bin")


@pytest.mark.parametrize(
    "write", [pickle_weights, pickle_in_shards, pickle_under_a_safetensors_name, pickle_with_name_in_config]
)
def test_pickled_weights_are_refused_unless_trusted(folder, tiny_chat, write):
    write(folder)
    for under_policy in (False, True):
        with pytest.raises(ValueError, match=r"are pickled \(.*\.bin\).*save_pretrained"):
            context.load_model(folder, under_policy=under_policy)
    ids = torch.tensor([[2, 3, 4]])
    model, _ = context.load_model(folder, trust=True)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, tiny_chat[0](ids).logits)


def test_the_advice_converts_pickled_weights(folder, tiny_chat):
    pickle_weights(folder)
    with pytest.raises(ValueError, match="convert it once") as error:
        context.load_model(folder)
    exec(str(error.value).partition("convert it once: ")[2], {})  # noqa: S102
    ids = torch.tensor([[2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(context.load_model(folder)[0](ids).logits, tiny_chat[0](ids).logits)


def test_a_trusted_pickle_of_code_is_an_error_and_runs_nothing(folder, tmp_path):
    pickle_weights(folder, tmp_path / "ran")
    with pytest.raises(ValueError, match="cannot be read"):
        context.load_model(folder, trust=True)
    assert not (tmp_path / "ran").exists()


def test_a_chat_model_refuses_pickles_unless_trust_is_set(folder):
    pickle_weights(folder)
    model = LocalChatModel(model=folder, max_tokens=3)
    with pytest.raises(ValueError, match="are pickled"):
        model.invoke("hi")
    trusting = LocalChatModel(model=folder, max_tokens=3, trust=True)
    assert isinstance(trusting.invoke("hi").content, str)
    with pytest.raises(ValueError, match="are pickled"):  # while the other has the model loaded
        model.invoke("hi")


@pytest.mark.slow
def test_safetensors_are_read_beside_a_pickle_and_in_parts(folder, tiny_chat):
    weights = weights_of(folder)
    torch.save(weights, folder / "pytorch_model.bin")
    context.load_model(folder)
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "part.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    context.load_model(folder)
    change(folder / "config.json", transformers_weights="own.safetensors")
    save_file(weights, folder / "own.safetensors", metadata={"format": "pt"})
    context.load_model(folder)


def other_config(folder: Path, **fields: Any) -> None:
    shutil.copy(folder / "config.json", folder / "config.4.0.0.json")
    change(folder / "config.4.0.0.json", **fields)
    change(folder / "config.json", configuration_files=["config.4.0.0.json"])


def test_a_config_that_refers_to_others_hides_nothing(folder):
    other_config(folder, attn_implementation="strange/kernel", transformers_weights="adapter_model.bin")
    for trust in (False, True):
        with pytest.raises(ValueError, match="configuration_files"):
            context.load_model(folder, trust=trust)


def test_an_index_that_cannot_be_read_is_not_taken_for_safe(folder):
    pickle_under_a_safetensors_name(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"are pickled \(model.safetensors.index.json\)"):
        context.load_model(folder)


def test_the_advice_keeps_the_precision(folder):
    pickle_weights(folder)
    change(folder / "config.json", dtype="bfloat16")
    with pytest.raises(ValueError, match="convert it once") as error:
        context.load_model(folder)
    exec(str(error.value).partition("convert it once: ")[2], {})  # noqa: S102
    assert {weight.dtype for weight in weights_of(folder).values()} == {torch.bfloat16}


@pytest.mark.parametrize("setting", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("value", ["strange/kernel", "msa|strange/kernel@v1", {"": "strange/kernel"}])
def test_kernels_of_the_hub_are_refused(folder, setting, value):
    change(folder / "config.json", **{setting: value})
    with pytest.raises(ValueError, match="strange/kernel"):
        context.load_model(folder, trust=True)


def test_an_implementation_of_torch_may_be_named(folder):
    change(folder / "config.json", attn_implementation="sdpa")
    context.load_model(folder)


def test_an_adapter_is_not_ignored(folder):
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(folder)}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(ValueError, match="has a PEFT adapter"):
        context.load_model(folder)
    (folder / "model.gguf").touch()
    with pytest.raises(ValueError, match="has a PEFT adapter"):
        context.load_model(folder / "model.gguf")
