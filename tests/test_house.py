"""The house itself: its rooms are folders, imports are light, the version is one."""

import rlcompleter
import subprocess
import sys
from pathlib import Path

import pytest

import scrubjay
from scrubjay.experiments.commands import COMMANDS
from scrubjay.experiments.commands.memory import ACTIONS
from scrubjay.experiments.longcontext.commands import MEASUREMENTS

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


@pytest.mark.parametrize("room", ["agents", "envs", "experiments", "kernels", "memory"])
def test_every_room_is_a_folder_through_its_link(room):
    link = ROOT / "src" / "scrubjay" / room
    assert link.is_dir(), f"{link} is not a folder: this copy lost its symbolic links; clone it with git"
    assert link.resolve() == ROOT / room


def test_memory_imports_no_framework(modules_after):
    loaded = modules_after("import scrubjay.memory; scrubjay.memory.make('gru', dim=8)")
    assert "torch" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_a_bank_of_texts_does_not_load_torch(modules_after):
    loaded = modules_after("import scrubjay.memory; scrubjay.memory.MemoryBank(':memory:')")
    assert "sqlite3" in loaded
    assert loaded.isdisjoint({*HEAVY, "torch"})


def test_a_bank_whose_embeddings_come_from_a_service_does_not_load_torch(modules_after):
    loaded = modules_after("""
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
    assert "numpy" in loaded
    assert "torch" not in loaded


def test_environments_import_neither_torch_nor_ray(modules_after):
    assert modules_after("import scrubjay.envs").isdisjoint({"torch", "ray"})


def test_agents_and_experiments_do_not_start_ray_or_draw_or_load_language_models(modules_after):
    rooms = "scrubjay.memory, scrubjay.envs, scrubjay.agents, scrubjay.experiments, scrubjay.experiments.cli"
    assert modules_after(f"import {rooms}").isdisjoint(
        {"ray", "matplotlib", "transformers", "langchain_core"}
    )


def shown(*words: str) -> str:
    """Return the statement that runs the command on `words`."""
    return f"from scrubjay.experiments.cli import main\nassert main({list(words)}) == 0"


def helps() -> list[tuple[str, ...]]:
    """Return the words of the command after which --help tells more: every verb, and every word of one."""
    nested = {"memory": ACTIONS, "longcontext": MEASUREMENTS}
    return [(verb, *word) for verb in COMMANDS for word in [(), *((name,) for name in nested.get(verb, ()))]]


@pytest.mark.parametrize("words", helps(), ids=" ".join)
def test_no_help_waits_for_what_computes(words, modules_after):
    assert modules_after(shown(*words, "--help")).isdisjoint({*HEAVY, "torch", "matplotlib"})


@pytest.mark.parametrize("words", [("list",), ("train",), ("--version",), ()], ids=" ".join)
def test_names_are_shown_without_what_they_name(words, modules_after):
    loaded = modules_after(shown(*words))
    assert loaded.isdisjoint({*HEAVY, "torch", "matplotlib", "numpy"})


def test_the_package_is_the_command():
    command = [sys.executable, "-P", "-m", "scrubjay", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"scrubjay {scrubjay.__version__}\n"


def test_names_are_completed_at_a_prompt():
    completer = rlcompleter.Completer({"scrubjay": scrubjay})
    found = []
    while (match := completer.complete("scrubjay.memory.m", len(found))) is not None:
        found.append(match.rstrip("()"))
    assert {"scrubjay.memory.make", "scrubjay.memory.make_config", "scrubjay.memory.match_parameters"} <= {
        *found
    }


def test_the_rooms_are_not_importable_by_their_bare_names():
    code = (
        "import importlib.util as u; print([n for n in ('agents', 'memory', 'envs', 'kernels') if "
        "u.find_spec(n)])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.strip() == "[]"


def test_the_version_is_the_installed_one():
    from importlib.metadata import version

    assert version("scrubjay") == scrubjay.__version__
