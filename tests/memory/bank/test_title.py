"""Titles are part of what a bank embeds, but of no text that it returns or merges."""

import json

import numpy as np
import pytest

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.title import find_title, is_code, text_to_embed

CODE = "def area(width, height):\n    return {key: f(width)[0] for key in height}"


class RecordingEmbeddings:
    """Random embeddings, seeded by the text, that record the texts."""

    def __init__(self):
        self.texts = []

    def embed_query(self, text):
        return np.random.default_rng(list(text.encode())).standard_normal(24).tolist()

    def embed_documents(self, texts):
        self.texts += texts
        return list(map(self.embed_query, texts))


class TitleEmbeddings(RecordingEmbeddings):
    """Embeddings that depend on the first line alone."""

    def embed_query(self, text):
        return super().embed_query(text.partition("\n")[0])


class OtherEmbeddings(RecordingEmbeddings):
    """Another model of the same dimension."""

    def embed_query(self, text):
        return super().embed_query(f"other {text}")


@pytest.mark.parametrize(
    ("text", "provenance", "expected"),
    [
        ("It eats fish.", {"title": "Heron"}, "Heron\nIt eats fish."),
        ("It eats fish.", {"section": "Food", "title": "Heron"}, "Heron\nIt eats fish."),
        ("It eats fish.", {"section": "Food", "title": " "}, "Food\nIt eats fish."),
        ("It eats fish.", {"speaker": "Vera"}, "It eats fish."),
        ("It eats fish.", {"title": 7}, "It eats fish."),
        ("# Food\n\nIt eats fish.", {"section": "Food"}, "# Food\n\nIt eats fish."),
        (CODE, {"title": "shapes.py"}, CODE),
    ],
)
def test_the_title_stands_first_unless_the_text_has_it_or_is_code(text, provenance, expected):
    assert text_to_embed(text, provenance) == text_to_embed(text, json.dumps(provenance)) == expected


@pytest.mark.parametrize("provenance", ["", "[", "[]", "7", "null", b"{}", None, "[" * 100_000])
def test_damaged_provenance_has_no_title(provenance):
    assert find_title(provenance) == ""


def test_prose_with_brackets_is_no_code():
    assert is_code(CODE)
    assert not is_code("")
    assert not is_code(
        "The heron (Ardea cinerea) eats fish, frogs and insects [1]; it breeds in high trees near ponds."
    )


def test_every_way_of_writing_embeds_the_title(tmp_path):
    embeddings = RecordingEmbeddings()
    with MemoryBank(tmp_path / "bank.db", embeddings) as bank:
        id = bank.add("It eats fish.", title="Heron")
        bank.add_document("# Food\n\n" + "It eats fish from the river. " * 40, source="birds.md")
        assert embeddings.texts[0] == "Heron\nIt eats fish."
        passages = [text for text in embeddings.texts if "river" in text]
        assert len(passages) > 1
        assert all(text.removeprefix("# ").startswith("Food\n") for text in passages)
        rows = list(bank.export())
        embeddings.texts.clear()
        bank.update(id, "It eats frogs.")
        assert "Heron\nIt eats frogs." in embeddings.texts
        assert [version.text for version in bank.history(id)] == ["It eats fish.", "It eats frogs."]
    embeddings.texts.clear()
    with MemoryBank(tmp_path / "copy.db", embeddings) as copy:
        copy.restore(rows)
        assert embeddings.texts[0] == "Heron\nIt eats fish."


def test_records_of_one_title_are_not_duplicates(tmp_path):
    with MemoryBank(tmp_path / "bank.db", TitleEmbeddings()) as bank:
        ids = {bank.add(text, title="Heron") for text in ("It eats fish.", "Its nest is in a tree.")}
        assert len(ids) == 2
    with MemoryBank(tmp_path / "bank.db", TitleEmbeddings()) as bank:  # features are read from the file
        assert bank.add("It flies slowly over ponds.", title="Heron") not in ids
        assert len(bank) == 3


def test_a_file_with_embeddings_of_texts_alone_opens(tmp_path):
    embeddings = RecordingEmbeddings()
    with MemoryBank(tmp_path / "bank.db", embeddings) as bank:
        bank.add("It eats fish.", title="Heron")
        vector = np.array(embeddings.embed_query("It eats fish."), dtype=np.float32)
        with bank.store.writing() as connection:
            connection.execute(
                "UPDATE vectors SET vector = ?", ((vector / np.linalg.norm(vector)).tobytes(),)
            )
    with MemoryBank(tmp_path / "bank.db", embeddings) as bank:
        assert len(bank.search("fish")) == 1
    with (
        MemoryBank(tmp_path / "bank.db", OtherEmbeddings()) as bank,
        pytest.raises(ValueError, match="written with other embeddings"),
    ):
        bank.search("fish")
