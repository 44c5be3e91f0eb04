"""Approximate search: an index in files beside the bank, no embeddings in memory."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import sqlite3
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank import embedding_index
from scrubjay.memory.bank.search import approximate as search_approximate
from scrubjay.memory.bank.search import segments as search_segments

pytestmark = pytest.mark.requires("usearch")


START = datetime(2026, 1, 1, tzinfo=UTC)
WIDTH = 24
SMALL = 40


class RandomEmbeddings:
    """Random embeddings, seeded by the text."""

    def embed_query(self, text):
        seed = int.from_bytes(text.encode()[-12:])
        return np.random.default_rng(seed).standard_normal(WIDTH, dtype=np.float32).tolist()

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch):
    for module in (search_segments, search_approximate):
        monkeypatch.setattr(module, "SEGMENT", SMALL)


def open_bank(path, approximate=True, embeddings=None):
    return MemoryBank(path, embeddings or RandomEmbeddings(), lambda: START, approximate=approximate)


def fill(path, count=130, first=0):
    with open_bank(path, approximate=False) as bank:
        drafts = [
            bank.draft(f"fact {number}", namespace=(str(number % 3),), merge=False)
            for number in range(first, first + count)
        ]
        return bank.write(bank.embed_drafts(drafts))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bank.db"


def segments(path):
    return sorted(Path(f"{path}-ann").glob("*"))


def half(text):
    """Return the bytes of a text's embedding as stored in an index file."""
    vector = np.array(RandomEmbeddings().embed_query(text), dtype=np.float32)
    return (vector / np.linalg.norm(vector)).astype(np.float16).tobytes()


def index_contains(path, text):
    return any(half(text) in file.read_bytes() for file in segments(path))


def hits(bank, query="fact 17", **options):
    return [(hit.id, round(hit.score, 4)) for hit in bank.search(query, 20, **options)]


def test_a_search_finds_what_the_exact_one_does(path):
    ids = fill(path)
    with open_bank(path) as bank, open_bank(path, approximate=False) as exact:
        for query in ("fact 3", "fact 77", "fact 128", "who"):
            for namespace in ((), ("1",)):
                assert hits(bank, query, namespace=namespace) == hits(exact, query, namespace=namespace)
        assert len(segments(path)) == 3
        bank.forget(ids[5])
        bank.forget(ids[125])
        bank.add("fact 500", merge=False)
        fill(path, 40, 600)
        for query in ("fact 5", "fact 125", "fact 500", "fact 620"):
            assert hits(bank, query) == hits(exact, query)
        assert len(segments(path)) == 4


def test_what_no_link_of_a_graph_leads_to_is_read(path, monkeypatch):
    ids = fill(path, 50)
    nearest = search_approximate.ApproximateIndex.nearest

    def without_one(index, query, each):
        results, _ = nearest(index, query, each)
        return results[results != 18], False

    with open_bank(path) as bank, open_bank(path, approximate=False) as exact:
        monkeypatch.setattr(search_approximate.ApproximateIndex, "nearest", without_one)
        results = bank.search("fact 17", 50)
        assert ids[17] in {hit.id for hit in results}
        assert results == exact.search("fact 17", 50)


