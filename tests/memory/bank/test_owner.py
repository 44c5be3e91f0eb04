"""Export and deletion of everything of one owner: records, items, messages and decisions."""

import sqlite3

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from scrubjay.agents.langchain import BankChatMessageHistory, BankStore
from scrubjay.memory import DamagedBankError, MemoryBank
from scrubjay.memory.bank import Change, Consolidation
from scrubjay.memory.bank.serialization import BATCH

OWNERS = [("user", "ada"), ("user", "ada", "work"), ("user", "ad"), ("user", "adam"), ()]


def secret(owner):
    return "secret-" + ("-".join(owner) or "nobody") + "."


def fill(path):
    with MemoryBank(path) as bank:
        store = BankStore(bank, index={"fields": ["text"]})
        consolidation = Consolidation(bank, lambda text, records: [Change("add")])
        for owner in OWNERS:
            bank.add(f"a heron {secret(owner)}", namespace=owner)
            consolidation.add(f"an egret {secret(owner)}", namespace=owner)
            if owner:
                store.put(owner, "note", {"text": f"a tern {secret(owner)}"})
            history = BankChatMessageHistory(bank, "thread", owner)
            history.add_messages([HumanMessage(f"hello {secret(owner)}"), AIMessage("Ok.")])


def test_everything_of_an_owner_is_exported_and_erased_without_a_byte(tmp_path):
    path = tmp_path / "bank.db"
    fill(path)
    with MemoryBank(path) as bank:
        rows = list(bank.export_owner(("user", "ada")))
        assert {tuple(row["namespace"]) for row in rows} == {("user", "ada"), ("user", "ada", "work")}
        tables = [row["table"] for row in rows]
        assert tables == ["records"] * 8 + ["items"] * 2 + ["messages"] * 4
        assert rows[8]["value"] == {"text": "a tern secret-user-ada."}
        assert rows[10]["message"]["data"]["content"] == "hello secret-user-ada."
        with MemoryBank(":memory:") as copy:
            assert copy.restore(row for row in rows if row["table"] == "records") == [True] * 8
        counts = bank.erase_owner(("user", "ada"))
        assert counts == {"records": 10, "items": 2, "messages": 4, "decisions": 2}
        assert list(bank.export_owner(("user", "ada"))) == []
        assert not any(bank.erase_owner(("user", "ada")).values())
        assert [len(list(bank.export_owner(owner))) for owner in OWNERS[2:4]] == [7, 7]
        assert len(Consolidation(bank, lambda text, records: []).decisions()) == 3
    data = path.read_bytes()
    for owner in OWNERS:
        assert (secret(owner).encode() in data) is (owner[:2] != ("user", "ada"))


def test_an_owner_with_many_rows_is_erased_in_batches():
    with MemoryBank(":memory:") as bank:
        store, owner, count = BankStore(bank, index={"fields": ["text"]}), ("user", "ada"), BATCH + 3
        drafts = [bank.draft(f"heron x{number}", namespace=owner, merge=False) for number in range(count)]
        bank.write(bank.embed_drafts(drafts))
        for number in range(3):
            store.put(owner, str(number), {"text": "a tern"})
        assert sum(row["table"] == "records" for row in bank.export_owner(owner)) == count
        counts = bank.erase_owner(owner)
        assert (counts["records"], counts["items"], len(bank)) == (count + 3, 3, 0)


def test_a_bank_without_the_other_tables_has_records_alone(bank):
    bank.add("a heron", namespace=("user", "ada"))
    (row,) = bank.export_owner(["user"])
    assert (row["table"], row["text"]) == ("records", "a heron")
    assert bank.erase_owner(["user"]) == {"records": 1, "items": 0, "messages": 0, "decisions": 0}


def test_an_empty_owner_is_refused(bank):
    bank.add("a heron")
    for act in (bank.erase_owner, lambda owner: list(bank.export_owner(owner))):
        with pytest.raises(ValueError, match="name an owner"):
            act(())
    assert len(bank) == 1


@pytest.mark.parametrize("text", ["no JSON", "{}", "[1]"])
def test_a_damaged_list_of_records_is_reported(tmp_path, text):
    path = tmp_path / "bank.db"
    fill(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE items SET records = ?", (text,))
    connection.close()
    with MemoryBank(path) as bank:
        count = len(bank)
        with pytest.raises(DamagedBankError, match="record"):
            bank.erase_owner(("user", "ada"))
        assert len(bank) == count
