"""Help texts and words are stored for later calls, and a cache that is damaged or out of date is ignored."""

import json
import os
import subprocess
import sys

import pytest

from scrubjay.experiments.cli import cache
from scrubjay.experiments.commands.list import names
from scrubjay.experiments.recipes import RECIPES
from scrubjay.memory import list_memories

HEAVY = {"torch", "numpy", "gymnasium", "pettingzoo", "ray", "langchain_core"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache._state, "is_used", True)
    return tmp_path / "scrubjay" / "help"


def call(*words: str, **environment: str) -> str:
    """Return what a command prints in a new process."""
    command = [sys.executable, "-P", "-m", "scrubjay", *words]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True, timeout=600
    )
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "train tmaze --memory hcam --help",
        "train uav-small --method happo --learner clip --help",
        "list",
    ],
)
def test_a_stored_text_is_the_same_and_imports_no_computing_package(line, folder, modules_after):
    words = line.split()
    first_text = call(*words)
    assert "hcam" in first_text or "--seed INT" in first_text
    assert folder.stat().st_mode & 0o777 == 0o700
    assert call(*words) == first_text
    statement = f"from scrubjay.experiments.commands.main import main\nassert main({words}) == 0"
    assert modules_after(statement).isdisjoint(HEAVY)


def test_a_text_belongs_to_the_width_of_the_terminal(folder):
    narrow, wide, again = (call("plot", "--help", COLUMNS=width) for width in ("60", "110", "60"))
    assert narrow == again != wide
    assert "─" * 70 in wide or "-" * 70 in wide
    assert "─" * 70 not in narrow
    assert "-" * 70 not in narrow


@pytest.mark.slow
def test_an_action_is_never_replaced_by_a_stored_text(folder, tmp_path):
    bank = str(tmp_path / "bank.db")
    ids = [call("memory", "add", bank, "--", "-h") for _ in range(2)]
    assert "usage" not in ids[0]
    assert call("memory", "search", bank, "h").count("-h") == 1


def test_a_value_is_built_once(folder):
    values = iter([{"a": [1, None]}, {"a": [2]}])
    assert cache.load_or_build(["key"], lambda: next(values)) == {"a": [1, None]}
    assert cache.load_or_build(["key"], lambda: next(values)) == {"a": [1, None]}
    assert cache.load_or_build(["other"], lambda: next(values)) == {"a": [2]}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\x00", b'{"key": ["key"]}', b"[" * 100_000])
def test_a_damaged_file_is_built_again(content, folder):
    cache.store(["key"], 1)
    (file,) = folder.iterdir()
    file.write_bytes(content)
    assert cache.load(["key"]) is None
    assert cache.load_or_build(["key"], lambda: 2) == 2
    assert cache.load(["key"]) == 2
    assert list(folder.iterdir()) == [file]


def test_without_a_writable_folder_the_text_is_built_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(cache._state, "is_used", True)
    assert [cache.load_or_build(["key"], iter([number]).__next__) for number in (1, 2)] == [1, 2]
    assert call("plot", "--help") == call("plot", "--help")


def test_a_value_of_other_sources_is_ignored(folder, monkeypatch):
    cache.store(["key"], 1)
    monkeypatch.setattr(cache, "_source", lambda: "another version")
    assert cache.load(["key"]) is None


def test_the_source_changes_with_any_file(tmp_path, monkeypatch):
    (tmp_path / "memory").mkdir()
    file = tmp_path / "memory" / "gru.py"
    file.write_text("a = 1")
    before = list(cache._files(str(tmp_path)))
    assert len(before) == 1
    os.utime(file, ns=(1, 1))
    after_touch = list(cache._files(str(tmp_path)))
    file.write_text("a = 12")
    os.utime(file, ns=(1, 1))
    assert len({*before, *after_touch, *cache._files(str(tmp_path))}) == 3


def test_old_entries_are_deleted(folder, monkeypatch):
    monkeypatch.setattr(cache, "_MAX_ENTRIES", 3)
    for number in range(5):
        cache.store([str(number)], number)
        os.utime(cache._path([str(number)]), (number, number))
    values = {json.loads(file.read_text())["value"] for file in folder.iterdir()}
    assert values == {2, 3, 4}


@pytest.mark.slow
def test_a_process_with_own_components_neither_reads_nor_writes(folder, tmp_path, monkeypatch):
    text = call("list")
    (tmp_path / "mine.py").write_text(
        "import dataclasses\nfrom scrubjay.memory import register\n"
        "from scrubjay.memory.gru import GRU, GRUConfig\n"
        "class Mine(GRU):\n    '''My own memory.'''\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class MineConfig(GRUConfig):\n    def build(self): return Mine(self)\n"
        "register('mine', MineConfig)\n"
    )
    assert "My own memory." in call("list", SCRUBJAY_IMPORT="mine", PYTHONPATH=path_with(tmp_path))
    assert call("list") == text


def path_with(folder) -> str:
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_a_long_build_is_announced(folder, monkeypatch, capfd):
    monkeypatch.setattr(cache, "_SILENT_SECONDS", 0.0)
    with cache.show_progress():
        while "preparing" not in capfd.readouterr().err:
            pass


def test_names_are_those_of_the_registries():
    all_names = names()
    assert list(all_names.recipes) == list(RECIPES) == list(all_names.recipe_flags)
    assert list(all_names.memories) == list_memories()
    assert "--memory.chunk-size" in all_names.memory_flags["hcam"]
    assert "--learner.gamma" in all_names.recipe_flags["tmaze"]
    assert not [flag for flags in all_names.recipe_flags.values() for flag in flags if "memory." in flag]
