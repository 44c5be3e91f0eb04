"""What a memory bank costs, from a thousand records to a million: writing, searching, opening, disk, memory.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.bank

Texts are 12 words out of 50,000 as unevenly frequent as a language's, with a number of their own; vectors are
drawn at random around one of 2,000 centres. Times are of the processor, so that other work on the machine
does not count; a search's hold the question's own embedding, which costs nothing here. Every bank is searched
in a process of its own. Banks beyond `--writes` records are copies of the one of so many, made in SQL, put
together; banks in `--folder` are used again by the next run. Where lancedb is installed it searches the same
texts and vectors in the same process. Prints tables. Options: `--help`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import multiprocessing
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from scrubjay.experiments.runs.cost import peak_bytes
from scrubjay.kernels import nearest
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.file.store import Store
from scrubjay.memory.bank.search.approximate import ApproximateIndex
from scrubjay.memory.bank.search.dense import VectorIndex, unit_vectors

_VOCABULARY, _WORDS, _CENTRES = 50_000, 12, 2_000
_TENTHS = 10


@dataclass(frozen=True)
class BankBench:
    """Sizes of the measurement."""

    folder: Path = Path(tempfile.gettempdir()) / "scrubjay-banks"
    """Where the banks are made; a million records need 4 GB."""
    writes: int = 100_000
    """Single writes of the first table."""
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    """Records of the banks that are searched."""
    searches: int = 100
    """Searches of each."""
    beside: tuple[int, ...] = (10_000, 100_000)
    """Records of the banks that are searched beside lancedb."""
    indexed: tuple[int, ...] = (100_000, 1_000_000)
    """Records of the banks that are searched with an approximate index, too."""
    dimension: int = 384
    """Numbers of an embedding."""


class Texts:
    """Texts and questions by seed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        frequency = 1 / (np.arange(_VOCABULARY) + 10.0)
        self._total = np.cumsum(frequency / frequency.sum())
        self._written = 0

    def write(self) -> str:
        """Return a text that was not there before."""
        self._written += 1
        return f"{self._draw(_WORDS)} n{self._written}"

    def ask(self) -> str:
        """Return a question of five words."""
        return self._draw(5)

    def _draw(self, count: int) -> str:
        return " ".join(f"w{word}" for word in np.searchsorted(self._total, self._random.random(count)))


class CheapEmbeddings:
    """A vector by the hash of a text: one of the centres, and noise."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._centres = np.random.default_rng(0).standard_normal((_CENTRES, dimension), dtype=np.float32)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector per text."""
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return a question's vector."""
        random = np.random.default_rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()))
        noise = random.standard_normal(self.dimension, dtype=np.float32)
        return (self._centres[random.integers(_CENTRES)] + noise).tolist()


def milliseconds(action: Callable[[], object], count: int, name: str) -> tuple[float, float]:
    """Return the median and the 99th percentile of the processor's time of an action."""
    times, said = [], time.monotonic()
    for number in range(count):
        began = time.process_time()
        action()
        times.append(1000 * (time.process_time() - began))
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"{name}: {number:,}/{count:,}", file=sys.stderr, flush=True)
    return float(np.median(times)), float(np.quantile(times, 0.99))


def fill(path: Path, embeddings: CheapEmbeddings | None, size: int) -> list[tuple[float, float]]:
    """Write a bank of `size` records one by one; return what `milliseconds` says of each tenth."""
    texts = Texts(0)
    part = path.with_suffix(".part")
    for left in part.parent.glob(f"{part.name}*"):
        left.unlink()
    with MemoryBank(part, embeddings) as bank:
        found = [
            milliseconds(
                lambda: bank.add(texts.write()), size // _TENTHS, f"{path.name}, {tenth + 1} of {_TENTHS}"
            )
            for tenth in range(_TENTHS)
        ]
    part.rename(path)
    return found


def multiply(source: Path, path: Path, copies: int, embeddings: CheapEmbeddings) -> None:
    """Make a bank of so many copies of another's records, with embeddings of their own."""
    part = path.with_suffix(".part")
    for left in part.parent.glob(f"{part.name}*"):
        left.unlink()
    shutil.copy(source, part)
    connection = sqlite3.connect(part, isolation_level=None)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(records)")]
    moved = {"number": "number + ?1", "chunk": "chunk + ?1", "id": "id || ?1", "text": "text || ' ' || ?1"}
    (size,) = connection.execute("SELECT MAX(number) FROM records").fetchone()
    for copy in range(1, copies):
        offset = (copy * size,)
        connection.execute("BEGIN")
        connection.execute(
            f"INSERT INTO records ({', '.join(columns)}) SELECT "
            f"{', '.join(str(moved.get(c, c)) for c in columns)} FROM records WHERE number <= {size}",
            offset,
        )
        connection.execute(
            (
                "INSERT INTO words (rowid, scope, body) SELECT rowid + ?1, scope, body FROM words WHERE "
                f"rowid <= {size}"
            ),
            offset,
        )
        connection.execute(
            f"INSERT INTO marks SELECT mark, number + ?1 FROM marks WHERE number <= {size}", offset
        )
        connection.executemany(
            "INSERT INTO vectors VALUES (?, ?)",
            (
                (number, unit_vectors([embeddings.embed_query(text)], 1)[0].tobytes())
                for number, text in connection.execute(
                    "SELECT number, text FROM records WHERE number > ?", offset
                ).fetchall()
            ),
        )
        connection.execute("COMMIT")
        print(f"{path.name}: {copy + 1} of {copies} copies", file=sys.stderr, flush=True)
    connection.close()
    part.rename(path)


