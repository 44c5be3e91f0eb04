"""Models are loaded without a word where nobody sees it."""

import importlib
from typing import Any

import pytest

pytest.importorskip("transformers")

from tqdm.auto import tqdm
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


def test_so_do_those_of_gguf_files(smollm2_and_what_it_said):
    gguf: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")

    assert smollm2_and_what_it_said[2] == ""
    assert gguf.tqdm is tqdm
