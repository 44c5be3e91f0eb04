"""Storing, superseding, filtering and deleting records of a bank."""

import math
import sqlite3
from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pytest

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank import Change, Consolidation
from scrubjay.memory.bank.record import MAX_TEXT_LENGTH

DAY = timedelta(days=1)
START = datetime(2026, 1, 1, tzinfo=UTC)


def read(bank, id):
    record = bank.get(id)
    assert record is not None
    return record


def texts(hits):
    return [hit.text for hit in hits]


def test_a_record_comes_back_as_it_was_written(bank):
    id = bank.add(
        "Ada was born in 1815.",
        "knowledge",
        ("user", "ada"),
        0.9,
        START - DAY,
        trust="tool",
        url="https://x.org",
        n=[1],
    )
    (hit,) = bank.search("When was Ada born?")
    record = bank.get(id)
    for result in (hit, record):
        assert (result.id, result.text, result.kind) == (id, "Ada was born in 1815.", "knowledge")
        assert (result.namespace, result.trust, result.importance) == (("user", "ada"), "tool", 0.9)
        assert (result.created, result.observed) == (START, START - DAY)
        assert result.provenance == {"url": "https://x.org", "n": [1]}
    assert bank.recent(1) == [record]
    assert bank.get("nothing") is None


def test_a_new_truth_ends_an_old_one_and_both_stay(bank, clock):
    old = bank.add("Ada lives in Berlin.")
    clock.now += DAY
    new = bank.add("Ada lives in Paris.", supersedes=old)
    assert texts(bank.search("Where does Ada live?")) == ["Ada lives in Paris."]
    assert texts(bank.recent(9)) == ["Ada lives in Paris."]
    assert texts(bank.search("Where does Ada live?", at=START)) == ["Ada lives in Berlin."]
    assert bank.get(old).valid_to == bank.get(new).valid_from == START + DAY
    assert bank.get(new).supersedes == old
    assert len(bank) == 2


def test_validity_bounds_what_is_found(bank, clock):
    bank.add("The museum is closed.", valid_from=START + DAY, valid_to=START + 2 * DAY)
    for days, count in ((0, 0), (1, 1), (1.5, 1), (2, 0)):
        assert len(bank.search("museum", at=START + days * DAY)) == count
    clock.now += DAY
    assert len(bank.search("museum")) == len(bank.recent(5)) == 1


def test_what_was_not_yet_observed_is_not_found_at_an_earlier_time(bank, clock):
    birth = bank.add("Ada was born in Rome.", valid_from="1990-01-01")
    first = bank.add("Ada lives in Rome.", observed="2025-03-01")
    second = bank.add("Ada lives in Oslo.", observed="2025-09-01", supersedes=first)

    def find(at):
        return {hit.id for hit in bank.search("Where does Ada live?", at=at)}

    assert find("1989-12-31") == set()
    # A start of validity counts, also for a fact that was learned later.
    assert find("2025-02-28T23:59:59") == {birth}
    assert find("2025-03-01") == find("2025-08-31") == {birth, first}
    assert find("2025-09-01") == find(clock.now) == find(None) == {birth, second}
    # A clock that is ahead hides nothing from a search without `at`.
    ahead = bank.add("Ada lives in Bonn.", observed=clock.now + DAY)
    assert ahead in find(None) | find(clock.now + DAY)
    assert ahead not in find(clock.now)


