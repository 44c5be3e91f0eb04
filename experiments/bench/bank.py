"""Cost of a memory bank of 1,000 to 1,000,000 records: writes, searches, opening, disk and memory.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.bank

Texts have a unique number and 12 words of a vocabulary of 50,000 with Zipf-like frequencies. Vectors are
random points around one of 2,000 centers. Times are CPU times, so that other work on the machine does not
count. The time of a search includes the embedding of its query, which costs almost nothing here. Every search
measurement starts a new process. A bank of more than `--writes` records consists of copies of the bank of
`--writes` records, made in SQL. The next run reuses the banks in `--folder`. If lancedb or bm25s is
installed, it searches the same texts and vectors in one process with a bank. Prints tables. Options:
`--help`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import json
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from scrubjay.experiments.bench import run_in_new_process, time_in_turns
from scrubjay.experiments.resources import peak_bytes
from scrubjay.kernels import nearest
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.embedding_model import normalize_vectors
from scrubjay.memory.bank.file.postings import BLOCK, insert_entries
from scrubjay.memory.bank.file.store import Store
from scrubjay.memory.bank.search.approximate import ApproximateIndex
from scrubjay.memory.bank.search.completeness import read_entries
from scrubjay.memory.bank.search.dense import VectorIndex

_VOCABULARY, _WORDS, _CENTRES = 50_000, 12, 2_000
_TENTHS = 10


@dataclass(frozen=True)
class BankBench:
    """Options of the benchmark."""

    folder: Path = Path(tempfile.gettempdir()) / "scrubjay-banks"
    """Folder of the banks; a million records need 4 GB."""
    writes: int = 100_000
    """Number of records written one at a time, for the first table."""
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    """Numbers of records of the searched banks."""
    searches: int = 100
    """Timed searches of each bank."""
    beside: tuple[int, ...] = (10_000, 100_000)
    """Numbers of records of the banks that are compared with lancedb and bm25s."""
    indexed_sizes: Annotated[tuple[int, ...], tyro.conf.arg(name="indexed")] = (100_000, 1_000_000)
    """Numbers of records of the banks that are also searched with an approximate index."""
    dimension: int = 384
    """Dimension of an embedding."""


class Texts:
    """Random texts and queries from one seed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        frequency = 1 / (np.arange(_VOCABULARY) + 10.0)
        self._cumulative = np.cumsum(frequency / frequency.sum())
        self._num_texts = 0

    def write(self) -> str:
        """Return a new, unique text."""
        self._num_texts += 1
        return f"{self._draw(_WORDS)} n{self._num_texts}"

    def ask(self) -> str:
        """Return a query of five words."""
        return self._draw(5)

    def _draw(self, count: int) -> str:
        return " ".join(f"w{word}" for word in np.searchsorted(self._cumulative, self._random.random(count)))


class CheapEmbeddings:
    """Embeddings without a model: the hash of a text selects a random center and the added noise."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._centres = np.random.default_rng(0).standard_normal((_CENTRES, dimension), dtype=np.float32)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector per text."""
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query."""
        random = np.random.default_rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()))
        noise = random.standard_normal(self.dimension, dtype=np.float32)
        return (self._centres[random.integers(_CENTRES)] + noise).tolist()


def time_action(action: Callable[[], object], count: int, name: str) -> tuple[float, float]:
    """Return the median and the 99th percentile of an action's CPU time in milliseconds."""
    times, last_report = [], time.monotonic()
    for number in range(count):
        began = time.process_time()
        action()
        times.append(1000 * (time.process_time() - began))
        if time.monotonic() - last_report > 10:
            last_report = time.monotonic()
            print(f"{name}: {number:,}/{count:,}", file=sys.stderr, flush=True)
    return float(np.median(times)), float(np.quantile(times, 0.99))


def fill(path: Path, embeddings: CheapEmbeddings | None, size: int) -> list[tuple[float, float]]:
    """Write a bank of `size` records one by one.

    Returns the median and the 99th percentile of a write's CPU milliseconds, for each tenth of the records.
    """
    texts = Texts(0)
    part = path.with_suffix(".part")
    for leftover in part.parent.glob(f"{part.name}*"):
        leftover.unlink()
    with MemoryBank(part, embeddings) as bank:
        timings = [
            time_action(
                lambda: bank.add(texts.write()), size // _TENTHS, f"{path.name}, {tenth + 1} of {_TENTHS}"
            )
            for tenth in range(_TENTHS)
        ]
    part.rename(path)
    return timings


