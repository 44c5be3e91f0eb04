"""Each integration imports its framework on first use; without the extra, the error names it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import scrubjay.agents.langchain as integrations

WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("langchain", "langgraph"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import scrubjay.agents.langchain as package
assert "langchain_core" not in sys.modules
for name in package.__all__:
    try:
        getattr(package, name)
        print(name, "works")
    except ModuleNotFoundError as error:
        print(name, error)
"""


def test_without_the_extra_the_rest_works_and_the_error_names_it():
    process = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    results = dict(line.split(" ", 1) for line in process.stdout.splitlines())
    required_packages = {"BankMiddleware": "langchain", "BankStore": "langgraph", "Checkpointer": "langgraph"}
    for name, text in results.items():
        if name in required_packages:
            assert text.startswith(f"{name} needs {required_packages[name]}")
            assert text.endswith("pip install 'scrubjay[langgraph]'")
        else:
            assert text == "works"
    assert results.keys() == set(integrations.__all__)


@pytest.mark.requires("langchain", "langgraph", "transformers", "llguidance")
def test_all_names_are_there():
    assert all(callable(getattr(integrations, name)) for name in integrations.__all__)
    assert not hasattr(integrations, "BankNothing")
