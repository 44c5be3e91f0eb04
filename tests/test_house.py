"""Packages are folders, imports are light and the version is unique."""

import os
import rlcompleter
import subprocess
import sys
from pathlib import Path

import pytest

import scrubjay
from scrubjay.experiments.commands import COMMANDS
from scrubjay.experiments.commands.benchmarks import MEASUREMENTS
from scrubjay.experiments.commands.memory import ACTIONS

ROOT = Path(__file__).parent.parent
HEAVY = (
    "ray",
    "langchain_core",
    "transformers",
    "huggingface_hub",
    "gymnasium",
    "pettingzoo",
    "torch_geometric",
)


@pytest.mark.parametrize("package", ["agents", "envs", "experiments", "kernels", "memory"])
def test_every_package_is_linked_to_its_folder(package):
    link = ROOT / "src" / "scrubjay" / package
    assert link.is_dir(), f"{link} is not a folder: this copy lost its symbolic links; clone it with git"
    assert link.resolve() == ROOT / package


def test_memory_imports_no_framework(modules_after):
    modules = modules_after("import scrubjay.memory; scrubjay.memory.make('gru', dim=8)")
    assert "torch" in modules
    assert modules.isdisjoint(HEAVY)


def test_a_bank_of_texts_does_not_load_torch(modules_after):
    modules = modules_after("import scrubjay.memory; scrubjay.memory.MemoryBank(':memory:')")
    assert "sqlite3" in modules
    assert modules.isdisjoint({*HEAVY, "torch"})


def test_a_bank_whose_embeddings_come_from_a_service_does_not_load_torch(modules_after):
    modules = modules_after("""
from scrubjay.memory import MemoryBank

class Service:
    def embed_query(self, text): return [1.0, float(len(text))]
    def embed_documents(self, texts): return [self.embed_query(text) for text in texts]

with MemoryBank(":memory:", Service()) as bank:
    id = bank.add("Ada was born in 1815.")
    bank.add("She wrote of engines.")
    assert len(bank.search("Who?")) == 2
    bank.forget(id)
    assert len(bank.search("Who?")) == 1
""")
    assert "numpy" in modules
    assert "torch" not in modules


def test_environments_import_neither_torch_nor_ray(modules_after):
    assert modules_after("import scrubjay.envs").isdisjoint({"torch", "ray"})


def test_agents_and_experiments_do_not_start_ray_or_draw_or_load_language_models(modules_after):
    packages = ("memory", "envs", "agents", "experiments", "experiments.commands.main")
    names = ", ".join(f"scrubjay.{package}" for package in packages)
    assert modules_after(f"import {names}").isdisjoint(
        {"ray", "matplotlib", "transformers", "langchain_core"}
    )


def statement(*words: str) -> str:
    """Return the statement that runs the command with these arguments."""
    return f"from scrubjay.experiments.commands.main import main\nassert main({list(words)}) == 0"


def helps() -> list[tuple[str, ...]]:
    """Return all commands and subcommands with a help text."""
    nested = {"memory": ACTIONS, "longcontext": MEASUREMENTS}
    return [(verb, *word) for verb in COMMANDS for word in [(), *((name,) for name in nested.get(verb, ()))]]


@pytest.fixture(scope="module")
def stored_names(tmp_path_factory):
    """Folder of a cache in which the first call of a command has stored the names that it prints."""
    folder = str(tmp_path_factory.mktemp("cache"))
    command = [sys.executable, "-P", "-m", "scrubjay", "list"]
    subprocess.run(command, env={**os.environ, "XDG_CACHE_HOME": folder}, capture_output=True, check=True)
    return folder


@pytest.mark.one_in(3)
@pytest.mark.parametrize("words", helps(), ids=" ".join)
def test_no_help_imports_torch(words, modules_after, stored_names, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", stored_names)
    assert modules_after(statement(*words, "--help")).isdisjoint({*HEAVY, "torch", "matplotlib"})


@pytest.mark.parametrize("words", [("list",), ("train",), ("--version",), ()], ids=" ".join)
def test_names_are_printed_without_importing_torch(words, modules_after, stored_names, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", stored_names)
    modules = modules_after(statement(*words))
    assert modules.isdisjoint({*HEAVY, "torch", "matplotlib", "numpy"})


def test_the_package_is_the_command():
    command = [sys.executable, "-P", "-m", "scrubjay", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout == f"scrubjay {scrubjay.__version__}\n"


def test_names_are_completed_at_a_prompt():
    completer = rlcompleter.Completer({"scrubjay": scrubjay})
    completions = []
    while (match := completer.complete("scrubjay.memory.m", len(completions))) is not None:
        completions.append(match.rstrip("()"))
    assert {"scrubjay.memory.make", "scrubjay.memory.make_config", "scrubjay.memory.match_parameters"} <= {
        *completions
    }


def test_packages_are_not_importable_by_their_bare_names():
    """Hugging Face has a package named kernels, which may be installed."""
    code = (
        "import importlib.util as u; print(*[s.origin for s in map(u.find_spec, "
        "('agents', 'memory', 'envs', 'kernels')) if s], sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    origins = [Path(line) for line in done.stdout.split()]
    assert not [origin for origin in origins if origin.is_relative_to(ROOT / "kernels")]
    assert {origin.parent.name for origin in origins} <= {"kernels"}


def test_the_folder_of_kernels_does_not_replace_the_package_of_hugging_face():
    done = subprocess.run(
        [sys.executable, "-c", "import kernels"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert "ImportError: kernels is a subpackage of scrubjay" in done.stderr
    assert "start Python with -P or in another folder" in done.stderr


def test_the_version_is_the_installed_one():
    from importlib.metadata import version

    assert version("scrubjay") == scrubjay.__version__
