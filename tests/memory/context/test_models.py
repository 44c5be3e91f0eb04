"""Loading of models: no progress bars in logs, and unsupported models are refused early."""

import importlib
import os
from typing import Any

import pytest
import torch
import transformers
from tqdm.auto import tqdm
from transformers.utils import logging

from scrubjay.memory import context
from scrubjay.memory.context.cache import PolicyCache

from ...fuzz.samples import make_samples
from .families import FAMILIES, config_of

pytestmark = pytest.mark.requires("transformers")


def test_progress_bars_stay_out_of_logs(tiny_llama, tiny_chat, tmp_path, capfd):
    tiny_llama().save_pretrained(tmp_path)
    tiny_chat[1].save_pretrained(tmp_path)
    capfd.readouterr()
    assert logging.is_progress_bar_enabled()
    context.load_model(tmp_path)
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled()


@pytest.mark.parametrize(("value", "expected"), [(None, "NO"), ("YES", "YES")])
def test_no_kernel_is_downloaded_unless_the_user_asks(
    value, expected, tiny_llama, tiny_chat, tmp_path, monkeypatch
):
    tiny_llama().save_pretrained(tmp_path)
    tiny_chat[1].save_pretrained(tmp_path)
    monkeypatch.setenv("USE_HUB_KERNELS", value or "")
    if value is None:
        monkeypatch.delenv("USE_HUB_KERNELS")
    model, _ = context.load_model(tmp_path)
    assert os.environ["USE_HUB_KERNELS"] == expected
    assert not model.use_kernels


def test_an_unsupported_model_is_refused_before_its_weights_are_read(tmp_path):
    from transformers import Mamba2Config

    Mamba2Config(num_heads=4, head_dim=16, hidden_size=32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no attention layer"):  # there are no weights
        context.load_model(tmp_path, under_policy=True)


def test_a_file_that_cannot_be_read_is_named(tiny_llama, tiny_chat, tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    tiny_chat[1].save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.unlink()
    file.symlink_to("/proc/self/mem")  # an input/output error
    with pytest.raises(ValueError, match=r"cannot be read \(OSError: .*Input/output error\); copy it again"):
        context.load_model(tmp_path)


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_an_unavailable_device_is_named_before_anything_is_read(tmp_path, device):
    with pytest.raises(ValueError, match=f"device='{device}': torch cannot compute on this device"):
        context.load_model(tmp_path, device=device)  # an empty folder


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("DiffLlama", "DiffLlamaAttention attends .* twice"),
        ("Doge", "bias computed from the values"),
        ("GPTNeo", "does not support transformers' AttentionInterface"),
        ("Dory", "runs its layers 2 times in a call"),
        ("RecurrentGemma", "keeps states in its modules"),
        ("xLSTM", "no attention layer and needs a cache class of its own"),
        ("Blt", "four submodels with caches of their own"),
    ],
)
def test_unsupported_models_are_refused_by_a_test_call(tmp_path, name, reason):
    getattr(transformers, f"{name}Config")().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=reason):
        context.load_model(tmp_path, under_policy=True)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "granitemoehybrid"])
def test_a_mixture_of_experts_is_called_to_its_last_layer(tmp_path, monkeypatch, family):
    caches = []

    class RecordingCache(PolicyCache):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            caches.append(self)

    monkeypatch.setattr("scrubjay.memory.context.models.PolicyCache", RecordingCache)
    config = config_of(*FAMILIES[family])
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):  # there are no weights
        context.load_model(tmp_path, under_policy=True)
    assert [caches[0].get_seq_length(layer) for layer in range(config.num_hidden_layers)][-1] == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_supported_models_pass_the_test_call(tmp_path, family):
    config_of(*FAMILIES[family]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):  # there are no weights
        context.load_model(tmp_path, under_policy=True)


@pytest.mark.slow
def test_progress_bars_of_gguf_files_stay_out_of_logs(smollm2_and_stderr):
    gguf: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")

    assert smollm2_and_stderr[2] == ""
    assert gguf.tqdm is tqdm


@pytest.mark.requires("gguf")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_of_a_gguf_file_are_dequantized_without_a_warning(tmp_path, dtype, caplog):
    make_samples(tmp_path, ("ggufs",))
    model, _ = context.load_model(tmp_path / "ggufs" / "model.gguf", dtype, trust=True)
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    assert type(model.model.layers[0].self_attn.q_proj) is torch.nn.Linear
    assert "packed" not in caplog.text


@pytest.mark.requires("gguf")
def test_the_names_in_a_gguf_file_are_listed_once_and_not_for_each_module(tmp_path, monkeypatch):
    import gguf

    counts = []
    list_names = gguf.TensorNameMap.__init__

    def count(self, arch, n_blocks):
        counts.append(n_blocks)
        list_names(self, arch, n_blocks)

    monkeypatch.setattr(gguf.TensorNameMap, "__init__", count)
    monkeypatch.setattr(
        gguf.GGUFWriter,
        "add_block_count",
        lambda self, _: self.add_uint32("llama.block_count", 6),
    )
    make_samples(tmp_path, ("ggufs",))
    with pytest.raises(ValueError, match="lacks 45 of its weights"):
        context.load_model(tmp_path / "ggufs" / "model.gguf", trust=True)
    assert counts == [6]
