"""`scrubjay doctor` reports versions and missing packages."""

from __future__ import annotations

import importlib.metadata

import pytest
import torch

import scrubjay
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
