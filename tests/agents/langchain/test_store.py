"""BankStore compared with LangGraph's InMemoryStore, and tests of keyword search, expiry and files."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.embeddings import DeterministicFakeEmbedding
from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchItem,
    SearchOp,
)
from langgraph.store.memory import InMemoryStore

from scrubjay.agents.langchain import BankStore
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.record import MAX_TEXT_LENGTH

pytestmark = pytest.mark.requires("langgraph")

WORDS = st.sampled_from(["ada", "bern", "café", "鸟"])
SPACES = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map(tuple)
SCALARS = st.one_of(st.integers(0, 3), WORDS, st.none(), st.booleans())
VALUES = st.dictionaries(
    st.sampled_from(["x", "y", "z"]),
    st.one_of(SCALARS, st.lists(SCALARS, max_size=2), st.dictionaries(st.just("in"), SCALARS)),
    max_size=3,
)
FILTERS = st.one_of(
    st.none(),
    st.dictionaries(
        st.sampled_from(["x", "y"]),
        st.one_of(SCALARS, st.builds(lambda name, v: {name: v}, st.sampled_from(["$eq", "$ne"]), SCALARS)),
        max_size=2,
    ),
)
KEYS = st.sampled_from(["k", "l"])
CONDITIONS = st.builds(
    MatchCondition,
    st.sampled_from(["prefix", "suffix"]),
    st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=2).map(tuple),
)
OPERATIONS = st.one_of(
    st.tuples(SPACES, KEYS).map(lambda fields: GetOp(*fields)),
    st.tuples(SPACES, KEYS, st.one_of(st.none(), VALUES)).map(lambda fields: PutOp(*fields)),
    st.tuples(
        st.lists(st.sampled_from(["a", "b"]), max_size=2).map(tuple), FILTERS, st.one_of(st.none(), WORDS)
    ).map(lambda fields: SearchOp(*fields[:2], limit=100, query=fields[2])),
    st.tuples(st.lists(CONDITIONS, max_size=2).map(tuple), st.one_of(st.none(), st.integers(1, 3))).map(
        lambda fields: ListNamespacesOp(*fields)
    ),
)


def to_plain_value(result):
    """Return a result as plain values; results of a search are sorted, since their order is unspecified."""
    if isinstance(result, list):
        return sorted((i.namespace, i.key, repr(i.value)) if isinstance(i, SearchItem) else i for i in result)
    return result and (result.namespace, result.key, result.value)


def forget_empty(reference):
    """Remove empty namespaces from the reference, which creates one for each namespace that is read."""
    for space in [space for space, items in reference._data.items() if not items]:
        del reference._data[space]


@settings(max_examples=120, deadline=None)
@given(st.lists(st.lists(OPERATIONS, min_size=1, max_size=4), max_size=10))
def test_it_does_what_langgraphs_own_does(batches):
    reference = InMemoryStore()
    with BankStore(":memory:") as store:
        for batch in batches:
            forget_empty(reference)
            batch.sort(key=lambda op: not isinstance(op, ListNamespacesOp))
            expected = reference.batch(batch)
            for op, store_result, reference_result in zip(batch, store.batch(batch), expected, strict=True):
                assert to_plain_value(store_result) == to_plain_value(reference_result), op


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(SPACES, KEYS, VALUES).map(lambda fields: PutOp(*fields)), max_size=12),
    FILTERS,
    st.integers(1, 4),
    st.one_of(st.none(), WORDS),
)
def test_pages_are_the_whole(puts, filter, limit, query):
    with BankStore(":memory:") as store:
        store.batch(puts)
        all_items = store.search((), filter=filter, query=query, limit=100)
        pages = [
            item
            for offset in range(0, len(all_items) + 1, limit)
            for item in store.search((), filter=filter, query=query, limit=limit, offset=offset)
        ]
        assert [(i.namespace, i.key) for i in pages] == [(i.namespace, i.key) for i in all_items]


@pytest.fixture
def store():
    with BankStore(":memory:") as store:
        yield store


def test_order_compares_what_has_an_order(store):
    for key, n in (("one", 1), ("two", 2.5), ("word", "b"), ("none", None), ("list", [1])):
        store.put(("n",), key, {"n": n})
    store.put(("n",), "absent", {})
    keys = lambda filter: {item.key for item in store.search(("n",), filter={"n": filter})}
    assert keys({"$gt": 1}) == {"two"}
    assert keys({"$gte": 1, "$lt": 2.5}) == {"one"}
    assert keys({"$lte": "b"}) == {"word"}
    assert keys({"$ne": 1}) == {"two", "word", "none", "list", "absent"}
    with pytest.raises(ValueError, match=r"operator '\$in'"):
        keys({"$in": [1]})


def test_words_find_and_rank_what_no_vector_was_made_for(store):
    store.put(("notes",), "bird", {"text": "The scrub jay caches acorns."})
    store.put(("notes",), "town", {"text": "Bern lies on a river."})
    store.put(("notes",), "鸟", {"text": "灌丛鸦储藏橡子。"})
    items = store.search(("notes",), query="Which bird caches acorns?")
    assert items[0].key == "bird"
    assert [item.score is None for item in items] == [False, True, True]
    assert store.search(("notes",), query="橡子", limit=1)[0].key == "鸟"
    store.put(("notes",), "bird", {"text": "It flew away."})
    assert all(item.score is None for item in store.search(("notes",), query="acorns"))


def test_meaning_is_searched_where_the_bank_has_embeddings(tmp_path):
    embed = DeterministicFakeEmbedding(size=16)
    with BankStore(
        tmp_path / "s.db", index={"dims": 16, "embed": embed, "fields": ["text", "more[*]"]}
    ) as store:
        store.put(("n",), "a", {"text": "first", "more": ["deep", "deeper"], "hidden": "unseen"})
        store.put(("n",), "b", {"text": "second"}, index=False)
        assert [(i.key, i.score is not None) for i in store.search(("n",), query="unseen")] == [
            ("a", True),
            ("b", False),
        ]
        assert len(store.search(("n",), query="deeper first")) == 2
    bank = MemoryBank(":memory:")
    with pytest.raises(ValueError, match="open already"):
        BankStore(bank, index={"dims": 16, "embed": embed})
    bank.close()


def test_index_says_what_is_searchable():
    with BankStore(":memory:", index={"fields": ["text"]}) as store:  # type: ignore[typeddict-item]
        store.put(("n",), "a", {"text": "acorn", "secret": "walnut"})
        store.put(("n",), "b", {"text": "acorn"}, index=False)
        store.put(("n",), "c", {"text": "acorn", "secret": "walnut"}, index=["secret"])
        find_scored_keys = lambda query: {
            i.key for i in store.search(("n",), query=query) if i.score is not None
        }
        assert find_scored_keys("acorn") == {"a"}
        assert find_scored_keys("walnut") == {"c"}


def test_items_expire_unless_they_are_read():
    now = [1000.0]
    with MemoryBank(":memory:") as bank:
        store = BankStore(bank, ttl={"default_ttl": 10}, clock=lambda: now[0])
        store.put(("n",), "short", {"text": "acorn"})
        store.put(("n",), "long", {"text": "acorn"}, ttl=None)
        now[0] += 599
        assert store.get(("n",), "short") is not None
        now[0] += 599
        assert store.get(("n",), "short", refresh_ttl=False) is not None
        now[0] += 2
        assert store.get(("n",), "short") is None
        assert [i.key for i in store.search(("n",), query="acorn")] == ["long"]
        assert len(bank) == 2
        assert store.sweep_ttl() == 1
        assert len(bank) == 1
        assert store.sweep_ttl() == 0


def test_creation_stays_and_change_moves():
    now = [1000.0]
    with BankStore(":memory:", clock=lambda: now[0]) as store:
        store.put(("n",), "k", {"v": 1})
        now[0] += 5
        store.put(("n",), "k", {"v": 2})
        item: Any = store.get(("n",), "k")
        assert (item.updated_at - item.created_at).total_seconds() == 5


def test_what_is_deleted_is_in_no_file_any_more(tmp_path):
    with BankStore(tmp_path / "s.db") as store:
        store.put(("n",), "k", {"text": "the-first-secret"})
        store.put(("n",), "k", {"text": "the-second-secret"})
        store.delete(("n",), "k")
        store.put(("n",), "l", {"text": "kept-word"})
        content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"secret" not in content
    assert b"kept-word" in content


def test_an_item_that_cannot_be_stored_leaves_its_batch_unwritten(store):
    good, bad = PutOp(("n",), "good", {"v": 1}), PutOp(("n",), "bad", {"v": object()})
    with pytest.raises(TypeError, match=r"the value of 'bad' in \('n',\) must be JSON"):
        store.batch([good, bad])
    assert store.get(("n",), "good") is None
    with pytest.raises(InvalidNamespaceError):
        store.batch([PutOp(("a.b",), "k", {})])
    with pytest.raises(InvalidNamespaceError, match=r"U\+001F"):
        store.put(("a\x1fb",), "k", {})
    with pytest.raises(TypeError, match="not a store operation"):
        store.batch(["get"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="offset=-1"):
        store.search((), offset=-1)
    with pytest.raises(TypeError, match=r"limit=1\.5"):
        store.search((), limit=1.5)
    with pytest.raises(
        ValueError, match=r"the value of 'bad' in \('n',\) contains the lone surrogate '.ud800'"
    ):
        store.put(("n",), "bad", {"v": "\ud800"}, index=False)


def test_a_value_of_any_length_and_with_any_keys_is_kept_whole_and_found_by_its_beginning(store):
    page = "acorn " + "leaf " * MAX_TEXT_LENGTH
    store.put(("n",), "page", {"text": page, 3: "walnut"})
    assert store.get(("n",), "page").value == {"text": page, "3": "walnut"}
    store.put(("n",), "other", {"text": "heron"})
    assert [item.key for item in store.search(("n",), query="acorn") if item.score] == ["page"]


async def test_coroutines_threads_and_a_second_process_see_one_store(tmp_path):
    with BankStore(tmp_path / "s.db") as store, BankStore(tmp_path / "s.db") as other:
        await asyncio.gather(*(store.aput(("n",), str(n), {"v": n}) for n in range(10)))
        workers = [threading.Thread(target=other.put, args=(("n",), str(n), {"v": n})) for n in range(10, 20)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert {i.value["v"] for i in await store.asearch(("n",), limit=50)} == set(range(20))
        await other.adelete(("n",), "3")
        assert await store.aget(("n",), "3") is None
        assert await store.alist_namespaces() == [("n",)]


def test_the_bank_recalls_what_the_store_keeps():
    with MemoryBank(":memory:") as bank:
        BankStore(bank).put(("user", "ada"), "home", {"text": "Ada lives in Basel."})
        (hit,) = bank.search("Where does Ada live?")
        assert hit.namespace == ("store", "user", "ada")


def test_integers_beyond_those_of_sqlite_are_stored_or_refused(store):
    store.put(("a",), "k", {"n": 2**64}, ttl=2**64)
    assert store.get(("a",), "k").value == {"n": 2**64}
    assert [item.key for item in store.search(("a",), filter={"n": 2**64})] == ["k"]
    assert [item.key for item in store.search(("a",), query="none", limit=2**63 - 1)] == ["k"]
    for name in ("limit", "offset"):
        with pytest.raises(ValueError, match=f"{name}={2**63}: must be at most"):
            store.search(("a",), **{name: 2**63})
    for ttl in (math.nan, 10**400):
        with pytest.raises(ValueError, match=r"ttl=.*: pass a number of minutes"):
            store.put(("a",), "l", {}, ttl=ttl)
