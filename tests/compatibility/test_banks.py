"""Files of memory that d9e860e wrote: what they know is found as in a new bank, and they are written on."""

import json
import shutil
import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from collect import Letters
from material import MADE, NOW, SEARCHES, THREAD, Clock, graph

from scrubjay.experiments.cli import main
from scrubjay.memory import MemoryBank

EXPECTED = json.loads((MADE / "bank.expected.json").read_text("utf-8"))
EXPORTED = [json.loads(line) for line in (MADE / "bank.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture
def file(tmp_path):
    """Return a copy: reading, too, makes files beside it."""
    return shutil.copy(MADE / "bank.db", tmp_path / "bank.db")


@pytest.fixture
def bank(file):
    with MemoryBank(file, Letters(), clock=Clock()) as bank:
        yield bank


@pytest.fixture(params=[True, False], ids=["words and meaning", "words alone"])
def old_and_new(request, file, tmp_path):
    """Return the file, a new bank of the same records, and where it is noted what d9e860e found."""
    embeddings = Letters() if request.param else None
    with (
        MemoryBank(file, embeddings, clock=Clock()) as old,
        MemoryBank(tmp_path / "new.db", embeddings, clock=Clock()) as new,
    ):
        assert all(new.restore(EXPORTED))
        yield old, new, "found" if request.param else "found by words"


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_finds_what_it_does_in_a_new_bank_and_the_best_among_the_first(name, old_and_new):
    query, options = SEARCHES[name]
    *banks, known = old_and_new
    old, new = (bank.search(query, **options) for bank in banks)
    assert [hit.id for hit in old] == [hit.id for hit in new]
    assert [hit.score for hit in old] == pytest.approx([hit.score for hit in new], rel=1e-5, abs=1e-7)
    if found := EXPECTED[known][name]:
        assert found[0][0] in [hit.id for hit in old[:4]]


def test_all_is_exported_as_it_was(bank):
    assert list(bank.export()) == EXPORTED


def test_an_export_is_restored(tmp_path):
    with MemoryBank(tmp_path / "new.db", Letters(), clock=Clock()) as bank:
        assert all(bank.restore(EXPORTED))
        assert not any(bank.restore(EXPORTED))
        told = [{**row, "chunk": 0} for row in bank.export()]
        assert told == [{**row, "chunk": 0} for row in EXPORTED]


def test_records_are_read_as_they_were_written(bank):
    (old,) = (row for row in EXPORTED if row["text"] == "Vera lives in Lisbon.")
    record = bank.get(old["id"])
    assert record.namespace == ("user", "vera")
    assert record.sayings == 2
    assert bank.sayings(record.id) == ["Vera lives in Lisbon.", "vera lives in lisbon"]
    (new,) = (row for row in EXPORTED if row["text"] == "Vera lives in Oslo.")
    assert bank.get(new["id"]).supersedes == record.id
    assert bank.get(new["id"]).created == record.valid_to
    assert bank.get(EXPECTED["forgotten"]) is None


def test_it_is_written_on(bank, file):
    first = bank.search("Where does Vera live?")[0]
    assert first.text == "Vera lives in Oslo."
    before = len(bank)
    assert bank.add("Ada likes black tea, and never coffee.", namespace=("user", "ada")) in {
        row["id"] for row in EXPORTED
    }
    assert len(bank) == before
    newest = bank.add("Vera lives in Rome.", first.kind, first.namespace, supersedes=first.id)
    assert bank.search("Where does Vera live?")[0].id == newest
    assert bank.get(first.id).valid_to == NOW
    assert bank.forget(newest)
    assert not bank.forget(newest)
    assert len(bank) == before
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA user_version").fetchone() == (3,)


def test_other_embeddings_are_refused(file):
    class Others(Letters):
        def embed_query(self, text):
            return list(reversed(super().embed_query(text)))

    with (
        MemoryBank(file, Others(), clock=Clock()) as bank,
        pytest.raises(ValueError, match="written with other embeddings"),
    ):
        bank.search("Vera")


def test_the_command_reads_and_writes_it(file, tmp_path, capsys):
    def said(*words):
        assert main(["memory", *map(str, words)]) == 0
        return capsys.readouterr().out

    assert "Vera lives in Oslo." in said("search", file, "Where does Vera live?")
    hits = [json.loads(line) for line in said("search", file, "薇拉", "--json").splitlines()]
    assert "薇拉住在奥斯陆。" in [hit["text"] for hit in hits]
    id = said("add", file, "Vera keeps bees.", "--namespace", "user/vera").strip()
    assert "Vera keeps bees." in said("show", file, id)
    assert said("forget", file, id) == "forgotten: 1\n"
    said("export", file, "--out", tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == EXPORTED
    assert f"{len(EXPORTED)} new" in said("import", tmp_path / "new.db", MADE / "bank.jsonl")


@pytest.fixture
def shared(tmp_path):
    pytest.importorskip("langgraph")
    return shutil.copy(MADE / "graph.db", tmp_path / "graph.db")


def test_a_graph_goes_on_where_it_waited(shared):
    from scrubjay.agents.langchain import Checkpointer

    with Checkpointer(shared) as saver:
        waiting = graph(saver)
        assert waiting.get_state(THREAD).next == ("answer",)
        done = waiting.invoke(None, THREAD)
        assert [message.content for message in done["messages"]] == [
            "Ready?",
            "thought 1",
            "after Ready? | thought 1",
        ]
        assert [message.id for message in done["messages"]] == ["question", "thought", "answer"]
        assert len(list(saver.list(THREAD))) == 4
        saver.delete_thread("ada")
        assert list(saver.list(THREAD)) == []


def test_a_store_has_its_items(shared):
    from scrubjay.agents.langchain import BankStore

    clock = Clock()
    with MemoryBank(shared, Letters(), clock=clock) as bank:
        store = BankStore(bank, clock=lambda: clock.now.timestamp())
        likes = store.get(("users", "ada"), "likes")
        assert likes is not None
        assert likes.value == {"text": "Ada likes black tea", "strength": 3}
        assert likes.created_at == NOW
        assert store.list_namespaces() == [("users", "ada"), ("users", "维拉")]
        found = store.search(("users",), query="black tea")
        assert found[0].key == "likes"
        assert {item.key for item in found} == {"likes", "hidden", "喜欢", "soon gone"}
        assert next(item for item in found if item.key == "hidden").score is None
        clock.now += timedelta(hours=2)
        assert store.get(("users", "ada"), "soon gone") is None
        assert store.sweep_ttl() == 1
        store.put(("users", "ada"), "likes", {"text": "Ada likes white tea"})
        assert store.search(("users",), query="white tea")[0].key == "likes"


def test_a_history_has_its_messages(shared):
    from scrubjay.agents.langchain import BankChatMessageHistory

    with MemoryBank(shared, Letters(), clock=Clock()) as bank:
        history = BankChatMessageHistory(bank, "ada", ("users",))
        messages: list[Any] = history.messages
        asked, calling, told, answer = messages
        assert [asked.id, calling.id, told.id, answer.id] == ["h1", "a1", "t1", "a2"]
        assert calling.tool_calls[0]["args"] == {"zone": "UTC"}
        assert told.tool_call_id == "call-1"
        history.add_user_message("And now?")
        assert len(history.messages) == 5
        assert bank.search("noon", k=1, namespace=("users",))[0].trust == "tool"
        history.clear()
        assert history.messages == []
