"""Links in the folder of the index do not lead to other files."""

import os
from pathlib import Path

import pytest

from scrubjay.memory import DamagedBankError, MemoryBank
from scrubjay.memory.bank.search import approximate, segments

pytestmark = pytest.mark.requires("usearch")


@pytest.fixture
def path(tmp_path, monkeypatch):
    for module in (segments, approximate):
        monkeypatch.setattr(module, "SEGMENT", 40)
    return tmp_path / "bank.db"


def open_bank(path, letters):
    return MemoryBank(path, letters, approximate=True)


def fill(path, letters):
    with MemoryBank(path, letters) as bank:
        return [bank.add(f"fact {i} {'abcdefgh'[i % 8] * (1 + i // 8)}", merge=False) for i in range(60)]


@pytest.mark.skipif(not hasattr(os, "link"), reason="needs hard links")
@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_link_in_the_folder_of_the_index_changes_no_other_file(path, tmp_path, letters, link):
    ids = fill(path, letters)
    private, folder = tmp_path / "private.txt", Path(f"{path}-ann")
    private.write_text("A private text.")
    folder.mkdir()
    link(private, folder / "part")
    with open_bank(path, letters) as bank:
        assert bank.search("fact 7")
        segment = next(folder.glob("*.usearch"))
        copy = tmp_path / "copy.usearch"
        os.link(segment, copy)
        before = copy.read_bytes()
        bank.forget(ids[3])
        assert bank.search("fact 8")
    assert private.read_text() == "A private text."
    assert copy.read_bytes() == before


def test_a_linked_folder_of_the_index_is_refused(path, tmp_path, letters):
    fill(path, letters)
    (tmp_path / "elsewhere").mkdir()
    Path(f"{path}-ann").symlink_to(tmp_path / "elsewhere")
    with open_bank(path, letters) as bank, pytest.raises(DamagedBankError, match="symbolic link"):
        bank.search("fact 7")
    assert not list((tmp_path / "elsewhere").iterdir())