def test_an_earlier_statement_of_a_known_fact_moves_the_time_of_observation(bank):
    id = bank.add("Ada lives in Rome.", observed="2025-09-01")
    assert bank.search("Ada", at="2025-07-01") == []
    assert bank.add("Ada lives in Rome!", observed="2025-06-01") == id
    assert [hit.id for hit in bank.search("Ada", at="2025-07-01")] == [id]
    record = bank.get(id)
    assert (record.observed, record.renewed) == (
        datetime(2025, 6, 1, tzinfo=UTC),
        datetime(2025, 9, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    "moment",
    [
        "2025-06-01",
        "2025-06-01T00:00",
        "2025-06-01 00:00:00Z",
        "2025-06-01T02:00+02:00",
        "20250601",
        date(2025, 6, 1),
        datetime(2025, 6, 1),
        datetime(2025, 6, 1, 2, tzinfo=timezone(timedelta(hours=2))),
        1748736000,
        1748736000.0,
    ],
)
def test_a_time_may_have_any_usual_form(moment):
    start = datetime(2025, 6, 1, tzinfo=UTC)
    with MemoryBank(":memory:", clock=lambda: moment) as bank:
        record = read(bank, bank.add("Ada is here.", valid_from=moment, valid_to="2025-06-02", merge=False))
        assert (record.created, record.observed, record.valid_from) == (start, start, start)
        (page,) = bank.add_document("Ada read a page.", observed=moment)
        assert read(bank, page).observed == start
        decision = Consolidation(bank, lambda text, records: [Change("add")]).add(
            "Ada left.", observed=moment
        )
        assert read(bank, decision.steps[0].written_id).observed == start
        assert len(bank.search("Ada is here.", at=moment)) == 3
        assert len(bank.search("Ada is here.", at="2025-06-02")) == 2


@pytest.mark.parametrize(
    "text",
    ["", " ", "2025", "2025-06", "1748736000", "202506011", "20250601112", "2025-06-01x08:30", "2025-06-01T",
     "٢٠٢٥-٠٦-٠١", "2025-06-01\n", "2025-06-01T08:30\x00", "\ud800", "2025-02-30", "0000-01-01", "x" * 9**6],
)  # fmt: skip
def test_a_text_that_is_no_time_is_named(bank, text):
    for name in ("observed", "valid_from", "valid_to"):
        with pytest.raises(ValueError, match=f"^{name}=.*: write a time as 2026-11-26 or") as failure:
            bank.add("x", **{name: text})
        assert len(str(failure.value)) < 200
    with pytest.raises(ValueError, match=r"^at="):
        bank.search("x", at=text)


def test_what_a_tool_says_replaces_nothing_that_a_person_said(bank):
    mine = bank.add("My bank is Alpha.", trust="user")
    with pytest.raises(ValueError, match="tool"):
        bank.add("The bank is Mallory.", trust="tool", supersedes=mine)
    assert texts(bank.search("bank")) == ["My bank is Alpha."]
    bank.add("The bank of the user is Omega.", trust="tool")
    assert len(bank.search("bank")) == 2
    assert texts(bank.search("bank", trusts=("user", "agent"))) == ["My bank is Alpha."]


def test_namespaces_contain_and_never_leak(bank):
    bank.add("tea for one", namespace=("user", "ada"))
    bank.add("tea for two", namespace=("user", "adam"))
    bank.add("tea for three", namespace=("team",))
    assert texts(bank.search("tea", namespace=("user", "ada"))) == ["tea for one"]
    assert set(texts(bank.search("tea", namespace=("user",)))) == {"tea for one", "tea for two"}
    assert texts(bank.recent(9, namespace=("user", "adam"))) == ["tea for two"]
    assert len(bank.search("tea", namespace=())) == len(bank.search("tea")) == 3


@pytest.mark.parametrize("with_embeddings", [False, True])
def test_what_is_forgotten_is_gone_from_the_file(tmp_path, with_embeddings, letters):
    embeddings = letters if with_embeddings else None
    path = tmp_path / "bank.db"
    bank, reader = MemoryBank(path, embeddings), MemoryBank(path, embeddings)
    secret = bank.add("The xylophonist waltzes.", note="quixotic")
    bank.add("the xylophonist waltzed")
    plain_id = bank.add("A plain fact.")
    assert secret in [hit.id for hit in reader.search("xylophonist")]
    assert bank.forget(secret)
    assert not bank.forget(secret)
    assert secret not in [hit.id for hit in reader.search("xylophonist")]
    assert bank.search("fact")[0].id == plain_id
    left = b"".join(file.read_bytes() for file in tmp_path.iterdir()).lower()
    for trace in (b"xylophonist", b"waltz", b"quixotic"):
        assert trace not in left
    with sqlite3.connect(path) as connection:
        for table in ("marks", "sayings", "vectors"):
            (count,) = connection.execute(f"SELECT COUNT(DISTINCT number) FROM {table}").fetchone()
            assert count == {"marks": 1, "sayings": 0, "vectors": 1 if embeddings else 0}[table]
    assert bank.add("The xylophonist waltzes.") != secret


def test_wrong_input_is_named(bank):
    for error, match, call in (
        (ValueError, "nothing to remember", lambda: bank.add(" ")),
        (TypeError, "text=3", lambda: bank.add(3)),
        (ValueError, "choose from knowledge", lambda: bank.add("x", kind="dream")),
        (ValueError, "choose from user", lambda: bank.add("x", trust="god")),
        (TypeError, "namespace='ada'", lambda: bank.add("x", namespace="ada")),
        (ValueError, "importance=2", lambda: bank.add("x", importance=2)),
        (ValueError, "importance='high'", lambda: bank.add("x", importance="high")),
        (ValueError, "supersedes='y'", lambda: bank.add("x", supersedes="y")),
        (ValueError, "valid_to", lambda: bank.add("x", valid_from=2, valid_to=1)),
        (ValueError, "observed='now': write a time as", lambda: bank.add("x", observed="now")),
        (TypeError, "observed=\\[\\]: pass a datetime, a date", lambda: bank.add("x", observed=[])),
        (ValueError, "at='2025-13-01'", lambda: bank.search("x", at="2025-13-01")),
        (ValueError, "valid_to='2025-06'", lambda: bank.add("x", valid_to="2025-06")),
        (TypeError, "provenance", lambda: bank.add("x", who=object())),
        (
            TypeError,
            "pass each field as a keyword, such as page=",
            lambda: bank.add("x", provenance={"page": 3}),
        ),
        (ValueError, "provenance=.'page': nan", lambda: bank.add("x", page=math.nan)),
        (ValueError, "lone surrogate", lambda: bank.add("\ud800")),
        (TypeError, "text=None", lambda: bank.add_document(None)),
        (TypeError, "query=None", lambda: bank.search(None)),
        (TypeError, "k=1.5", lambda: bank.search("x", k=1.5)),
        (TypeError, "n=1.5", lambda: bank.recent(1.5)),
        (TypeError, "n='5'", lambda: bank.recent("5")),
        (ValueError, "k=0", lambda: bank.search("x", k=0)),
        (ValueError, "kinds", lambda: bank.search("x", kinds=())),
        (ValueError, f"n={2**63}: must be at most", lambda: bank.recent(2**63)),
        (ValueError, f"k={2**63}: must be at most", lambda: bank.search("x", k=2**63)),
        (TypeError, "id=5: pass an id", lambda: bank.get(5)),
        (TypeError, f"id={2**63}: pass an id", lambda: bank.forget(2**63)),
        (TypeError, f"id={2**63}: pass an id", lambda: bank.sayings(2**63)),
        (TypeError, f"supersedes={2**63}: pass an id", lambda: bank.add("x", supersedes=2**63)),
    ):
        with pytest.raises(error, match=match):
            call()
    assert len(bank) == 0


def test_the_ends_of_the_calendar_are_moments_like_others(bank):
    """Python rounds `datetime.max`, as a number of seconds, into the year 10000."""
    zones = UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-14))
    for hours, zone in enumerate(zones):
        bank.add(f"from {hours}", observed=datetime.min.replace(tzinfo=zone), merge=False)
        bank.add(
            f"to {hours}", observed=datetime.max.replace(tzinfo=zone), valid_to=datetime.max, merge=False
        )
    years = {record.text[:2]: record.observed.year for record in bank.recent(9)}
    assert years == {"fr": 1, "to": 9999}
    assert {hit.valid_to.year for hit in bank.search("to")} <= {9999}
    with MemoryBank(":memory:") as copy:
        assert sum(copy.restore(bank.export(), foreign=False)) == 6


