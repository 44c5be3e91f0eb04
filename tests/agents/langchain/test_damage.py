"""Damaged messages and items of a bank are an error that names the file; unknown trust is untrusted."""

from __future__ import annotations

import sqlite3

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from scrubjay.agents.langchain import BankChatMessageHistory, BankStore
from scrubjay.memory import DamagedBankError, MemoryBank

pytestmark = pytest.mark.requires("langgraph")

NESTED = "[" * 5000
SPACE = ("users", "ada")
NO_MESSAGES = [
    *("5", "null", "{}", "[]", "[1", NESTED, '{"type": "human"}', '{"type": "strange", "data": {}}'),
    *('{"type": "human", "data": []}', '{"type": "human", "data": {"content": 5}}', b"\xff"),
]


@pytest.fixture
def path(tmp_path):
    with MemoryBank(tmp_path / "bank.db") as bank:
        history = BankChatMessageHistory(bank, "t")
        history.add_messages([HumanMessage("Where is the acorn?"), AIMessage("By the wall.")])
        BankStore(bank).put(SPACE, "food", {"likes": ["acorns"]}, ttl=5)
    return tmp_path / "bank.db"


def change(path, statement, *values):
    connection = sqlite3.connect(path)
    connection.execute(statement, values)
    connection.commit()
    connection.close()


@pytest.mark.parametrize("text", NO_MESSAGES, ids=lambda text: repr(text)[:40])
def test_a_damaged_message_is_named(path, text):
    change(path, "UPDATE messages SET message = ? WHERE number = 2", text)
    with MemoryBank(path) as bank, pytest.raises(DamagedBankError, match=r"bank\.db"):
        _ = BankChatMessageHistory(bank, "t").messages
    change(path, "UPDATE messages SET record = NULL")
    with MemoryBank(path) as bank, pytest.raises(DamagedBankError, match=r"bank\.db"):
        BankChatMessageHistory(bank, "t").add_messages([AIMessage("More.")])


def test_a_damaged_reference_to_a_record_is_named(path):
    change(path, "UPDATE messages SET record = ?", b"x")
    with MemoryBank(path) as bank, pytest.raises(DamagedBankError, match=r"bank\.db"):
        BankChatMessageHistory(bank, "t").clear()


def test_answers_after_a_record_of_unknown_trust_are_untrusted(path):
    change(path, "UPDATE records SET trust = 'root'")
    with MemoryBank(path) as bank:
        BankChatMessageHistory(bank, "t", trusted_answers=True).add_messages([AIMessage("Green.")])
    connection = sqlite3.connect(path)
    ((trust,),) = connection.execute("SELECT trust FROM records WHERE text LIKE '%Green%'").fetchall()
    connection.close()
    assert trust == "tool"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("value", text) for text in ("[1", "5", "[]", "null", NESTED)),
        *((name, value) for name in ("created", "updated") for value in ("x", 1e300, float("inf"), -1e300)),
        *(("records", text) for text in ("x", "5", "null", NESTED, "[[]]", "[5]")),
        ("namespace", b"users\x1fada\x1f"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_damaged_item_is_named(path, column, value):
    def read(store):
        store.get(SPACE, "food")
        store.search(SPACE)
        store.search((), query="acorns")
        store.list_namespaces()

    def write(store):
        store.put(SPACE, "food", {"likes": ["nuts"]})

    def delete(store):
        store.delete(SPACE, "food")

    change(path, f"UPDATE items SET {column} = ?", value)
    actions = [write, delete, BankStore.sweep_ttl] if column == "records" else [read]
    for action in actions:
        with MemoryBank(path) as bank, BankStore(bank, clock=lambda: 1.0) as store:
            if action is BankStore.sweep_ttl:
                store._clock = lambda: 1e12
            with pytest.raises(DamagedBankError, match=r"bank\.db"):
                action(store)
