"""Update, history, filters and deletion of a bank's records."""

import pytest

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.file.damage import DamagedBankError

SECRETS = ("xylophonist", "quagga", "okapi")


def texts(hits):
    return [hit.text for hit in hits]


def test_an_update_keeps_the_id_and_only_the_new_text_is_found(bank):
    id = bank.add("Vera lives in Lisbon.", namespace=("user", "vera"), importance=0.8, source="chat")
    before = bank.get(id)
    bank.add("Vera lives in Lisbon!", namespace=("user", "vera"), source="mail")  # another wording
    assert bank.update(id, "Vera lives in Porto.")
    assert not bank.update(id, "Vera lives in Porto.")
    after = bank.get(id)
    assert after.text == "Vera lives in Porto."
    assert (after.id, after.namespace, after.importance, after.provenance) == (
        (before.id, before.namespace, before.importance, before.provenance)
    )
    assert bank.search("Lisbon") == []
    assert [hit.id for hit in bank.search("Porto")] == [id]
    assert bank.sayings(id) == ["Vera lives in Porto."]
    assert [(version.text, version.end is None) for version in bank.history(id)] == [
        ("Vera lives in Lisbon.", False),
        ("Vera lives in Lisbon!", False),
        ("Vera lives in Porto.", True),
    ]
    assert len(bank) == 1


def test_an_update_replaces_the_embedding(letters, clock):
    with MemoryBank(":memory:", letters, clock=clock) as bank:
        id = bank.add("zzzz")
        other = bank.add("mmmm")
        assert [hit.id for hit in bank.search("zzzz", by="meaning", k=1)] == [id]
        bank.update(id, "bbbb")
        assert {hit.id for hit in bank.search("zzzz", by="meaning", k=2)} == {id, other}
        best = bank.search("bbbb", by="meaning", k=1)[0]
        assert best.id == id
        assert best.score == pytest.approx(1, abs=1e-3)


def test_an_update_stays_in_its_conversation(bank):
    first = bank.add("Which quay do herons like?", merge=False)
    bank.add("The northern one.", merge=False)
    bank.update(first, "Which quay do ospreys like?")
    assert texts(bank.search("quay ospreys")) == ["Which quay do ospreys like?", "The northern one."]


@pytest.mark.parametrize("is_newest", [False, True])
def test_a_conversation_continues_after_the_update_of_a_record(bank, is_newest):
    old = bank.add("Which quay do herons like?", kind="conversation", observed="2024-01-01")
    new = bank.add("Is tea nice?", kind="conversation", observed="2025-01-01")
    bank.update(new if is_newest else old, "Do ospreys like a quay?")
    bank.add("Only with milk.", kind="conversation", observed="2025-01-01")
    chunk_of_record = {row["id"]: row["chunk"] for row in bank.export()}
    *_, last = chunk_of_record.values()
    assert chunk_of_record[new] == last
    assert chunk_of_record[old] != last


def test_a_long_conversation_continues_after_the_update_of_its_first_record(bank):
    first = bank.add("Which quay do herons like?", kind="conversation", observed="2025-01-01")
    bank.add("Is tea nice?", kind="conversation", observed="2025-01-01T20:00")
    bank.update(first, "Do ospreys like a quay?")
    bank.add("Only with milk.", kind="conversation", observed="2025-01-02T19:00")
    assert len({row["chunk"] for row in bank.export()}) == 1


@pytest.mark.parametrize("foreign", [False, True])
def test_a_tool_does_not_change_the_record_of_a_user(tmp_path, foreign):
    path = tmp_path / "bank.db"
    with MemoryBank(path) as bank:
        id = bank.add("Vera lives in Lisbon.")
    with MemoryBank(path, foreign=foreign) as bank:
        if foreign:  # every record counts as a tool's
            assert bank.update(id, "Vera lives in Porto.", trust="tool")
        else:
            with pytest.raises(ValueError, match="cannot replace a record of trust 'user'"):
                bank.update(id, "Vera lives in Porto.", trust="tool")
            assert [version.text for version in bank.history(id)] == ["Vera lives in Lisbon."]


def test_an_unknown_id_and_a_blank_text_are_refused(bank):
    id = bank.add("Vera lives in Lisbon.")
    for method in (lambda: bank.update("none", "a text"), lambda: bank.history("none")):
        with pytest.raises(KeyError, match="no record has this id"):
            method()
    with pytest.raises(ValueError, match="nothing to remember"):
        bank.update(id, "  ")
    with pytest.raises(ValueError, match="trust='nobody'"):
        bank.update(id, "a text", trust="nobody")


def test_a_history_is_exported_restored_and_deleted_without_a_byte(tmp_path):
    path = tmp_path / "bank.db"
    with MemoryBank(path) as bank, MemoryBank(":memory:") as copy:
        id = bank.add(f"the {SECRETS[0]}")
        bank.update(id, f"the {SECRETS[1]}")
        bank.update(id, f"the {SECRETS[2]}")
        assert copy.restore(bank.export(), foreign=False) == [True]
        assert copy.history(id) == bank.history(id)
        assert list(copy.export()) == list(bank.export())
        (row,) = bank.export()
        for wrong in ("x", [{"text": "a"}], [{"text": 3, "observed": 0.0, "end": 0.0}]):
            with pytest.raises((ValueError, TypeError)):
                copy.restore([row | {"id": "new", "history": wrong}])
        assert copy.restore([{k: v for k, v in row.items() if k != "history"} | {"id": "old"}]) == [True]
        assert bank.forget(id) == 1
    content = path.read_bytes().lower()
    for secret in SECRETS:
        assert secret.encode() not in content


