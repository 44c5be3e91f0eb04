"""A bank refuses the embeddings of another model before any write or search."""

import contextlib
import hashlib
import sqlite3

import numpy as np
import pytest

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.embedding_model import lacks_embeddings


class NoisyEmbeddings:
    """Random vectors of dimension 16, seeded by text and `seed`, with new noise at every call."""

    def __init__(self, seed, noise=0.0):
        self.seed, self.noise, self.calls = seed, noise, []
        self._draws = np.random.default_rng(0)

    def embed_query(self, text):
        if text.startswith("unheard"):
            return [0.0] * 16
        seed = int.from_bytes(hashlib.sha256(f"{self.seed} {text}".encode()).digest()[:8])
        vector = np.random.default_rng(seed).standard_normal(16)
        noise = self._draws.standard_normal(16)
        return (vector + self.noise * noise).tolist()

    def embed_documents(self, texts):
        self.calls.append(list(texts))
        return [self.embed_query(text) for text in texts]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bank.db"


def write_texts(path, model, *texts):
    with MemoryBank(path, model) as bank:
        return [bank.add(text, merge=False) for text in texts]


WAYS = {
    "add": lambda bank, rows: bank.add("a third"),
    "add_document": lambda bank, rows: bank.add_document("# A\n\nthird\n\n# B\n\nfourth"),
    "write": lambda bank, rows: bank.write(bank.embed_drafts([bank.draft("a third")])),
    "restore": lambda bank, rows: list(bank.restore(rows)),
    "search": lambda bank, rows: bank.search("first"),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("approximate", [False, pytest.param(True, marks=pytest.mark.requires("usearch"))])
def test_another_model_neither_writes_nor_searches(path, way, approximate):
    write_texts(path, NoisyEmbeddings(1), "the first", "the second")
    with MemoryBank(":memory:") as other:
        other.add("from elsewhere")
        rows = list(other.export())
    with MemoryBank(path, NoisyEmbeddings(2), approximate=approximate) as bank:
        for _ in range(2):  # a second attempt is refused, too
            with pytest.raises(ValueError, match=r"written with other embeddings.*export"):
                way(bank, rows)
        assert len(bank) == 2
    with MemoryBank(path, NoisyEmbeddings(1), approximate=approximate) as bank:
        way(bank, rows)
    with MemoryBank(path) as bank:  # keyword search needs no model
        way(bank, [])


def test_a_text_is_looked_at_once_and_no_writer_waits_for_the_model(path):
    model = NoisyEmbeddings(1)

    def free(texts):
        connection = sqlite3.connect(path, timeout=0)
        connection.execute("BEGIN IMMEDIATE")  # raises while another writes
        connection.close()
        return NoisyEmbeddings.embed_documents(model, texts)

    model.embed_documents = free
    with MemoryBank(path, model) as bank:
        for number in range(3):
            bank.add(f"fact {number}", merge=False)
    assert model.calls == [["fact 0"], ["fact 0"], ["fact 1"], ["fact 2"]]
    model.calls.clear()
    with MemoryBank(path, model) as bank:
        bank.add_document("# A\n\nThe rest.")
        bank.add("fact 3")
    assert model.calls == [["fact 2"], ["# A\n\nThe rest."], ["fact 3"]]


def test_who_comes_second_to_a_new_file_is_refused(path):
    with MemoryBank(path, NoisyEmbeddings(1)) as one, MemoryBank(path, NoisyEmbeddings(2)) as two:
        drafts = two.embed_drafts([two.draft("the second")])
        one.add("the first")
        with pytest.raises(ValueError, match="other embeddings"):
            two.write(drafts)
        assert [record.text for record in two.recent(9)] == ["the first"]
        assert len(one.search("second")) == 1


def test_where_nothing_embedded_is_left_another_model_may_begin(path):
    with MemoryBank(path) as bank:
        bank.add("words alone")
    ids = write_texts(path, NoisyEmbeddings(1), "the first", "the second")
    with MemoryBank(path, NoisyEmbeddings(2)) as bank:
        bank.forget(ids[1])
        with pytest.raises(ValueError, match="other embeddings"):
            bank.add("a third")
        bank.forget(ids[0])
        bank.add("a third")
        assert bank.search("third", k=1)[0].text == "a third"


def test_a_model_is_known_no_longer_than_what_it_was_known_by(path):
    with (
        MemoryBank(path, NoisyEmbeddings(1)) as one,
        MemoryBank(path) as plain,
        MemoryBank(path, NoisyEmbeddings(2)) as two,
    ):
        for text in ("the first", "the second"):
            one.add(text, merge=False)
        drafts = one.embed_drafts([one.draft("a third")])
        for record in plain.recent(9):
            plain.forget(record.id)
        two.add("begun anew")
        with pytest.raises(ValueError, match="other embeddings"):
            one.write(drafts)
        for way in WAYS.values():
            with pytest.raises(ValueError, match="other embeddings"):
                way(one, [{**row, "id": "another"} for row in two.export()])
        assert [record.text for record in two.recent(9)] == ["begun anew"]


def test_a_model_is_not_known_by_what_was_rolled_back(path):
    with MemoryBank(path, NoisyEmbeddings(1)) as one, MemoryBank(path, NoisyEmbeddings(2)) as two:
        with contextlib.suppress(KeyError), one.store.writing():
            one.add("the first")
            one.add("the second", merge=False)
            raise KeyError
        two.add("begun by another")
        for way in (WAYS["add"], WAYS["search"]):
            with pytest.raises(ValueError, match="other embeddings"):
                way(one, [])
        assert len(two) == 1


def test_a_file_begun_anew_while_a_query_is_embedded_is_not_searched(path):
    model = NoisyEmbeddings(1)
    with MemoryBank(path, model) as one, MemoryBank(path, NoisyEmbeddings(2)) as two:
        id = one.add("the first")
        one.search("first")

        def begin_anew(text):
            if one.forget(id):
                two.add("begun anew")
            return NoisyEmbeddings.embed_query(model, text)

        model.embed_query = begin_anew
        with pytest.raises(ValueError, match="other embeddings"):
            one.search("first")


def test_the_same_model_at_fewer_bits_and_texts_of_which_it_knows_nothing_are_let_in(path):
    write_texts(path, NoisyEmbeddings(1), "the first")
    write_texts(path, NoisyEmbeddings(1, noise=0.1), "unheard of")
    with MemoryBank(path, NoisyEmbeddings(1)) as bank:
        assert len(bank.search("first")) == 2


def test_an_export_restored_elsewhere_is_embedded_by_the_model_there(path):
    write_texts(path, NoisyEmbeddings(1), "the first", "the second")
    model = NoisyEmbeddings(2)
    with MemoryBank(path) as bank, MemoryBank(":memory:", model) as copy:
        assert list(copy.restore(bank.export())) == [True, True]
        assert model.calls == [["the first", "the second"]]
        check_vectors(copy, model)


def test_records_that_lack_embeddings_are_noticed_at_both_ends(path):
    with MemoryBank(path) as plain, MemoryBank(path, NoisyEmbeddings(1)) as dense:

        def has_gaps():
            with plain.store.reading() as connection:
                return lacks_embeddings(connection)

        assert not has_gaps()
        dense.add("the first")
        assert not has_gaps()
        id = plain.add("the second")
        assert has_gaps()
        dense.add("the third")
        assert not has_gaps()  # records in between are not checked
        plain.forget(id)
        plain.add("the last")
        assert has_gaps()


def check_vectors(bank, model):
    with bank.store.reading() as connection:
        rows = connection.execute("SELECT text, vector FROM vectors JOIN records USING (number)").fetchall()
    assert len(rows) == len(bank)
    for text, blob in rows:
        vector = np.array(model.embed_query(text))
        np.testing.assert_allclose(
            np.frombuffer(blob, np.float32), vector / np.linalg.norm(vector), atol=1e-6
        )


def test_beside_every_text_is_its_own_vector_whatever_joined_it(path):
    model = NoisyEmbeddings(1)
    with MemoryBank(path, model) as bank:
        id = bank.add("Ada keeps 3 jays in Bern.")
        assert bank.add("ada keeps 3 jays in bern") == id
        bank.add("Ada keeps 4 jays in Bern.", supersedes=id)
        bank.add_document("# A\n\nThe rest.\n\n# B\n\nAnd more.")
        check_vectors(bank, model)
        with MemoryBank(":memory:", model) as copy:
            assert all(copy.restore(bank.export()))
            check_vectors(copy, model)
    write_texts(path, model, "Reopened.")
