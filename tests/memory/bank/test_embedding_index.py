"""Vectors, dimension check and cached index of a bank's embedding index."""

import contextlib

import numpy as np
import pytest

from scrubjay.memory import SurpriseConfig
from scrubjay.memory.bank.embedding_index import EmbeddingIndex, check_options
from scrubjay.memory.bank.file.store import Store


@pytest.fixture
def embedding_index(letters, tmp_path):
    store = Store(tmp_path / "bank.db")
    yield EmbeddingIndex(store, letters, surprise=None, device=None, approximate=False)
    store.close()


def test_vectors_are_of_length_one_and_none_are_asked_for_without_texts(embedding_index, letters):
    assert embedding_index.embed_texts([]) == []
    texts = ["a heron", "the mill"]
    for text, vector in zip(texts, embedding_index.embed_texts(texts), strict=True):
        plain = np.array(letters.embed_query(text))
        assert vector == pytest.approx(plain / np.linalg.norm(plain), abs=1e-6)
        assert embedding_index.embed_query(text) == pytest.approx(vector, abs=1e-6)


def test_the_length_of_vectors_is_noted_once_and_another_one_refused(embedding_index):
    (vector,) = embedding_index.embed_texts(["a heron"])
    with embedding_index._store.writing() as connection:
        embedding_index.note_dimension(connection, vector)
        embedding_index.note_dimension(connection, vector)
        with pytest.raises(ValueError, match="have dimension 27, the model's have 26"):
            embedding_index.note_dimension(connection, vector[1:])


def test_an_index_is_kept_until_what_it_read_is_undone(embedding_index):
    (vector,) = embedding_index.embed_texts(["a heron"])
    with embedding_index._store.reading() as connection:
        for _ in range(2):
            assert embedding_index.scan(connection, vector, lambda *scope: True).count == 0
            index = embedding_index._index
    assert embedding_index._index is index
    with contextlib.suppress(KeyError), embedding_index._store.writing() as connection:
        embedding_index.note_dimension(connection, vector)
        embedding_index.scan(connection, vector, lambda *scope: True)
        raise KeyError
    assert embedding_index._index is None


def test_options_that_need_embeddings_are_told_before_a_file_is_begun(tmp_path, letters):
    path = tmp_path / "bank.db"
    with pytest.raises(ValueError, match="needs embeddings; pass an embedding model"):
        check_options(path, None, SurpriseConfig(), None, approximate=False)
    with pytest.raises(ValueError, match="device='cpu': needs embeddings; pass an embedding model"):
        check_options(path, None, None, "cpu", approximate=False)
    with pytest.raises(TypeError, match="embeddings='minilm': pass an object with embed_documents"):
        check_options(path, "minilm", None, None, approximate=False)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="embeddings=None"):
        check_options(path, None, None, None, approximate=True)
    with pytest.raises(ValueError, match="approximate search needs embeddings and a file"):
        check_options(":memory:", letters, None, None, approximate=True)
    check_options(":memory:", letters, None, None, approximate=False)
    assert not path.exists()
