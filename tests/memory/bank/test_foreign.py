"""A foreign bank and a foreign export: every record counts as the text of a tool, whatever the file says."""

import contextlib
import json
import sqlite3

import pytest

from scrubjay.memory import DamagedBankError, MemoryBank
from scrubjay.memory.bank import Change, Consolidation
from scrubjay.memory.bank.record import TRUSTS


@pytest.fixture
def path(tmp_path):
    """Bank with one record of each author."""
    with MemoryBank(tmp_path / "bank.db") as bank:
        for trust in TRUSTS:
            bank.add(f"harvest report of the {trust}", trust=trust)
    return tmp_path / "bank.db"


def set_trust(path, word):
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE records SET trust = ?", (word,))


def get(bank, id):
    record = bank.get(id)
    assert record is not None
    return record


def trusts(records):
    return sorted(record["trust"] if isinstance(record, dict) else record.trust for record in records)


def test_every_reading_of_a_foreign_bank_has_the_trust_of_a_tool(path):
    with MemoryBank(path) as bank:
        ids = [row["id"] for row in bank.export()]
        assert trusts(bank.export()) == sorted(TRUSTS)
    with MemoryBank(path, foreign=True) as bank:
        assert bank.foreign
        for records in (bank.search("harvest"), bank.recent(9), map(bank.get, ids), bank.export()):
            assert trusts(records) == ["tool"] * 3
        assert len(bank.search("harvest", trusts="tool")) == 3
        assert len(bank.search("harvest", trusts=("agent", "tool"))) == 3
        assert bank.search("harvest", trusts=("user", "agent")) == []


def test_a_foreign_bank_searches_by_meaning_with_the_same_limit(path, letters, tmp_path):
    with MemoryBank(tmp_path / "new.db", letters) as own:
        own.add("a bad cab")
    with MemoryBank(tmp_path / "new.db", letters, foreign=True) as bank:
        assert trusts(bank.search("cab", by="meaning")) == ["tool"]
        assert bank.search("cab", by="meaning", trusts="user") == []


def test_a_record_added_to_a_foreign_bank_counts_as_a_tools_text_there_and_as_the_users_in_an_own_bank(path):
    with MemoryBank(path, foreign=True) as bank:
        id = bank.add("I live in Lisbon.", trust="user")
        assert get(bank, id).trust == "tool"
    with MemoryBank(path) as bank:
        assert get(bank, id).trust == "user"


def test_a_tool_may_supersede_any_record_of_a_foreign_bank_but_not_a_users_record_of_an_own_bank(path):
    with MemoryBank(path) as bank:
        old = next(row["id"] for row in bank.export() if row["trust"] == "user")
        with pytest.raises(ValueError, match="cannot replace a record of trust 'user'"):
            bank.add("harvest report of a page", trust="tool", supersedes=old)
    with MemoryBank(path, foreign=True) as bank:
        bank.add("harvest report of a page", trust="tool", supersedes=old)
        assert get(bank, old).valid_to is not None


def test_consolidation_in_a_foreign_bank_shows_the_records_to_tools_only(path):
    candidate_trusts = []

    def decide(text, records):
        candidate_trusts.append(trusts(records))
        return [Change("add")]

    with MemoryBank(path, foreign=True) as bank:
        memory = Consolidation(bank, decide)
        memory.add("harvest report", kind="conversation", trust="tool")
        memory.add("harvest report", kind="conversation", trust="user")
    assert candidate_trusts == [["tool"] * 3, []]


@pytest.mark.parametrize("foreign", [True, False])
@pytest.mark.parametrize("word", ["root", "User", "user ", "", "system"])
def test_an_unknown_trust_is_refused_by_name(path, word, foreign):
    with MemoryBank(path) as bank:
        id = bank.recent(1)[0].id
    set_trust(path, word)
    with MemoryBank(path, foreign=foreign) as bank:
        for act in (
            lambda: bank.search("harvest"),
            lambda: bank.get(id),
            lambda: bank.recent(3),
            lambda: list(bank.export()),
            lambda: bank.add("new", supersedes=id),
        ):
            with pytest.raises(DamagedBankError, match=f"unknown trust {word!r}"):
                act()


@pytest.mark.parametrize("foreign", [True, False])
@pytest.mark.parametrize("word", ["root", "User", "", None, 1, ["user"]])
def test_an_import_refuses_an_unknown_trust_by_name(path, word, foreign):
    with MemoryBank(path) as bank, MemoryBank(":memory:") as copy:
        rows = [row | {"trust": word} for row in bank.export()]
        with pytest.raises(ValueError, match="trust="):
            copy.restore(rows, foreign=foreign)
        assert len(copy) == 0


def test_an_import_is_foreign_unless_the_caller_says_otherwise(path):
    with MemoryBank(path) as bank, MemoryBank(":memory:") as strange, MemoryBank(":memory:") as own:
        rows = [json.loads(json.dumps(row)) for row in bank.export()]
        strange.restore(rows)
        own.restore(rows, foreign=False)
        assert trusts(strange.export()) == ["tool"] * 3
        assert list(own.export()) == rows
        assert [row | {"trust": ""} for row in strange.export()] == [row | {"trust": ""} for row in rows]


def test_an_imported_record_is_no_duplicate_of_a_users_record(path):
    with MemoryBank(path) as bank, MemoryBank(":memory:") as copy:
        copy.restore(bank.export())
        id = copy.add("harvest report of the user", trust="user")
        assert (get(copy, id).trust, get(copy, id).sayings) == ("user", 1)
        assert copy.add("harvest report of the user", trust="tool") != id
        assert len(copy) == 4


def test_the_export_of_a_foreign_bank_says_tool_also_to_an_own_import(path):
    with MemoryBank(path, foreign=True) as bank, MemoryBank(":memory:") as copy:
        copy.restore(bank.export(), foreign=False)
        assert trusts(copy.export()) == ["tool"] * 3