def searched(
    path: Path, embeddings: CheapEmbeddings | None, searches: int, approximate: bool = False
) -> dict[str, float]:
    """Return what searches cost: milliseconds of the first, the median, the 99th percentile; and bytes."""
    texts = Texts(1)
    before = peak_bytes()
    with MemoryBank(path, embeddings, approximate=approximate) as bank:
        first, _ = milliseconds(lambda: bank.search(texts.ask()), 1, f"{path.name}, the first search")
        median, worst = milliseconds(lambda: bank.search(texts.ask()), searches, f"{path.name}, searches")
        return {"first": first, "median": median, "worst": worst, "memory": peak_bytes() - before}


def build(path: Path, embeddings: CheapEmbeddings) -> tuple[float, float]:
    """Build the approximate index of a bank; return CPU milliseconds a record, and bytes of its files."""
    folder = Path(f"{path}-ann")
    shutil.rmtree(folder, ignore_errors=True)
    began, done = time.process_time(), 0
    with MemoryBank(path, embeddings, approximate=True) as bank:
        for done, count in bank.build_index():
            print(f"{path.name}, index: {done:,}/{count:,}", file=sys.stderr, flush=True)
    took = 1000 * (time.process_time() - began) / max(done, 1)
    return took, sum(file.stat().st_size for file in folder.glob("*"))


def recalled(path: Path, embeddings: CheapEmbeddings, searches: int) -> float:
    """Return the part of the exact ten nearest that an approximate index finds."""
    texts = Texts(1)
    queries = unit_vectors([embeddings.embed_query(texts.ask()) for _ in range(searches)], searches)
    store = Store(path)
    exact, approximate = VectorIndex(embeddings.dimension), ApproximateIndex(store, embeddings.dimension)
    for _ in approximate.catch_up():
        pass
    with store.reading() as connection:
        exact.refresh(connection)
        approximate.refresh(connection)
        found = [
            [index.scan(query, lambda *scope: True).nearest(10) for index in (exact, approximate)]
            for query in queries
        ]
    store.close()
    return float(np.mean([np.isin(right, seen).mean() for right, seen in found]))


def lancedb_table(folder: Path, path: Path) -> Any:
    """Return a table of lancedb with a bank's texts and vectors, its words indexed."""
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


def beside_lancedb(path: Path, embeddings: CheapEmbeddings, searches: int) -> list[tuple[float, float]]:
    """Return the medians of a bank's and lancedb's searches by words, by exact vectors, and by both."""
    rerankers: Any = importlib.import_module("lancedb.rerankers")
    fused = rerankers.RRFReranker()
    texts = Texts(1)
    with tempfile.TemporaryDirectory() as folder, MemoryBank(path, embeddings) as bank:
        table = lancedb_table(Path(folder), path)
        pairs: list[tuple[Callable[[str], object], Callable[[str], object]]] = [
            (
                lambda asked: bank.search(asked, by="words"),
                lambda asked: table.search(asked, query_type="fts").limit(10).to_list(),
            ),
            (
                lambda asked: bank.search(asked, by="meaning"),
                lambda asked: table.search(embeddings.embed_query(asked))
                .distance_type("cosine").limit(10).to_list(),
            ),
            (
                bank.search,
                lambda asked: table.search(query_type="hybrid").vector(embeddings.embed_query(asked))
                .text(asked).rerank(fused).limit(10).to_list(),
            ),
        ]  # fmt: skip
        found = []
        for pair in pairs:
            times: tuple[list[float], list[float]] = ([], [])
            for asked in [texts.ask() for _ in range(searches + 2)]:
                for search, taken in zip(pair, times, strict=True):
                    began = time.process_time()
                    search(asked)
                    taken.append(1000 * (time.process_time() - began))
            found.append((float(np.median(times[0][2:])), float(np.median(times[1][2:]))))
        return found


