"""A record goes from its fields to the search for duplicates, then to the index, and enters each once."""

import sqlite3
import sys
from pathlib import Path

import pytest

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank import index

STAGES = ("record", "duplicates", "index")


def enter_stages(call):
    """Return the stages that a call enters, in order and without repetitions."""
    folder = Path(index.__file__).parent
    sequence = []

    def note(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        is_stage = path.parent == folder and path.stem in STAGES
        if event == "call" and is_stage and sequence[-1:] != [path.stem]:
            sequence.append(path.stem)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    return sequence


@pytest.mark.parametrize("text", ["Vera moved to Basel.", "Ada lives in Basel."], ids=["new", "duplicate"])
def test_a_record_passes_each_stage_once(text):
    with MemoryBank(":memory:") as bank:
        bank.add("Ada lives in Basel.")
        assert enter_stages(lambda: bank.add(text)) == list(STAGES)


def test_a_record_and_its_entries_are_deleted_together(tmp_path):
    path = tmp_path / "facts.db"
    with MemoryBank(path) as bank:
        id = bank.add("Ada lives in Basel.")
        with bank.store.writing() as connection:
            assert index.forget(connection, id, str(path))
            assert not index.forget(connection, id, str(path))
    with sqlite3.connect(path) as connection:
        for table in ("records", "marks", "postings", "blocks"):
            assert connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (0,), table
    connection.close()