def test_embeddings_of_another_length_and_files_of_the_future_are_refused(letters, tmp_path):
    class Two:
        def embed_query(self, text):
            return [1.0, 0.0]

        def embed_documents(self, texts):
            return [[1.0, 0.0] for _ in texts]

    path = tmp_path / "bank.db"
    with MemoryBank(path, letters) as bank:
        bank.add("a fact")
    with MemoryBank(path, Two()) as bank:
        for call in (lambda: bank.add("another"), lambda: bank.search("a")):
            with pytest.raises(ValueError, match="dimension 27, the model's have 2"):
                call()
    with MemoryBank(path) as bank:
        assert texts(bank.search("fact")) == ["a fact"]
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ValueError, match="layout 99"):
        MemoryBank(path)


def test_a_text_longer_than_a_bank_takes_is_refused_and_the_longest_is_found(bank):
    longest = f"needle {'hay ' * (MAX_TEXT_LENGTH // 4)}"[:MAX_TEXT_LENGTH]
    id = bank.add(longest)
    assert bank.search("needle")[0].id == id
    assert bank.search(longest)[0].text == longest
    for method in (bank.add, bank.draft, bank.search):
        with pytest.raises(ValueError, match=r"has 1,048,577 characters, the maximum is 1,048,576; cut it"):
            method(longest + "!")
    assert len(bank) == 1


def test_the_largest_numbers_return_all_records(bank):
    bank.add("Ada lives in Bern.")
    for count in (2**63 - 1, np.int64(7)):
        assert len(bank.recent(count)) == len(bank.search("Bern", k=count)) == 1