def flat_scan(size: int, dimension: int) -> tuple[float, float]:
    """Return the median milliseconds of a scan of `size` vectors for the nearest ten, by numpy and torch."""
    import torch

    torch.set_num_threads(1)
    vectors = np.random.default_rng(0).standard_normal((size, dimension), dtype=np.float32)
    tensor = torch.from_numpy(vectors)
    by_numpy = milliseconds(lambda: nearest(vectors[:1], vectors, 10), 20, "numpy")
    by_torch = milliseconds(lambda: nearest(tensor[:1], tensor, 10), 20, "torch")
    return by_numpy[0], by_torch[0]


def main() -> None:
    """Measure and print."""
    config = tyro.cli(BankBench, description=__doc__)
    config.folder.mkdir(parents=True, exist_ok=True)
    embeddings = CheapEmbeddings(config.dimension)
    print(f"SQLite {sqlite3.sqlite_version}, numpy {np.__version__}, one thread\n")
    base = config.folder / f"vectors_{config.writes}.db"
    columns = {
        "words": _remembered(config.folder / f"words_{config.writes}.db", None, config.writes),
        "words and vectors": _remembered(base, embeddings, config.writes),
    }
    print("Milliseconds of a write, median / 99th percentile, by how many were written before:\n")
    print(f"| records | {' | '.join(columns)} |\n|---|---|---|")
    for tenth, cells in enumerate(zip(*columns.values(), strict=True)):
        shown = " | ".join(f"{median:.2f} / {worst:.2f}" for median, worst in cells)
        print(f"| {tenth * config.writes // _TENTHS:,} | {shown} |")
    print("\nMilliseconds of a search for 10, median / 99th percentile, and of the first after opening:\n")
    print(
        "| records | MB on disk | words | words and vectors | first | MB of memory | flat scan, numpy "
        "| torch |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for size in config.sizes:
        path = config.folder / f"vectors_{size}.db"
        if not path.exists():
            if size > config.writes:
                multiply(base, path, size // config.writes, embeddings)
            else:
                fill(path, embeddings, size)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            words = pool.apply(searched, (path, None, config.searches))
            both = pool.apply(searched, (path, embeddings, config.searches))
            by_numpy, by_torch = pool.apply(flat_scan, (size, config.dimension))
        print(
            f"| {size:,} | {path.stat().st_size / 1e6:,.0f} | {words['median']:.1f} / {words['worst']:.1f} | "
            f"{both['median']:.1f} / {both['worst']:.1f} | {both['first']:,.0f} | "
            f"{both['memory'] / 1e6:,.0f} | "
            f"{by_numpy:.1f} | {by_torch:.1f} |",
            flush=True,
        )
    _beside(config, embeddings)
    _approximations(config, embeddings)


def _beside(config: BankBench, embeddings: CheapEmbeddings) -> None:
    if importlib.util.find_spec("lancedb") is None:
        print("\nlancedb is not installed; beside it nothing was measured.")
        return
    print(
        "\nThe same texts and vectors, searched by a bank / by lancedb in one process, milliseconds and "
        "their ratio:\n"
    )
    print("| records | words | vectors, exactly | both |\n|---|---|---|---|")
    for size in config.beside:
        path = config.folder / f"vectors_{size}.db"
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            found = pool.apply(beside_lancedb, (path, embeddings, config.searches))
        cells = (f"{ours:.1f} / {theirs:.1f} = {ours / theirs:.2f}" for ours, theirs in found)
        print(f"| {size:,} | {' | '.join(cells)} |", flush=True)


def _approximations(config: BankBench, embeddings: CheapEmbeddings) -> None:
    print("\nThe same with `approximate=True`, and what part of the ten nearest records it finds:\n")
    print(
        "| records | build, ms a record | MB of index | words and vectors | first | MB of memory | "
        "recall |\n|---|---|---|---|---|---|---|"
    )
    for size in config.indexed:
        path = config.folder / f"vectors_{size}.db"
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            took, index = pool.apply(build, (path, embeddings))
            found = pool.apply(searched, (path, embeddings, config.searches, True))
            recall = pool.apply(recalled, (path, embeddings, config.searches))
        print(
            f"| {size:,} | {took:.2f} | {index / 1e6:,.0f} | {found['median']:.1f} / {found['worst']:.1f} | "
            f"{found['first']:,.0f} | {found['memory'] / 1e6:,.0f} | {recall:.3f} |",
            flush=True,
        )


def _remembered(path: Path, embeddings: CheapEmbeddings | None, size: int) -> list[tuple[float, float]]:
    """Return what `fill` returned, from the file beside the bank if it was filled before."""
    notes = path.with_suffix(".json")
    if not (path.exists() and notes.exists()):
        notes.write_text(json.dumps(fill(path, embeddings, size)))
    return json.loads(notes.read_text())


if __name__ == "__main__":
    main()