def multiply(source: Path, path: Path, copies: int, embeddings: CheapEmbeddings) -> None:
    """Create a bank of `copies` copies of another bank's records, with new embeddings."""
    part = path.with_suffix(".part")
    for leftover in part.parent.glob(f"{part.name}*"):
        leftover.unlink()
    shutil.copy(source, part)
    connection = sqlite3.connect(part, isolation_level=None)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(records)")]
    copy_expressions = {
        "number": "number + ?1",
        "chunk": "chunk + ?1",
        "id": "id || ?1",
        "text": "text || ' ' || ?1",
    }
    (size,) = connection.execute("SELECT MAX(number) FROM records").fetchone()
    for copy in range(1, copies):
        offset = (copy * size,)
        connection.execute("BEGIN")
        connection.execute(
            f"INSERT INTO records ({', '.join(columns)}) "
            f"SELECT {', '.join(str(copy_expressions.get(c, c)) for c in columns)} "
            f"FROM records WHERE number <= {size}",
            offset,
        )
        for first in range(offset[0] + 1, offset[0] + size + 1, BLOCK):
            numbers = range(first, min(first + BLOCK, offset[0] + size + 1))
            insert_entries(connection, read_entries(connection, numbers, UTC))
        connection.execute(
            f"INSERT INTO marks SELECT mark, number + ?1 FROM marks WHERE number <= {size}", offset
        )
        connection.executemany(
            "INSERT INTO vectors VALUES (?, ?)",
            (
                (number, normalize_vectors([embeddings.embed_query(text)], 1)[0].tobytes())
                for number, text in connection.execute(
                    "SELECT number, text FROM records WHERE number > ?", offset
                ).fetchall()
            ),
        )
        connection.execute("COMMIT")
        print(f"{path.name}: {copy + 1} of {copies} copies", file=sys.stderr, flush=True)
    connection.close()
    # A bank that was written record by record has its embeddings quantized already.
    with MemoryBank(part, embeddings) as bank:
        for done, count in bank.build_index():
            print(f"{path.name}, quantized: {done:,}/{count:,}", file=sys.stderr, flush=True)
    part.rename(path)


def measure_searches(
    path: Path, embeddings: CheapEmbeddings | None, searches: int, approximate: bool = False
) -> dict[str, float]:
    """Return CPU milliseconds of opening and searches, and added peak memory in bytes.

    The keys are open, first (search), median, worst (99th percentile) and memory.
    """
    texts = Texts(1)
    before, began = peak_bytes(), time.process_time()
    with MemoryBank(path, embeddings, approximate=approximate) as bank:
        opening = 1000 * (time.process_time() - began)
        first, _ = time_action(lambda: bank.search(texts.ask()), 1, f"{path.name}, the first search")
        median, worst = time_action(lambda: bank.search(texts.ask()), searches, f"{path.name}, searches")
        memory = peak_bytes() - before
    return {"open": opening, "first": first, "median": median, "worst": worst, "memory": memory}


def build(path: Path, embeddings: CheapEmbeddings) -> tuple[float, float]:
    """Build the approximate index of a bank; return CPU milliseconds per record and file size in bytes."""
    folder = Path(f"{path}-ann")
    shutil.rmtree(folder, ignore_errors=True)
    began, done = time.process_time(), 0
    with MemoryBank(path, embeddings, approximate=True) as bank:
        for done, count in bank.build_index():
            print(f"{path.name}, index: {done:,}/{count:,}", file=sys.stderr, flush=True)
    took = 1000 * (time.process_time() - began) / max(done, 1)
    return took, sum(file.stat().st_size for file in folder.glob("*"))


def measure_recall(path: Path, embeddings: CheapEmbeddings, searches: int) -> float:
    """Return the mean fraction of the 10 nearest records that the approximate index finds."""
    texts = Texts(1)
    queries = normalize_vectors([embeddings.embed_query(texts.ask()) for _ in range(searches)], searches)
    store = Store(path)
    exact, approximate = VectorIndex(embeddings.dimension), ApproximateIndex(store, embeddings.dimension)
    for _ in approximate.catch_up():
        pass
    with store.reading() as connection:
        exact.refresh(connection)
        approximate.refresh(connection)
        nearest_rows = [
            [index.scan(query, lambda *scope: True).nearest(10) for index in (exact, approximate)]
            for query in queries
        ]
    store.close()
    return float(np.mean([np.isin(rows, own).mean() for rows, own in nearest_rows]))


