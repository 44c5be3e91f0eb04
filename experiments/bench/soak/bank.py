"""Soak of a memory bank: a writer is killed and the bank is opened again, while another process reads.

The writer adds batches of records, each in one transaction, and forgets a record now and then. It
acknowledges each step to the process that kills it. The moment of a kill is random: first while the bank
grows to its size, then as often at that size, where many kills hit the opening. After each kill a new process
opens the bank and checks it:

- All acknowledged batches are there, each one whole, with the texts and embeddings that were written. Every
  tenth check reads all records, checks SQLite's file and compares the word index with the texts. The others
  read the records since the check before.
- Forgotten records are gone.
- A search for the text of any record finds this record first.

A reader searches during the whole time. It must see whole batches only, and find what it searches.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import multiprocessing
import random
import sqlite3
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from scrubjay.experiments.bench.bank import CheapEmbeddings, Texts
from scrubjay.experiments.bench.soak import SoakError, anonymous_bytes
from scrubjay.experiments.measurements import Records
from scrubjay.experiments.progress import ProgressLines
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.embedding_model import normalize_vectors
from scrubjay.memory.bank.file.postings import ENTRY_SIZE, has_postings, scope_words
from scrubjay.memory.bank.file.words import index_words

_BATCHES_PER_FORGOTTEN = 20
_AGE_OF_FORGOTTEN = 10  # batches
_NAMESPACES = 50
_SEARCHES = 5
_THOROUGH = 10  # checks
_MOST_SECONDS = 4.0  # between the last expected acknowledgement and a kill
_START = datetime(2026, 1, 1, tzinfo=UTC)
_FIELDS = {"life": int, "records": int, "milliseconds": float, "opening": int, "writing": int}


@dataclass(frozen=True, kw_only=True)
class BankSoak:
    """Sizes of the soak of a bank."""

    records: int = 1_000_000
    """Records of the bank at its full size."""
    kills: int = 50
    """Kills while the bank grows, and again at the full size."""
    batch: int = 500
    """Records of a transaction."""
    dimension: int = 64
    """Dimension of an embedding."""
    seed: int = 0
    """Seed of the texts and of the moments of the kills."""

    def texts(self, batch: int) -> list[str]:
        """Return the texts of a batch. Each one ends with a word that no other text has."""
        texts = Texts(self.seed * 10**9 + batch)
        numbers = range(batch * self.batch + 1, (batch + 1) * self.batch + 1)
        return [f"{texts.ask()} {texts.ask()} n{number}" for number in numbers]

    def text(self, number: int) -> str:
        """Return the text of a record."""
        batch, index = divmod(number - 1, self.batch)
        return self.texts(batch)[index]

    def list_forgotten(self, batches: int) -> list[int]:
        """Return the numbers of the records that are forgotten once `batches` batches are written."""
        times = range(_BATCHES_PER_FORGOTTEN, batches + 1, _BATCHES_PER_FORGOTTEN)
        return [(time - _AGE_OF_FORGOTTEN) * self.batch + 1 for time in times]

    def open(self, path: Path) -> MemoryBank:
        """Open the bank."""
        return MemoryBank(path, CheapEmbeddings(self.dimension), clock=lambda: _START)


def count_batches(soak: BankSoak, connection: sqlite3.Connection) -> int:
    """Return the number of batches in a bank. Raises SoakError if the last batch is not whole."""
    (newest,) = connection.execute("SELECT COALESCE(MAX(number), 0) FROM records").fetchone()
    batches, rest = divmod(newest, soak.batch)
    if rest:
        raise SoakError(f"the last batch has {rest} of {soak.batch} records")
    return batches


def write(soak: BankSoak, path: Path, sender: Connection) -> None:
    """Write batches until this process is killed, and acknowledge each one."""
    memory, began = anonymous_bytes(), time.perf_counter()
    with soak.open(path) as bank:
        sender.send(
            {"milliseconds": 1000 * (time.perf_counter() - began), "opening": anonymous_bytes() - memory}
        )
        with bank.store.reading() as connection:
            done = count_batches(soak, connection)
        for batch in itertools.count(done):
            for number in soak.list_forgotten(batch)[-1:]:
                with bank.store.reading() as connection:
                    row = connection.execute("SELECT id FROM records WHERE number = ?", (number,)).fetchone()
                if row is not None:
                    bank.forget(*row)
            sender.send({"forgotten": len(soak.list_forgotten(batch))})
            first = batch * soak.batch + 1
            drafts = [
                bank.draft(
                    text,
                    namespace=("user", f"u{number % _NAMESPACES}"),
                    observed=_START + timedelta(minutes=number),
                    merge=False,
                )
                for number, text in enumerate(soak.texts(batch), first)
            ]
            bank.write(bank.embed_drafts(drafts))
            sender.send({"batches": batch + 1, "writing": anonymous_bytes() - memory})


def check(
    soak: BankSoak, path: Path, acks: dict[str, Any], digests: list[bytes], life: int, sender: Connection
) -> None:
    """Open a bank after a kill, check it, and send a row of measurements or the error.

    Args:
        soak: Sizes.
        path: File of the bank.
        acks: Acknowledged `batches` and number of `forgotten` records, and the batches that were `checked`.
        digests: Digests of the batches.
        life: Number of the kill.
        sender: Receives the result.
    """
    warnings.simplefilter("error")  # a bank that repairs its index warns
    memory, began = anonymous_bytes(), time.perf_counter()
    draws = random.Random(f"{soak.seed} {life}")
    try:
        with soak.open(path) as bank:
            row: dict[str, Any] = {
                "milliseconds": 1000 * (time.perf_counter() - began),
                "opening": anonymous_bytes() - memory,
            }
            thorough = life % _THOROUGH == 0
            row["batches"] = check_records(soak, bank, acks, digests, thorough)
            numbers = [
                draws.randint(max(1, row["batches"] * soak.batch - span), row["batches"] * soak.batch)
                for span in (soak.batch, *[10**9] * (_SEARCHES - 1))
                if row["batches"]
            ]
            absent = {*soak.list_forgotten(row["batches"])}
            targets = [number for number in numbers if number not in absent]
            row["words"] = find(soak, bank, targets, by="words")
            row["reading"] = anonymous_bytes() - memory
            if thorough:
                row["meaning"] = find(soak, bank, targets, by="meaning")
                row["vectors"] = anonymous_bytes() - memory
                check_file(bank)
            row["records"] = len(bank)
        sender.send(row)
    except Exception as error:  # noqa: BLE001  (the parent raises it)
        sender.send(f"{type(error).__name__}: {error}")


def check_records(
    soak: BankSoak, bank: MemoryBank, acks: dict[str, Any], digests: list[bytes], thorough: bool
) -> int:
    """Check the records of a bank; return the number of its batches."""
    with bank.store.reading() as connection:
        batches = count_batches(soak, connection)
        if not acks["batches"] <= batches <= len(digests):
            raise SoakError(f"{batches} batches, but {acks['batches']} were acknowledged")
        to_forget = soak.list_forgotten(batches)
        (count,) = connection.execute("SELECT COUNT(*) FROM records").fetchone()
        num_forgotten = batches * soak.batch - count
        if not acks["forgotten"] <= num_forgotten <= len(to_forget):
            raise SoakError(f"{num_forgotten} records are missing, and {acks['forgotten']} were forgotten")
        first = 0 if thorough else acks["checked"]
        rows = connection.execute(
            "SELECT number, text, vector FROM records LEFT JOIN vectors USING (number) WHERE number > ? "
            "ORDER BY number",
            (first * soak.batch,),
        )
        missing = {*to_forget[:num_forgotten]}
        for batch in range(first, batches):
            numbers = range(batch * soak.batch + 1, (batch + 1) * soak.batch + 1)
            expected = [number for number in numbers if number not in missing]
            own = rows.fetchmany(len(expected))
            if [row[0] for row in own] != expected:
                raise SoakError(f"batch {batch} lacks records, or has forgotten ones")
            if len(expected) == soak.batch and digest([row[1:] for row in own]) != digests[batch]:
                raise SoakError(f"batch {batch} has other texts or embeddings than were written")
        return batches


def check_file(bank: MemoryBank) -> None:
    """Check SQLite's file, and compare the word index with the texts."""
    with bank.store.writing() as connection:
        (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if answer != "ok":
            raise SoakError(f"the file is damaged: {answer}")
        counts = {
            name: connection.execute(f"SELECT {count}").fetchone()[0]
            for name, count in (
                ("records", "COUNT(*) FROM records"),
                ("vectors", "COUNT(*) FROM vectors"),
                ("index of words", f"SUM(length(records)) / {ENTRY_SIZE} FROM blocks"),
            )
        }
        for number, namespace, kind, text in connection.execute(
            "SELECT number, namespace, kind, text FROM records"
        ).fetchall():
            if not has_postings(connection, number, {*scope_words(namespace, kind), *index_words(text)}):
                raise SoakError(f"the index of words lacks words of record {number}")
    if len(set(counts.values())) > 1:
        raise SoakError(f"the numbers of records differ: {counts}")


def find(soak: BankSoak, bank: MemoryBank, numbers: list[int], by: str | None) -> float:
    """Search the texts of records, which must be the first hits; return the mean milliseconds of a search."""
    texts, began = [soak.text(number) for number in numbers], time.perf_counter()
    hits = [bank.search(text, k=3, by=by) for text in texts]
    took = 1000 * (time.perf_counter() - began) / max(len(hits), 1)
    for text, own in zip(texts, hits, strict=True):
        if not own or own[0].text != text:
            raise SoakError(f"a search by {by} for {text!r} found {[hit.text for hit in own]}")
    return took


def read(soak: BankSoak, path: Path, sender: Connection) -> None:
    """Search a bank that another process writes until the parent closes the pipe; then report."""
    memory, searches, draws = anonymous_bytes(), 0, random.Random(soak.seed)
    try:
        with soak.open(path) as bank:
            while not sender.poll(0.5):
                with bank.store.reading() as connection:
                    batches = count_batches(soak, connection)
                number = draws.randint(1, max(batches, 1) * soak.batch)
                if batches and number not in soak.list_forgotten(batches + _BATCHES_PER_FORGOTTEN):
                    find(soak, bank, [number], draws.choice(["words", "meaning", None]))
                    searches += 1
                sender.send({"searches": searches, "memory": anonymous_bytes() - memory, "batches": batches})
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:  # noqa: BLE001  (the parent raises it)
        sender.send(f"reader: {type(error).__name__}: {error}")


def digest(rows: list[tuple[str, bytes]]) -> bytes:
    """Return a digest of texts and embeddings."""
    total = hashlib.blake2b(digest_size=16)
    for text, vector in rows:
        total.update(text.encode())
        total.update(vector)
    return total.digest()


class Killer:
    """Parent of the reader, the writers and the checks. It knows what was acknowledged."""

    def __init__(self, soak: BankSoak, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.soak, self.path = soak, folder / "bank.db"
        self.records = Records(folder / "bank.jsonl", _FIELDS)
        self._context = multiprocessing.get_context("fork")
        last = self.records.rows[-1] if self.records.rows else {"batches": 0, "forgotten": 0}
        self.acks = {"batches": last["batches"], "forgotten": last["forgotten"], "checked": last["batches"]}
        self._digests: list[bytes] = []
        self._embeddings = CheapEmbeddings(soak.dimension)
        self._show = ProgressLines()
        self._read = {"searches": 0, "memory": 0}

    def run(self) -> list[dict[str, Any]]:
        """Kill and check until the bank has its size and all kills are done; return the measurements."""
        lives = range(len(self.records.rows) + 1, 2 * self.soak.kills + 1)
        if not lives:
            return self.records.rows
        with self._start(read) as (_, self._reader):
            for life in lives:
                share = min(life, self.soak.kills) / self.soak.kills
                row = self._kill(life, int(self.soak.records // self.soak.batch * share))
                self._extend_digests(self.acks["batches"] + 1)
                row |= self._run(check, dict(self.acks), self._digests, life)
                self.acks |= {"batches": row["batches"], "checked": row["batches"]}
                file = self.path.stat().st_size
                reader = {f"reader {name}": value for name, value in self._read.items()}
                self.records.append({**row, **self.acks, **reader, "life": life, "file": file})
        return self.records.rows

    def _kill(self, life: int, least: int) -> dict[str, Any]:
        """Let a writer write until the bank has `least` batches, and kill it a little later."""
        row: dict[str, Any] = {"writing": 0}
        draws = random.Random(f"{self.soak.seed} kill {life}")
        deadline = None
        with self._start(write) as (process, receiver):
            while deadline is None or time.monotonic() < deadline:
                if deadline is None and self.acks["batches"] >= least:
                    deadline = time.monotonic() + draws.uniform(0, _MOST_SECONDS)
                if receiver.poll(0.01):
                    row |= self._note(receiver.recv())
                self._listen()
                self._show(lambda: f"kill {life}: {self.acks['batches'] * self.soak.batch:,} records")
            process.kill()
            process.join()
            row["log"] = sum(file.stat().st_size for file in self.path.parent.glob("bank.db-wal"))
            with contextlib.suppress(EOFError):
                while receiver.poll():
                    row |= self._note(receiver.recv())
        return row

    def _listen(self) -> None:
        """Receive the reports of the reader."""
        while self._reader.poll():
            report = self._reader.recv()
            if isinstance(report, str):
                raise SoakError(report)
            self._read = {name: report[name] for name in self._read}

    def _note(self, message: dict[str, Any]) -> dict[str, Any]:
        """Remember an acknowledgement; return what belongs to the row of measurements."""
        names = message.keys() & {"batches", "forgotten"}
        self.acks |= {name: message[name] for name in names}
        return {"writing": message["writing"]} if "writing" in message else {}

    def _run(self, function: Any, *arguments: Any) -> dict[str, Any]:
        with self._start(function, *arguments) as (process, receiver):
            answer = receiver.recv()
            process.join()
        if isinstance(answer, str):
            raise SoakError(answer)
        return answer

    @contextlib.contextmanager
    def _start(self, function: Any, *arguments: Any) -> Iterator[tuple[Any, Connection]]:
        receiver, sender = self._context.Pipe()
        process = self._context.Process(target=function, args=(self.soak, self.path, *arguments, sender))
        process.start()
        sender.close()
        try:
            yield process, receiver
        finally:
            receiver.close()
            process.kill()
            process.join()

    def _extend_digests(self, batches: int) -> None:
        while len(self._digests) < batches:
            texts = self.soak.texts(len(self._digests))
            vectors = normalize_vectors(self._embeddings.embed_documents(texts), len(texts))
            self._digests.append(
                digest([(text, v.tobytes()) for text, v in zip(texts, vectors, strict=True)])
            )
