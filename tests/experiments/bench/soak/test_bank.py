"""Soak of a bank in small: it passes, it resumes, and it finds each fault that it looks for."""

import os
import sqlite3

import pytest

from scrubjay.experiments.bench.bank import CheapEmbeddings
from scrubjay.experiments.bench.soak import SoakError
from scrubjay.experiments.bench.soak.bank import BankSoak, Killer, check_file, check_records, digest, find
from scrubjay.memory.bank.embedding_model import normalize_vectors

SMALL = BankSoak(records=300, kills=1, batch=10, dimension=8)
NOTHING = {"batches": 0, "forgotten": 0, "checked": 0}
BATCHES = 3


@pytest.fixture
def path(tmp_path):
    """Bank of three batches, as the writer of a soak writes them."""
    with SMALL.open(tmp_path / "bank.db") as bank:
        for batch in range(BATCHES):
            bank.write(bank.embed_drafts([bank.draft(text, merge=False) for text in SMALL.texts(batch)]))
    return tmp_path / "bank.db"


@pytest.fixture(scope="module")
def digests():
    embeddings, values = CheapEmbeddings(SMALL.dimension), []
    for batch in range(BATCHES + 1):
        texts = SMALL.texts(batch)
        vectors = normalize_vectors(embeddings.embed_documents(texts), len(texts))
        values.append(digest([(text, v.tobytes()) for text, v in zip(texts, vectors, strict=True)]))
    return values


def test_all_texts_differ_and_do_not_depend_on_the_order():
    texts = [text for batch in range(10) for text in SMALL.texts(batch)]
    assert len({*texts}) == 100
    assert [SMALL.text(number) for number in (1, 10, 11, 100)] == [texts[i] for i in (0, 9, 10, 99)]


def test_an_intact_bank_passes(path, digests):
    with SMALL.open(path) as bank:
        for batches in range(BATCHES + 1):
            assert check_records(SMALL, bank, {**NOTHING, "batches": batches}, digests, True) == BATCHES
        check_file(bank)
        for by in ("words", "meaning", None):
            find(SMALL, bank, [1, 15, 30], by)


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE records SET text = text || 'x' WHERE number = 12", "batch 1 has other texts or embeddings"),
        ("UPDATE vectors SET vector = zeroblob(32) WHERE number = 12", "batch 1 has other texts"),
        ("DELETE FROM records WHERE number = 12", "1 records are missing"),
        ("DELETE FROM records WHERE number = 30", "the last batch has 9 of 10 records"),
        ("DELETE FROM records WHERE number > 20", "2 batches, but 3 were acknowledged"),
    ],
)
def test_each_loss_is_found(statement, reason, path, digests):
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    with SMALL.open(path) as bank, pytest.raises(SoakError, match=reason):
        check_records(SMALL, bank, {**NOTHING, "batches": BATCHES}, digests, True)


def test_a_record_that_was_to_be_forgotten_is_found(path, digests):
    with SMALL.open(path) as bank, pytest.raises(SoakError, match="0 records are missing, and 1 were"):
        check_records(SMALL, bank, {**NOTHING, "batches": BATCHES, "forgotten": 1}, digests, True)


def test_an_incomplete_word_index_is_found(path):
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM postings WHERE word = (SELECT MAX(word) FROM postings)")
    connection.close()
    with SMALL.open(path) as bank, pytest.raises(SoakError, match="lacks words of record"):
        check_file(bank)


def test_a_search_that_finds_something_else_is_found(path):
    other = BankSoak(records=300, kills=1, batch=10, dimension=8, seed=1)
    with SMALL.open(path) as bank, pytest.raises(SoakError, match="a search by words for"):
        find(other, bank, [12], "words")


@pytest.mark.matrix
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_small_soak_passes_and_resumes(tmp_path):
    soak = BankSoak(records=2000, kills=5, batch=50, dimension=8)
    rows = Killer(soak, tmp_path).run()
    assert [row["life"] for row in rows] == list(range(1, 11))
    assert rows[-1]["batches"] >= 40
    assert rows[-1]["records"] + rows[-1]["forgotten"] == rows[-1]["batches"] * 50
    assert rows[-1]["reader searches"] > 0
    lines = (tmp_path / "bank.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "bank.jsonl").write_text("".join(lines[:7]))
    again = Killer(soak, tmp_path).run()
    assert [row["life"] for row in again] == list(range(1, 11))
    assert again[-1]["batches"] >= rows[-1]["batches"]