@pytest.mark.parametrize("count", [300, 5_000])
def test_all_records_of_a_graph_find_each_other(count):
    random = np.random.default_rng(0).standard_normal((count, WIDTH)).astype(np.float16)
    for _ in range(6_000 // count):
        graph = search_segments._empty_graph(WIDTH)
        search_segments.add_vectors(graph, np.arange(count), random)
        for query in random[:: count // 3]:
            assert len(graph.search(query.astype(np.float32), count)) == count


@pytest.mark.parametrize("few", [True, False], ids=["read", "asked for again and again"])
def test_few_that_may_be_seen_are_found_among_many_that_may_not(path, monkeypatch, few):
    monkeypatch.setattr(search_approximate, "_MIN_PER_SEGMENT", 1)
    if few:
        monkeypatch.setattr(search_approximate, "_MAX_SAMPLE", 32)
    with open_bank(path) as bank:
        ids = [bank.add(f"only {number}", namespace=("rare",), merge=False) for number in range(3)]
        fill(path)
        results = bank.search("w", 5, namespace=("rare",), explain=True)
        assert {hit.id for hit in results} == set(ids)
        assert all(hit.explanation and hit.explanation.cosine is not None for hit in results)
        assert bank.search("w", namespace=("nobody",)) == []


def test_what_is_forgotten_is_gone_from_the_index_too(path):
    ids = fill(path)
    with open_bank(path) as bank:
        bank.search("who")
        assert index_contains(path, "fact 7")
        assert index_contains(path, "fact 39")
        for number in (7, 39, 9):  # 39 is the last of its segment
            bank.forget(ids[number])
            assert not index_contains(path, f"fact {number}")
            assert index_contains(path, f"fact {number + 1}")
        # A leftover of a process that was killed while it wrote a file.
        shutil.copy(segments(path)[0], Path(f"{path}-ann") / "part")
        bank.forget(ids[10])
        assert not index_contains(path, "fact 10")
        before = [file.stat().st_mtime_ns for file in segments(path)]
        assert ids[7] not in {hit.id for hit in bank.search("fact 7", 20)}
        assert [file.stat().st_mtime_ns for file in segments(path)] == before
        assert len(segments(path)) == 3


def test_a_bank_without_the_index_or_usearch_forgets_in_it_too(path, monkeypatch):
    ids = fill(path)
    with open_bank(path) as bank, open_bank(path, approximate=False) as plain:
        bank.search("who")
        monkeypatch.setitem(sys.modules, "usearch.index", None)
        plain.forget(ids[3])
        assert not index_contains(path, "fact 3")
        assert index_contains(path, "fact 4")


def test_of_two_with_one_embedding_the_other_is_found_when_one_is_forgotten(path):
    ids = fill(path)
    with open_bank(path) as bank:
        more = [bank.add("fact 7", merge=False) for _ in range(2 * SMALL)]
        bank.search("who")
        assert len(segments(path)) == 5
        bank.forget(more[20])
        assert more[21] in {hit.id for hit in bank.search("fact 7", 100)}
        assert index_contains(path, "fact 7")
        for id in (ids[7], *more):
            bank.forget(id)
        bank.search("who")
        assert not index_contains(path, "fact 7")


def test_what_was_not_forgotten_after_all_is_still_found(path):
    ids = fill(path)
    with open_bank(path) as bank:
        bank.search("who")
        with contextlib.suppress(KeyError), bank.store.writing():
            bank.forget(ids[8])
            raise KeyError
        with pytest.warns(UserWarning, match="records that the bank does not have"):
            assert bank.search("fact 8")[0].id == ids[8]
        assert index_contains(path, "fact 8")


def test_the_index_of_records_that_were_rolled_back_is_built_anew(path, monkeypatch):
    monkeypatch.setattr(search_approximate, "_MIN_PER_SEGMENT", 1)
    fill(path, 70)
    with open_bank(path) as bank:
        with contextlib.suppress(KeyError), bank.store.writing():
            bank.write(bank.embed_drafts([bank.draft(f"phantom {n}", merge=False) for n in range(30)]))
            bank.search("phantom 3")
            raise KeyError
        fill(path, 25, 70)
        with pytest.warns(UserWarning, match="records that the bank does not have"):
            bank.search("who")
        for number in (3, 72, *range(80, 95)):
            (hit,) = bank.search(f"fact {number}", 1, explain=True)
            assert hit.text == f"fact {number}"
            assert hit.explanation is not None
            assert hit.explanation.dense_rank == 1


@pytest.mark.parametrize("again", [20, 50], ids=["the same segment", "another segment"])
@pytest.mark.parametrize("num_rolled_back", [1, 2])
def test_what_was_not_forgotten_is_still_found_once_something_else_is(path, num_rolled_back, again):
    ids = fill(path)
    with open_bank(path) as bank:
        bank.search("who")
        with contextlib.suppress(KeyError), bank.store.writing():
            for id in ids[10 : 10 + num_rolled_back]:
                bank.forget(id)
            raise KeyError
        for number in range(again, again + num_rolled_back):
            bank.forget(ids[number])
            assert not index_contains(path, f"fact {number}")
    with open_bank(path) as bank:
        assert bank.search("fact 10")[0].id == ids[10]
        assert index_contains(path, "fact 10")
        assert index_contains(path, "fact 50") == (again != 50)


def test_what_is_forgotten_together_leaves_the_index_in_place(path):
    ids = fill(path)
    with open_bank(path) as bank:
        bank.search("who")
        before = [file.stat().st_ino for file in segments(path)]
        with bank.store.writing():
            for number in (10, 50, 11):
                bank.forget(ids[number])
        assert bank.search("fact 12")[0].id == ids[12]
        assert [file.stat().st_ino for file in segments(path)] == before
        assert not any(index_contains(path, f"fact {number}") for number in (10, 50, 11))


def test_all_of_a_segment_may_be_forgotten(path):
    ids = fill(path)
    with open_bank(path) as bank:
        bank.search("who")
        for id in ids[:SMALL]:
            bank.forget(id)
        assert len(segments(path)) == 2
        assert bank.search("fact 60")[0].id == ids[60]
        assert len(segments(path)) == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"not an index" * 1000,
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"\0" * 2000 + data[2000:],
        lambda data: data + data[-20:],
    ],
)
def test_a_file_that_is_not_whole_is_built_anew(path, spoil):
    ids = fill(path)
    with open_bank(path) as bank:
        expected = hits(bank)
    file = segments(path)[0]
    right = len(file.read_bytes())
    file.write_bytes(spoil(file.read_bytes()))
    with open_bank(path) as bank:
        with pytest.warns(UserWarning, match=r"rebuilding .*000000\.usearch "):
            assert hits(bank) == expected
        assert bank.search("fact 17")[0].id == ids[17]
        assert hits(bank) == expected
    assert len(file.read_bytes()) == right


