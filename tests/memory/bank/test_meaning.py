"""What a bank keeps in memory of its embeddings."""

import contextlib

import numpy as np
import pytest

from scrubjay.memory import SurpriseConfig
from scrubjay.memory.bank.file.store import Store
from scrubjay.memory.bank.meaning import Meaning, check_options


@pytest.fixture
def meaning(letters, tmp_path):
    store = Store(tmp_path / "bank.db")
    yield Meaning(store, letters, surprise=None, device=None, approximate=False)
    store.close()


def test_vectors_are_of_length_one_and_none_are_asked_for_without_texts(meaning, letters):
    assert meaning.embedded([]) == []
    texts = ["a heron", "the mill"]
    for text, vector in zip(texts, meaning.embedded(texts), strict=True):
        plain = np.array(letters.embed_query(text))
        assert vector == pytest.approx(plain / np.linalg.norm(plain), abs=1e-6)
        assert meaning.query(text) == pytest.approx(vector, abs=1e-6)


def test_the_length_of_vectors_is_noted_once_and_another_one_refused(meaning):
    (vector,) = meaning.embedded(["a heron"])
    with meaning._store.writing() as connection:
        meaning.note_dimension(connection, vector)
        meaning.note_dimension(connection, vector)
        with pytest.raises(ValueError, match="have 27 numbers, these give 26"):
            meaning.note_dimension(connection, vector[1:])


def test_an_index_is_kept_until_what_it_read_is_undone(meaning):
    (vector,) = meaning.embedded(["a heron"])
    with meaning._store.reading() as connection:
        for _ in range(2):
            assert meaning.scan(connection, vector, lambda *scope: True).count == 0
            index = meaning._index
    assert meaning._index is index
    with contextlib.suppress(KeyError), meaning._store.writing() as connection:
        meaning.note_dimension(connection, vector)
        meaning.scan(connection, vector, lambda *scope: True)
        raise KeyError
    assert meaning._index is None


def test_options_that_need_embeddings_are_told_before_a_file_is_begun(tmp_path, letters):
    path = tmp_path / "bank.db"
    with pytest.raises(ValueError, match="it is found in embeddings; pass some"):
        check_options(path, None, SurpriseConfig(), None, approximate=False)
    with pytest.raises(ValueError, match="device='cpu': it is to hold embeddings; pass some"):
        check_options(path, None, None, "cpu", approximate=False)
    with pytest.raises(TypeError, match="embeddings='minilm': pass an object with embed_documents"):
        check_options(path, "minilm", None, None, approximate=False)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="embeddings=None"):
        check_options(path, None, None, None, approximate=True)
    with pytest.raises(ValueError, match="it needs embeddings and a file"):
        check_options(":memory:", letters, None, None, approximate=True)
    check_options(":memory:", letters, None, None, approximate=False)
    assert not path.exists()
