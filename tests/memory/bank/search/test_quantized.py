"""Exact search with quantized embeddings: it returns the same records as a scan of all embeddings."""

import contextlib
import functools
import itertools
import sqlite3
import tempfile
import warnings
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.file.damage import UnreadableError
from scrubjay.memory.bank.file.store import Store
from scrubjay.memory.bank.index import forget
from scrubjay.memory.bank.record import join_namespace
from scrubjay.memory.bank.search import quantized
from scrubjay.memory.bank.search.dense import VectorIndex
from scrubjay.memory.bank.search.quantized import BLOCK, Block, QuantizedIndex

START = datetime(2026, 1, 1, tzinfo=UTC)
WIDTH = 24
COUNT = 2 * BLOCK + 60


class RandomEmbeddings:
    """Random embeddings, seeded by the text. Texts that start with "copy" have the same embedding."""

    def embed_query(self, text):
        seed = 0 if text.startswith("copy") else int.from_bytes(text.encode()[-12:])
        return np.random.default_rng(seed).standard_normal(WIDTH, dtype=np.float32).tolist()

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


@pytest.fixture(autouse=True)
def _quantize_small_banks(monkeypatch):
    monkeypatch.setattr(quantized, "_MIN_BLOCKS", 1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bank.db"


def open_bank(path, **options):
    return MemoryBank(path, RandomEmbeddings(), lambda: START, **options)


def add_records(path, count=COUNT, first=0, word="fact"):
    with open_bank(path) as bank:
        drafts = [
            bank.draft(f"{word} {number}", namespace=(str(number % 3),), merge=False)
            for number in range(first, first + count)
        ]
        return bank.write(bank.embed_drafts(drafts))


@functools.cache
def make_file():
    """Return the content of a bank with two complete blocks, and the ids of its records."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank.db"
        ids = add_records(path)
        return path.read_bytes(), ids


def fill(path):
    content, ids = make_file()
    path.write_bytes(content)
    return ids


def rows(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [block for (block,) in connection.execute("SELECT block FROM quantized ORDER BY block")]


def execute(path, statement, *values):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(statement, values)
        connection.commit()


@contextlib.contextmanager
def open_index(path):
    """Yield a function that compares the index of a file with a scan of all embeddings."""
    store = Store(path)
    index = QuantizedIndex(store, WIDTH)

    def compare(catch_up=True):
        for _ in index.catch_up() if catch_up else ():
            pass
        with store.reading() as connection:
            index.refresh(connection)
            exact = VectorIndex(WIDTH)
            exact.refresh(connection)
            for text in ("fact 17", "copy", f"fact {COUNT - 3}", "who"):
                query = np.array(RandomEmbeddings().embed_query(text), dtype=np.float32)
                query /= np.linalg.norm(query)
                for namespaces in (("0", "1", "2"), ("1",), ("none",)):
                    predicate = allow(namespaces)
                    compare_scans(index.scan(query, predicate), exact.scan(query, predicate))

    with contextlib.closing(store):
        yield compare


def allow(namespaces):
    names = {join_namespace((name,)) for name in namespaces}
    return lambda namespace, _: namespace in names


def compare_scans(scan, expected):
    assert scan.count == expected.count
    assert scan.mean == pytest.approx(expected.mean, abs=1e-3)
    assert scan.deviation == pytest.approx(expected.deviation, abs=1e-3)
    nearest = expected.nearest(scan.count)
    cosines = expected.cosines(nearest)
    np.testing.assert_allclose(scan.cosines(nearest), cosines, atol=1e-6)
    assert np.isnan(scan.cosines(np.array([10**6]))).all()
    for count in (0, 1, 7, 40, scan.count, 2 * scan.count):
        numbers = scan.nearest(count)
        assert len(np.unique(numbers)) == len(numbers) == min(count, scan.count)
        np.testing.assert_allclose(expected.cosines(numbers), cosines[:count], atol=1e-6)


def test_an_index_returns_the_records_of_a_scan_of_all_embeddings(path):
    fill(path)
    add_records(path, 5, COUNT, "copy")
    with open_index(path) as compare:
        compare()
        assert rows(path) == [0, 1]


def test_the_newest_of_equal_embeddings_comes_first(path):
    add_records(path, 100)
    add_records(path, 150, 100, "copy")
    add_records(path, COUNT)
    with contextlib.closing(Store(path)) as store, store.reading() as connection:
        index = QuantizedIndex(store, WIDTH)
        index.refresh(connection)
        query = np.array(RandomEmbeddings().embed_query("copy"), dtype=np.float32)
        numbers = index.scan(query / np.linalg.norm(query), lambda *_: True).nearest(150)
    assert numbers.tolist() == list(range(250, 100, -1))


def test_changes_by_another_bank_are_found(path):
    ids = fill(path)
    with open_index(path) as compare, open_bank(path) as bank:
        compare()
        for id in (ids[0], ids[BLOCK], ids[-1]):
            assert bank.forget(id)
        assert rows(path) == []
        compare()
        assert rows(path) == [0, 1]
        bank.update(ids[40], "copy of a fact")
        assert rows(path) == [1]
        compare()
        add_records(path, BLOCK, COUNT)
        assert rows(path) == [0, 1, 2]  # the record that completes a block writes its row
        compare()
        with bank._store.writing() as connection:
            for id in ids[BLOCK - 1 : 2 * BLOCK - 1]:
                forget(connection, id, str(path))
        compare()
        assert rows(path) == [0, 2]


def search_all(bank):
    texts, namespaces = ("fact 3", "who"), ((), ("1",))
    return [
        bank.search(text, 30, namespace=name, explain=True)
        for text, name in itertools.product(texts, namespaces)
    ]


def test_a_bank_searches_as_it_does_without_quantized_embeddings(path, monkeypatch):
    ids = fill(path)
    with open_bank(path) as bank:
        bank.forget(ids[17])
        results = search_all(bank)
    assert len(rows(path)) == 2
    monkeypatch.setattr(quantized, "_MIN_BLOCKS", 1_000)
    with open_bank(path) as bank:
        expected = search_all(bank)
    assert [[hit.id for hit in hits] for hits in results] == [[hit.id for hit in hits] for hits in expected]
    for hit, other in zip(itertools.chain(*results), itertools.chain(*expected), strict=True):
        assert hit.score == pytest.approx(other.score, abs=1e-3)
        assert hit.explanation is not None
        assert other.explanation is not None
        assert hit.explanation.cosine == pytest.approx(other.explanation.cosine, abs=1e-6)


def test_lost_embeddings_are_computed_again(path):
    fill(path)
    with open_bank(path) as bank:
        bank.search("who")
    execute(path, "DELETE FROM vectors WHERE number IN (1, 5)")
    assert rows(path) == [1]
    with open_bank(path) as bank, pytest.warns(UserWarning, match="has lost 2 embeddings"):
        assert bank.search("fact 0", 1)[0].text == "fact 0"
    assert rows(path) == [0, 1]


@settings(max_examples=200, deadline=None)
@given(
    arrays.arrays(np.float32, (3, WIDTH), elements=st.floats(-1, 1, width=32)),
    arrays.arrays(np.float32, WIDTH, elements=st.floats(-1, 1, width=32)),
    st.sampled_from([1.0, 1e-30, 1e-42, 0.0]),
)
def test_the_radius_bounds_the_error_of_a_quantized_cosine(vectors, query, scale):
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1).astype(np.float32)
    vectors[0] *= np.float32(scale)
    block = Block.quantize([0, 1, 2], [("a", "b")] * 3, vectors)
    cosines = (block.codes.astype(np.float32) @ query) * block.scales
    limit = block.radii * np.linalg.norm(query)
    assert (np.abs(vectors @ query - cosines) <= limit).all()
    assert (np.abs(vectors.astype(np.float64) @ query.astype(np.float64) - cosines) <= limit).all()


def test_a_block_is_equal_after_it_is_packed():
    vectors = np.random.default_rng(0).standard_normal((4, WIDTH), dtype=np.float32) / 9
    scopes = [('["a"]', "task"), ("", "knowledge"), ('["a"]', "task"), ("\u00e9", "task")]
    block = Block.quantize([3, 4, 9, 511], scopes, vectors)
    copy = Block.unpack(*block.pack(), WIDTH)
    assert copy.names == block.names
    assert [copy.names[place] for place in copy.scopes] == scopes
    for array, other in zip((*copy[:2], *copy[3:]), (*block[:2], *block[3:]), strict=True):
        np.testing.assert_array_equal(array, other)


def damaged_rows():
    names, data = Block.quantize([0, 1], [("", "task")] * 2, np.full((2, WIDTH), 0.1, np.float32)).pack()
    size = quantized._ROW.itemsize

    def replace(first, value):
        return data[:first] + value + data[first + len(value) :]

    return {
        "empty": (names, b""),
        "text": (names, "text"),
        "number": (3, data),
        "one byte less": (names, data[:-1]),
        "no JSON": ("[", data),
        "deep JSON": ("[" * 100_000, data),
        "other JSON": ('{"a": 1}', data),
        "number as a name": ('[[1, "task"]]', data),
        "fewer scopes": ("[]", data),
        "offsets of 1 and 1": (names, replace(0, b"\1\0")),
        "offset of 600": (names, replace(size, b"\x58\2")),
        "scale of NaN": (names, replace(4, b"\0\0\xc0\x7f")),
        "radius of -1": (names, replace(8, b"\0\0\x80\xbf")),
        "too many records": (names, data[: size + WIDTH] * (BLOCK + 1)),
    }


@pytest.mark.parametrize("name", damaged_rows())
def test_a_damaged_row_is_reported_and_replaced(path, name):
    names, data = damaged_rows()[name]
    with pytest.raises(UnreadableError, match="table `quantized`"):
        Block.unpack(names, data, WIDTH)
    fill(path)
    with open_index(path) as compare:
        compare()
    statement = "UPDATE quantized SET scopes = ?, data = ?, stamp = 1 WHERE block = 1"
    execute(path, statement, names, data)
    with open_index(path) as compare:
        with pytest.warns(UserWarning, match=r"table `quantized` .*computing it again"):
            compare()
        compare()
    with open_index(path) as compare, warnings.catch_warnings():
        warnings.simplefilter("error")
        compare()


def test_an_interrupted_call_continues(path, monkeypatch):
    fill(path)
    execute(path, "DELETE FROM quantized")
    monkeypatch.setattr(quantized, "_BATCH", 1)
    with open_bank(path) as bank:
        assert next(iter(bank.build_index())) == (BLOCK - 1, 2 * BLOCK)
        assert rows(path) == [0]
        assert list(bank.build_index()) == [(2 * BLOCK - 1, 2 * BLOCK)]
        assert list(bank.build_index()) == []


def test_a_search_does_not_wait_for_another_writer(path):
    fill(path)
    execute(path, "DELETE FROM quantized")
    with open_bank(path) as bank, open_bank(path) as other:
        with other._store.writing():
            assert bank.search("fact 7", 1)[0].text == "fact 7"
            assert rows(path) == []
        assert bank.search("fact 7", 1)[0].text == "fact 7"
        assert rows(path) == [0, 1]


def test_a_file_that_cannot_be_written_is_searched(path):
    fill(path)
    execute(path, "DELETE FROM quantized")
    with open_bank(path) as bank:
        bank._store._connection.execute("PRAGMA query_only = ON")
        assert bank.search("fact 7", 1)[0].text == "fact 7"
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            list(bank.build_index())
    with open_index(path) as compare:
        compare(catch_up=False)
        assert rows(path) == []


def test_no_byte_of_a_forgotten_embedding_remains(path):
    ids = fill(path)
    with open_bank(path) as bank:
        bank.search("who")
        with contextlib.closing(sqlite3.connect(path)) as connection:
            names, data = connection.execute("SELECT scopes, data FROM quantized WHERE block = 0").fetchone()
            number = find_number(connection, ids[41])
            other = find_number(connection, ids[42])
        block = Block.unpack(names, data, WIDTH)
        codes = {int(offset): code.tobytes() for offset, code in zip(block.offsets, block.codes, strict=True)}
        assert codes[number] in read_bytes(path)
        bank.forget(ids[41])
        assert codes[number] not in read_bytes(path)
        bank.search("who")
        assert codes[number] not in read_bytes(path)
        assert codes[other] in read_bytes(path)


def find_number(connection, id):
    return connection.execute("SELECT number FROM records WHERE id = ?", (id,)).fetchone()[0]


def read_bytes(path):
    return b"".join(file.read_bytes() for file in path.parent.glob("bank.db*"))