def build_lancedb_table(folder: Path, path: Path) -> Any:
    """Return a lancedb table of a bank's texts and vectors, with a full-text index."""
    lancedb: Any = importlib.import_module("lancedb")
    pyarrow: Any = importlib.import_module("pyarrow")
    config: Any = importlib.import_module("lancedb.index")
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT text, vector FROM records JOIN vectors USING (number)").fetchall()
    connection.close()
    texts, blobs = zip(*rows, strict=True)
    numbers = np.frombuffer(b"".join(blobs), dtype=np.float32)
    vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(numbers), len(numbers) // len(texts))
    rows = pyarrow.table({"text": pyarrow.array(texts), "vector": vectors})
    table = lancedb.connect(folder).create_table("records", rows)
    table.create_index("text", config=config.FTS())
    return table


def compare_with_lancedb(path: Path, embeddings: CheapEmbeddings, searches: int) -> list[tuple[float, float]]:
    """Return median CPU milliseconds of a bank and of lancedb for searches by words, vectors and both."""
    reranker = importlib.import_module("lancedb.rerankers").RRFReranker()
    texts = Texts(1)
    with tempfile.TemporaryDirectory() as folder, MemoryBank(path, embeddings) as bank:
        table = build_lancedb_table(Path(folder), path)
        pairs: list[tuple[Callable[[str], object], Callable[[str], object]]] = [
            (
                lambda text: bank.search(text, by="words"),
                lambda text: table.search(text, query_type="fts").limit(10).to_list(),
            ),
            (
                lambda text: bank.search(text, by="meaning"),
                lambda text: table.search(embeddings.embed_query(text))
                .distance_type("cosine").limit(10).to_list(),
            ),
            (
                bank.search,
                lambda text: table.search(query_type="hybrid").vector(embeddings.embed_query(text))
                .text(text).rerank(reranker).limit(10).to_list(),
            ),
        ]  # fmt: skip
        return [_time_pair(*pair, [texts.ask() for _ in range(searches + 2)]) for pair in pairs]


def compare_with_bm25s(path: Path, searches: int) -> tuple[float, float]:
    """Return median CPU milliseconds of a bank and of bm25s for searches by words, with bm25s's defaults."""
    bm25s: Any = importlib.import_module("bm25s")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        records = [text for (text,) in connection.execute("SELECT text FROM records")]
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(records, show_progress=False), show_progress=False)
    texts = Texts(1)
    with MemoryBank(path) as bank:
        return _time_pair(
            lambda text: bank.search(text, by="words"),
            lambda text: retriever.retrieve(
                bm25s.tokenize(text, show_progress=False), k=10, show_progress=False
            ),
            [texts.ask() for _ in range(searches + 2)],
        )


def _time_pair(
    search: Callable[[str], object], peer: Callable[[str], object], queries: list[str]
) -> tuple[float, float]:
    """Return the median CPU milliseconds of two ways to search for the same queries, in turns."""
    # Each call of `next` makes one search.
    methods = {side: partial(next, map(each, queries)) for side, each in enumerate((search, peer))}
    ours, theirs = time_in_turns(methods, len(queries) - 2, warm_up=2).values()
    return 1000 * float(np.median(ours)), 1000 * float(np.median(theirs))


def time_flat_scan(size: int, dimension: int) -> tuple[float, float]:
    """Return median CPU milliseconds of an exact search for the ten nearest vectors, by numpy and torch."""
    import torch

    torch.set_num_threads(1)
    vectors = np.random.default_rng(0).standard_normal((size, dimension), dtype=np.float32)
    tensor = torch.from_numpy(vectors)
    by_numpy = time_action(lambda: nearest(vectors[:1], vectors, 10), 20, "numpy")
    by_torch = time_action(lambda: nearest(tensor[:1], tensor, 10), 20, "torch")
    return by_numpy[0], by_torch[0]