def test_files_of_another_bank_or_of_another_past_are_built_anew(path, tmp_path):
    fill(path)
    other = tmp_path / "other.db"
    ids = fill(other, first=1000)
    with open_bank(path) as bank:
        bank.search("who")
    shutil.copytree(f"{path}-ann", f"{other}-ann")
    with open_bank(other) as bank:
        with pytest.warns(UserWarning, match="built from records that the bank does not have"):
            assert bank.search("fact 1017")[0].id == ids[17]
        assert not index_contains(other, "fact 17")


def test_records_restored_under_ids_of_any_length_are_indexed_once(path, tmp_path):
    fill(tmp_path / "other.db", 50)
    with open_bank(path) as bank, open_bank(tmp_path / "other.db", approximate=False) as other:
        rows = [
            row | {"id": f"{row['text']} of the bank of the year before last, é"} for row in other.export()
        ]
        assert all(bank.restore(rows))
        assert bank.search("fact 17")[0].text == "fact 17"
        assert list(bank.build_index()) == []


def test_a_broken_build_goes_on_where_it_was_and_all_may_vanish(path):
    fill(path)
    with open_bank(path) as bank:
        assert next(bank.build_index()) == (SMALL, 130)
        (first,) = segments(path)
        before = first.stat().st_mtime_ns
        assert list(bank.build_index()) == [(2 * SMALL, 130), (3 * SMALL, 130)]
        assert first.stat().st_mtime_ns == before
        assert list(bank.build_index()) == []
        expected = hits(bank)
        shutil.rmtree(f"{path}-ann")
        assert hits(bank) == expected
        assert len(segments(path)) == 3


def test_what_is_forgotten_while_a_segment_is_built_does_not_come_back(path, monkeypatch):
    ids = fill(path)
    with open_bank(path) as bank, open_bank(path, approximate=False) as other:
        add, done = search_segments.add_vectors, []

        def forget_and_add(*graph_and_records):
            if not done:  # the embeddings have been read already
                done.append(other.forget(ids[11]))
            add(*graph_and_records)

        monkeypatch.setattr(search_segments, "add_vectors", forget_and_add)
        bank.search("who")
        assert done == [True]
        assert not index_contains(path, "fact 11")
        assert index_contains(path, "fact 12")


def test_threads_that_search_first_share_one_index_that_reads_only_what_is_new(path, monkeypatch):
    ids, indexes, barrier = fill(path), [], threading.Barrier(2)
    with open_bank(path) as bank:
        bank.search("who")  # builds the segments

    class BarrierIndex(search_approximate.ApproximateIndex):
        def __init__(self, *arguments):
            with contextlib.suppress(threading.BrokenBarrierError):
                barrier.wait(0.5)  # for the other thread, if it builds an index, too
            super().__init__(*arguments)
            indexes.append(self)

    monkeypatch.setattr(embedding_index, "ApproximateIndex", BarrierIndex)
    with open_bank(path) as bank:
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda number: bank.search(f"fact {number}")[0].id, (3, 128)))
        assert results == [ids[3], ids[128]]
        assert [len(index._tail) for index in indexes] == [130 % SMALL]


