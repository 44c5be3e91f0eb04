"""Packages whose names are imported when first used."""

import importlib
import subprocess
import sys

import pytest

from scrubjay._lazy import face

PACKAGES = [
    "scrubjay.kernels",
    "scrubjay.memory",
    "scrubjay.memory.context",
    "scrubjay.agents",
    "scrubjay.agents.langchain",
    "scrubjay.experiments",
]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_is_found_and_others_are_not(package):
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize(
    ("packages", "heavy"),
    [
        ("scrubjay.kernels, scrubjay.memory, scrubjay.agents, scrubjay.experiments", "torch"),
        ("scrubjay.memory.context", "transformers"),
    ],
)
def test_importing_a_package_does_not_import_what_only_some_of_it_needs(packages, heavy):
    code = f"import sys, {packages}; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_what_is_missing_is_told_with_its_extra(monkeypatch):
    extras = {"transformers": "lm"}
    _, get, _ = face("scrubjay.memory.context", {"models": ["load_model"]}, extras=extras)
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "scrubjay.memory.context.models", raising=False)
    with pytest.raises(ImportError, match=r"load_model needs transformers: pip install 'scrubjay\[lm\]'"):
        get("load_model")
