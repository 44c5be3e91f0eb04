"""The sizes of a config must fit the weight files, and are checked before memory is allocated."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from safetensors.torch import save_file

from scrubjay.memory import context
from scrubjay.memory.context.foreign.weights import (
    MAX_COUNT,
    MIN_MODULES,
    MIN_NUMBERS,
    ModelLimitError,
    WeightSizes,
    check_counts,
    check_density,
    read_sizes,
    size_limits,
)

pytestmark = pytest.mark.requires("transformers")
SIZES = WeightSizes(10, 1000, 4000)


@pytest.fixture
def folder(tmp_path, tiny_chat):
    for part in tiny_chat:
        part.save_pretrained(tmp_path)
    return tmp_path


def test_headers_have_the_sizes(tmp_path):
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(5, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    sizes = read_sizes([tmp_path / "a.safetensors"])
    assert sizes is not None
    assert sizes[:2] == (2, 11)
    assert sizes.nbytes == (tmp_path / "a.safetensors").stat().st_size
    assert read_sizes([tmp_path / "b.safetensors"]) is None
    (tmp_path / "b.safetensors").write_bytes(b"x" * 100)
    assert read_sizes([tmp_path / "b.safetensors"]) is None


@pytest.mark.one_in(4, rest="slow")
@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "fields",
    [
        {"vocab_size": 10**9},
        {"hidden_size": 2**20, "head_dim": 2**19, "intermediate_size": 2**20},
        {"num_hidden_layers": MAX_COUNT},
        {"num_hidden_layers": 10**7},
        {"num_labels": 10**8},
        {
            "model_type": "gptj",
            "n_embd": 32,
            "n_head": 4,
            "n_layer": 2,
            "rotary_dim": 4,
            "n_positions": 10**6,
        },
        {"model_type": "qwen3_moe", "num_experts": MAX_COUNT, "moe_intermediate_size": 2**12},
    ],
)
@pytest.mark.parametrize("under_policy", [False, True])
def test_a_config_that_asks_for_more_than_the_weights_is_refused(folder, fields, under_policy):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    with pytest.raises(ValueError, match=r"limit|is refused|lacks") as refusal:
        context.load_model(folder, under_policy=under_policy)
    assert type(refusal.value) is ValueError


@pytest.mark.slow
def test_each_limit_is_checked_in_this_thread_only():
    with size_limits("m", SIZES, False):
        torch.nn.Linear(10, 10, device="meta")
        with pytest.raises(ModelLimitError, match=r"more than 16,781,216 weights.*trust=True"):
            torch.nn.Linear(MIN_NUMBERS, 2, device="meta")
        with pytest.raises(ModelLimitError, match="bytes of buffers"):
            torch.nn.Module().register_buffer("a", torch.zeros(10**9, device="meta"))
        modules = torch.nn.ModuleList()
        with pytest.raises(ModelLimitError, match=f"more than {MIN_MODULES + 100:,} modules"):
            modules.extend(torch.nn.Identity() for _ in range(MIN_MODULES + 101))
        errors = []
        thread = threading.Thread(
            target=lambda: errors.append(torch.nn.Linear(MIN_NUMBERS, 2, device="meta"))
        )
        thread.start()
        thread.join()
        assert len(errors) == 1
    torch.nn.Linear(MIN_NUMBERS, 2, device="meta")


def test_quantized_weights_are_more_than_the_numbers_in_the_files():
    with size_limits("m", WeightSizes(1, 10, MIN_NUMBERS), True):
        torch.nn.Linear(MIN_NUMBERS, 8, bias=False, device="meta")


def test_counts_at_any_depth_are_limited():
    check_counts({"vocab_size": 10**6, "num_layers": 100, "layer_norm_eps": 1e-5, "block_size": 10**6})
    check_counts({"text_config": {"max_position_embeddings": 10**7, "rope_theta": 10**9}})
    for config in ({"text_config": {"n_layer": 10**6}}, {"parts": [{"num_experts": [1, 10**6]}]}):
        with pytest.raises(ModelLimitError, match="limit 100,000"):
            check_counts(config)


def test_a_file_of_holes_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(b"x")
        stream.truncate(2**30)
    if not 0 < 512 * file.stat().st_blocks < 2**27:
        pytest.skip("this file system stores holes")
    with pytest.raises(ModelLimitError, match=r"1,073,741,824 bytes long, but only .* are holes"):
        check_density(file)
    with file.open("wb") as stream:
        stream.write(b"x" * 2**20)
    check_density(file)