def test_a_thread_that_looked_for_lost_embeddings_keeps_the_index_of_another_thread(path, monkeypatch):
    fill(path)
    with open_bank(path) as bank, ThreadPoolExecutor(1) as pool:
        index, others = bank._embedding_index, []
        assert index is not None
        restore, reading = index._restore_vectors, index._store.reading

        @contextlib.contextmanager
        def read_before_another_thread_searches():
            with reading() as connection:
                yield connection
            monkeypatch.undo()
            assert pool.submit(bank.search, "fact 3").result(60)
            others.append(index._index)

        def restore_slowly():
            monkeypatch.setattr(index._store, "reading", read_before_another_thread_searches)
            restore()

        monkeypatch.setattr(index, "_restore_vectors", restore_slowly)
        bank.search("fact 128")
        assert index._index is others[0] is not None


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="has no signal to spare")
def test_a_build_ends_at_once_when_it_is_interrupted():
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        vectors = np.random.default_rng(0).standard_normal((20_000, 64), dtype=np.float32)
        timer.start()
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it may come between two graphs, too
            while True:
                graph = search_segments._empty_graph(64)
                search_segments.add_vectors(graph, np.arange(len(vectors)), vectors)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def _search_and_write(path, who):
    search_segments.SEGMENT = search_approximate.SEGMENT = SMALL
    with open_bank(path) as bank:
        for number in range(15):
            id = bank.add(f"{who} {number}", merge=False)
            assert id in {hit.id for hit in bank.search(f"{who} {number}")}
            if number % 5 == 0:
                bank.forget(id)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which starts a process in no time")
def test_several_processes_search_write_and_forget(path):
    fill(path, 70)
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        workers = [context.Process(target=_search_and_write, args=(path, who)) for who in ("ada", "bob")]
        for worker in workers:
            worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    with open_bank(path) as bank, open_bank(path, approximate=False) as exact:
        assert hits(bank, "ada 3") == hits(exact, "ada 3")
    assert not index_contains(path, "ada 5")
    assert not any("part" in file.name for file in segments(path))


def test_what_does_not_go_together_is_named(path, monkeypatch):
    with pytest.raises(ValueError, match="approximate search needs embeddings and a file"):
        open_bank(":memory:")
    with pytest.raises(ValueError, match="embeddings=None"):
        MemoryBank(path, approximate=True)
    with pytest.raises(ValueError, match="device='cpu'"):
        MemoryBank(path, RandomEmbeddings(), approximate=True, device="cpu")
    monkeypatch.setitem(sys.modules, "usearch", None)
    monkeypatch.delitem(sys.modules, "usearch.index", raising=False)
    with pytest.raises(
        ModuleNotFoundError, match=r"approximate=True needs usearch: pip install 'scrubjay\[ann\]'"
    ):
        open_bank(path)
    with open_bank(path, approximate=False) as bank:
        assert list(bank.build_index()) == []


@pytest.mark.parametrize("reopen", [True, False])
def test_an_index_with_a_bit_flipped_anywhere_is_built_anew(path, reopen):
    fill(path, 50)
    random = np.random.default_rng(4)
    with contextlib.ExitStack() as stack:
        exact = stack.enter_context(open_bank(path, approximate=False))
        bank = stack.enter_context(open_bank(path))
        expected = hits(exact)
        assert hits(bank) == expected
        (file,) = segments(path)
        whole = file.read_bytes()
        for place in [*range(0, 64, 9), *random.integers(0, len(whole), 40), len(whole) - 1, len(whole) - 40]:
            damaged_content = bytearray(whole)
            damaged_content[place] ^= 1 << int(random.integers(8))
            file.write_bytes(damaged_content)
            if reopen:
                bank = stack.enter_context(open_bank(path))
            with pytest.warns(UserWarning, match=r"rebuilding .*000000\.usearch (has|is|was) "):
                assert hits(bank) == expected
            assert hits(bank) == expected
            assert len(file.read_bytes()) == len(whole)


def test_a_damaged_index_is_not_made_good_by_forgetting(path):
    ids = fill(path, 50)
    with open_bank(path) as bank, open_bank(path, approximate=False) as exact:
        hits(bank)
        (file,) = segments(path)
        damaged_content = bytearray(file.read_bytes())
        damaged_content[100] ^= 1
        file.write_bytes(damaged_content)
        bank.forget(ids[3])
        assert not file.exists()
        assert hits(bank) == hits(exact)
        assert not index_contains(path, "fact 3")


def test_an_untrusted_bank_has_no_approximate_index(path):
    fill(path)
    with pytest.raises(ValueError, match="approximate=True with foreign=True: a hostile index file"):
        MemoryBank(path, RandomEmbeddings(), approximate=True, foreign=True)


def test_record_numbers_with_a_large_gap_take_no_time_or_memory(path):
    fill(path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for table in ("records", "vectors", "marks"):
            connection.execute(f"UPDATE {table} SET number = {2**53} WHERE number = 130")
        connection.execute("UPDATE sqlite_sequence SET seq = ?", (2**53,))
    for approximate in (True, False):
        with open_bank(path, approximate) as bank, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the index of words is rebuilt
            assert len(bank.search("fact 129", k=200)) == 130