def test_namespaces_are_counted_and_sorted(bank):
    for owner in (("user", "ben"), ("user", "ada"), ("user", "ada"), ("team",), ()):
        bank.add("Likes tea.", namespace=owner, merge=False)
    assert list(bank.namespaces().items()) == [
        ((), 1),
        (("team",), 1),
        (("user", "ada"), 2),
        (("user", "ben"), 1),
    ]
    assert bank.namespaces(("user",)) == {("user", "ada"): 2, ("user", "ben"): 1}
    assert bank.namespaces(("nobody",)) == {}


FIELDS = [
    {"source": "manual.md", "page": 3, "draft": True, "by": None},
    {"source": "manual.md", "page": 4, "draft": False},
    {"source": "letter.md", "page": 3.0, "draft": 1},
    {"source": "letter.md", "page": "3", '$."source"': "x"},
]


@pytest.mark.parametrize(
    ("where", "expected_numbers"),
    [
        ({"source": "manual.md"}, [0, 1]),
        ({"source": "manual.md", "page": 3}, [0]),
        ({"page": 3}, [0, 2]),
        ({"page": "3"}, [3]),
        ({"draft": True}, [0]),
        ({"draft": False}, [1]),
        ({"draft": 1}, [2]),
        ({"by": None}, [0]),
        ({'$."source"': "x"}, [3]),
        ({"none": "x"}, []),
        ({"source": "' OR 1 --"}, []),
    ],
)
@pytest.mark.parametrize("by", ["words", "meaning", None])
def test_a_search_is_restricted_by_fields(letters, clock, where, expected_numbers, by):
    with MemoryBank(":memory:", letters, clock=clock) as bank:
        for n in range(300):
            bank.add(f"heron heron x{n}", merge=False)
        for n, fields in enumerate(FIELDS):
            bank.add(f"a heron {n}", merge=False, **fields)
        hits = bank.search("heron", k=300, where=where, by=by)
        assert sorted(texts(hits)) == [f"a heron {n}" for n in expected_numbers]


def test_a_search_is_restricted_by_the_time_of_observation(bank):
    for day in range(1, 6):
        bank.add(f"heron {day}", observed=f"2025-01-0{day}", merge=False)
    assert sorted(texts(bank.search("heron", since="2025-01-02", until="2025-01-04"))) == [
        "heron 2",
        "heron 3",
    ]


@pytest.mark.parametrize("wrong", [[("a", 1)], {"a": [1]}, {3: "a"}, {"a": b"x"}])
def test_a_filter_that_cannot_be_honoured_is_refused(bank, wrong):
    with pytest.raises(TypeError, match="where="):
        bank.search("heron", where=wrong)


@pytest.mark.parametrize("wrong", [{"a": 2**63}, {"a": "\ud800"}, {"\ud800": "a"}])
def test_a_filter_that_the_file_cannot_hold_is_refused(bank, wrong):
    with pytest.raises(ValueError, match="where"):
        bank.search("heron", where=wrong)


def test_a_damaged_history_is_reported(tmp_path):
    path = tmp_path / "bank.db"
    with MemoryBank(path) as bank:
        id = bank.add("a heron")
        bank.update(id, "an egret")
        with bank.store.writing() as connection:
            connection.execute("UPDATE history SET observed = 1e300")
    with MemoryBank(path) as bank, pytest.raises(DamagedBankError, match="history of record"):
        bank.history(id)


def test_records_are_deleted_by_owner_field_and_time(tmp_path):
    path = tmp_path / "bank.db"
    with MemoryBank(path) as bank:
        bank.add(f"the {SECRETS[0]}", namespace=("user", "ada"))
        bank.add(f"the {SECRETS[1]}", source="manual.md")
        bank.add(f"the {SECRETS[2]}", observed="2020-01-01", valid_to="2021-01-01")
        rest = bank.add("the heron", namespace=("user", "ben"), observed="2025-01-01")
        assert bank.forget(namespace=("user", "ada")) == 1
        assert bank.forget(where={"source": "manual.md"}) == 1
        assert bank.forget(until="2024-01-01") == 1
        assert bank.forget(namespace=("user", "nobody")) == 0
        assert bank.forget("nothing") == 0
        assert [row["id"] for row in bank.export()] == [rest]
        with pytest.raises(ValueError, match="without an id or a condition"):
            bank.forget()
        with pytest.raises(ValueError, match="pass an id, or conditions"):
            bank.forget(rest, namespace=())
    content = path.read_bytes().lower()
    for secret in SECRETS:
        assert secret.encode() not in content
    with MemoryBank(path) as bank:
        assert bank.forget(namespace=()) == 1
        assert len(bank) == 0


def test_an_export_of_an_owner_and_its_count_agree_with_those_of_all_records(bank):
    owners = [(), ("user",), ("user", "ada"), ("user", "ada", "work"), ("user", "adam")]
    for owner in owners:
        bank.add_document("# Cats\nThey purr.\n# Dogs\nThey bark.", namespace=owner)
        bank.add(f"a heron of {owner}", namespace=owner)
    rows = list(bank.export())
    for owner in owners:
        own = [row for row in rows if tuple(row["namespace"][: len(owner)]) == owner]
        assert list(bank.export(owner)) == own
        assert bank.count(owner) == len(own) == sum(bank.namespaces(owner).values())
    assert bank.count(kinds="knowledge", where={"section": "Cats"}) == len(owners)
    assert bank.count(since="2100-01-01") == 0
    assert bank.count() == len(bank) == len(rows)
