"""Export and import preserve a bank: records, wordings, chunks, and search results."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.memory import MemoryBank

words = st.sampled_from(
    [
        "jay",
        "acorn",
        "cache",
        "winter",
        "tree",
        "the",
        "not",
        "7",
        "42",
        "Lisbon",
        "松鸦",
        "藏",
        "橡果",
        "冬天",
    ]
)
texts = st.lists(words, min_size=1, max_size=8).map(" ".join) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20
).filter(str.strip)
moments = st.floats(0, 4e9, allow_nan=False)


@st.composite
def histories(draw):
    """Return calls of add, add_document and forget; forget has an index into the ids so far."""
    add = st.fixed_dictionaries(
        {
            "text": texts,
            "kind": st.sampled_from(["knowledge", "conversation", "task", "episode"]),
            "namespace": st.sampled_from([(), ("user",), ("user", "ada")]),
            "observed": moments,
            "trust": st.sampled_from(["user", "agent", "tool"]),
            "importance": st.floats(0, 1),
            "merge": st.booleans(),
            "thread": st.none() | texts,
        }
    )
    replace = st.tuples(st.just("supersede"), st.integers(0, 30), texts)
    forget = st.tuples(st.just("forget"), st.integers(0, 30))
    document = st.lists(texts, min_size=1, max_size=4).map(lambda parts: "\n\n# Next\n\n".join(parts))
    return draw(st.lists(add | replace | forget | document, min_size=1, max_size=12))


def write(bank, history):
    ids = []
    for step in history:
        if isinstance(step, dict):
            ids.append(bank.add(**step))
        elif isinstance(step, str):
            ids += bank.add_document(step, observed=5.0, source="made up")
        elif ids and step[0] == "forget":
            deleted_id = ids[step[1] % len(ids)]
            bank.forget(deleted_id)
            ids = [id for id in ids if id != deleted_id]  # a merged text has the id of its record
        elif ids:
            # With the default trust, since only a user may supersede a user's record.
            ids.append(bank.add(step[2], supersedes=ids[step[1] % len(ids)]))


def build_bank(history):
    bank = MemoryBank(":memory:", clock=lambda: 2e9)
    write(bank, history)
    return bank


def search(bank, query):
    return [(hit.id, hit.score) for hit in bank.search(query, k=20)]


@settings(max_examples=60, deadline=None)
@given(histories(), texts)
def test_a_bank_read_back_is_the_same(history, query):
    with build_bank(history) as bank, MemoryBank(":memory:", clock=lambda: 2e9) as copy:
        rows = json.loads(json.dumps(list(bank.export())))
        assert copy.restore(rows, foreign=False) == [True] * len(bank)
        for row in rows:
            assert copy.get(row["id"]) == bank.get(row["id"])
            assert copy.sayings(row["id"]) == bank.sayings(row["id"])
        assert search(bank, query) == search(copy, query)
        # Chunks get new numbers, but have the same records in the same order.
        again = list(copy.export())
        assert [row | {"chunk": 0} for row in again] == [row | {"chunk": 0} for row in rows]
        names = {(row["chunk"], other["chunk"]) for row, other in zip(rows, again, strict=True)}
        assert len(names) == len({name for name, _ in names}) == len({name for _, name in names})
        assert copy.restore(rows, foreign=False) == [False] * len(bank)


@settings(max_examples=20, deadline=None)
@given(histories(), texts)
def test_a_bank_read_back_goes_on_as_the_first_would(history, text):
    with build_bank(history) as bank, MemoryBank(":memory:", clock=lambda: 2e9) as copy:
        copy.restore(bank.export(), foreign=False)
        one, other = (b.get(b.add(text)) for b in (bank, copy))
        assert one is not None
        assert other is not None
        assert (one.text, one.sayings) == (other.text, other.sayings)


def test_what_no_longer_holds_and_who_replaced_it_is_written_out():
    with MemoryBank(":memory:", clock=lambda: 100.0) as bank:
        old = bank.add("Vera lives in Lisbon", thread="t1")
        new = bank.add("Vera lives in Porto", supersedes=old)
        first, second = bank.export()
    assert (first["id"], first["valid_to"], first["provenance"]) == (old, 100.0, {"thread": "t1"})
    assert (second["id"], second["supersedes"]) == (new, old)


class LetterCountEmbeddings:
    def embed_query(self, text):
        return [0.01, *(float(text.lower().count(letter)) for letter in "abcdefgh")]

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


def test_the_bank_that_reads_makes_its_own_embeddings():
    with MemoryBank(":memory:") as bank, MemoryBank(":memory:", LetterCountEmbeddings()) as copy:
        bank.add("a bad cab")
        bank.add("feed")
        copy.restore(bank.export(), foreign=False)
        assert copy.search("bac", k=1)[0].text == "a bad cab"


def test_all_is_written_whether_or_not_anybody_looks_at_what_was_new():
    with MemoryBank(":memory:") as bank, MemoryBank(":memory:") as copy:
        bank.add("kept")
        copy.restore(bank.export(), foreign=False)
        assert len(copy) == 1


def test_more_than_one_batch_keeps_its_chunks():
    with MemoryBank(":memory:", clock=lambda: 5.0) as bank, MemoryBank(":memory:", clock=lambda: 5.0) as copy:
        for number in range(1203):
            bank.add(f"number {number}", merge=False)
        copy.restore(bank.export(), foreign=False)
        chunks = [row["chunk"] for row in copy.export()]
        assert chunks == [row["chunk"] for row in bank.export()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "id=''"),
        ({"text": None}, "text=None"),
        ({"text": "\ud800"}, "lone surrogate"),
        ({"kind": "rumour"}, "kind='rumour'"),
        ({"namespace": "user"}, "namespace='user'"),
        ({"namespace": ["a\x1fb"]}, "U\\+001F"),
        ({"provenance": []}, "provenance=\\[\\]"),
        ({"observed": True}, "observed=True"),
        ({"created": float("nan")}, "created=nan"),
        ({"renewed": 1.8e12}, "renewed=.*outside the years"),
        ({"valid_from": -1e12}, "valid_from=.*outside the years"),
        ({"valid_to": "now"}, "valid_to='now'"),
        ({"importance": 2}, "importance=2"),
        ({"chunk": 0}, "chunk=0"),
        ({"place": -1}, "place=-1"),
        ({"sayings": [{}]}, "sayings=\\{\\}"),
        ({"sayings": [{"text": "x", "observed": 1e15, "provenance": {}}]}, "observed=.*outside the years"),
    ],
)
def test_what_is_no_record_is_refused_by_name_and_nothing_is_written(changes, message):
    with MemoryBank(":memory:") as bank:
        bank.add("one")
        rows = list(bank.export())
        with MemoryBank(":memory:") as copy:
            with pytest.raises((ValueError, TypeError), match=message):
                copy.restore([*rows, {**rows[0], "id": "second", **changes}])
            with pytest.raises((ValueError, TypeError), match="lacks the fields: text"):
                copy.restore([{name: rows[0][name] for name in rows[0] if name != "text"}])
            with pytest.raises(TypeError, match="not list"):
                copy.restore(json.loads("[[]]"))
            assert len(copy) == 0


@pytest.mark.parametrize("field", ["chunk", "place"])
@pytest.mark.parametrize("number", [2**63, 2**53 + 1, 10**30])
def test_a_position_beyond_exact_numbers_is_refused(field, number):
    with MemoryBank(":memory:") as bank:
        bank.add("Ada lives in Bern.")
        (row,) = bank.export()
        with pytest.raises(ValueError, match=f"{field}={number}"):
            bank.restore([row | {"id": "other", field: number}])