def main() -> None:
    """Run the benchmark and print its table."""
    config = tyro.cli(BankBench, description=__doc__)
    config.folder.mkdir(parents=True, exist_ok=True)
    embeddings = CheapEmbeddings(config.dimension)
    print(f"SQLite {sqlite3.sqlite_version}, numpy {np.__version__}, one thread\n")
    base = config.folder / f"vectors_{config.writes}.db"
    columns = {
        "words": _load_or_fill(config.folder / f"words_{config.writes}.db", None, config.writes),
        "words and vectors": _load_or_fill(base, embeddings, config.writes),
    }
    print("CPU milliseconds per write, median / 99th percentile, by the number of records in the bank:\n")
    print(f"| records | {' | '.join(columns)} |\n|---|---|---|")
    for tenth, cells in enumerate(zip(*columns.values(), strict=True)):
        row_cells = " | ".join(f"{median:.2f} / {worst:.2f}" for median, worst in cells)
        print(f"| {tenth * config.writes // _TENTHS:,} | {row_cells} |")
    print(
        "\nCPU milliseconds per search for 10 records, median / 99th percentile, and of the first search "
        "after opening:\n"
    )
    print(
        "| records | MB on disk | words | words and vectors | opening | first search | MB of memory "
        "| vector scan, numpy | vector scan, torch |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for size in config.sizes:
        path = config.folder / f"vectors_{size}.db"
        if not path.exists():
            if size > config.writes:
                multiply(base, path, size // config.writes, embeddings)
            else:
                fill(path, embeddings, size)
        words = run_in_new_process(measure_searches, path, None, config.searches)
        both = run_in_new_process(measure_searches, path, embeddings, config.searches)
        by_numpy, by_torch = run_in_new_process(time_flat_scan, size, config.dimension)
        print(
            f"| {size:,} | {path.stat().st_size / 1e6:,.0f} | {words['median']:.1f} / {words['worst']:.1f} | "
            f"{both['median']:.1f} / {both['worst']:.1f} | {both['open']:.1f} | {both['first']:,.0f} | "
            f"{both['memory'] / 1e6:,.0f} | "
            f"{by_numpy:.1f} | {by_torch:.1f} |",
            flush=True,
        )
    _beside(config, embeddings)
    _approximations(config, embeddings)


def _beside(config: BankBench, embeddings: CheapEmbeddings) -> None:
    if importlib.util.find_spec("lancedb") is None:
        print("\nlancedb is not installed; the comparison with lancedb was skipped.")
    else:
        print(
            "\nCPU milliseconds per search of a bank / of lancedb, and their ratio; both search the same "
            "texts and vectors in one process:\n"
        )
        print("| records | words | vectors, exact search | both |\n|---|---|---|---|")
        for size in config.beside:
            path = config.folder / f"vectors_{size}.db"
            medians = run_in_new_process(compare_with_lancedb, path, embeddings, config.searches)
            print(f"| {size:,} | {' | '.join(itertools.starmap(_format_ratio, medians))} |", flush=True)
    if importlib.util.find_spec("bm25s") is None:
        print("\nbm25s is not installed; the comparison with bm25s was skipped.")
    else:
        print(
            "\nCPU milliseconds per search by words of a bank / of bm25s, and their ratio, in one process:\n"
        )
        print("| records | words |\n|---|---|")
        for size in config.beside:
            path = config.folder / f"vectors_{size}.db"
            medians = run_in_new_process(compare_with_bm25s, path, config.searches)
            print(f"| {size:,} | {_format_ratio(*medians)} |", flush=True)


def _format_ratio(ours: float, theirs: float) -> str:
    return f"{ours:.1f} / {theirs:.1f} = {ours / theirs:.2f}"


def _approximations(config: BankBench, embeddings: CheapEmbeddings) -> None:
    print(
        "\nCPU milliseconds per search with `approximate=True`, and the fraction of the ten nearest records "
        "that it finds (recall):\n"
    )
    print(
        "| records | build, ms per record | MB of index | words and vectors | first search | MB of memory | "
        "recall |\n|---|---|---|---|---|---|---|"
    )
    for size in config.indexed_sizes:
        path = config.folder / f"vectors_{size}.db"
        took, index = run_in_new_process(build, path, embeddings)
        costs = run_in_new_process(measure_searches, path, embeddings, config.searches, True)
        recall = run_in_new_process(measure_recall, path, embeddings, config.searches)
        print(
            f"| {size:,} | {took:.2f} | {index / 1e6:,.0f} | {costs['median']:.1f} / {costs['worst']:.1f} | "
            f"{costs['first']:,.0f} | {costs['memory'] / 1e6:,.0f} | {recall:.3f} |",
            flush=True,
        )


def _load_or_fill(path: Path, embeddings: CheapEmbeddings | None, size: int) -> list[tuple[float, float]]:
    """Return the timings of `fill`; run `fill` only if the bank or its JSON file of timings is missing."""
    notes = path.with_suffix(".json")
    if not (path.exists() and notes.exists()):
        notes.write_text(json.dumps(fill(path, embeddings, size)))
    return json.loads(notes.read_text())


if __name__ == "__main__":
    main()
