"""Splitting of documents into sections of whole sentences."""

import pytest

from scrubjay.memory.bank.document import split_document


def test_a_document_is_sections_of_whole_sentences_that_lose_nothing(bank):
    text = (
        "Intro here.\n\n# Cats\n\nCats purr. "
        + "They sleep all day. " * 60
        + "\n\n# 狗\n\n狗会叫。它们跑得很快。\n"
    )
    sections = split_document(text, 100)
    assert [heading for heading, _ in sections] == ["", "Cats", "狗"]
    assert all(len(passage) <= 100 for _, passages in sections for passage in passages)
    words = "".join("".join(passages) for _, passages in sections)
    assert "".join(words.split()) == "".join(text.replace("# Cats", "").replace("# 狗", "").split())
    ids = bank.add_document("# Cats\n\nCats purr.\n\n# Dogs\n\nDogs bark.", source="zoo")
    assert [bank.get(id).provenance for id in ids] == [
        {"source": "zoo", "section": s} for s in ("Cats", "Dogs")
    ]
    with pytest.raises(ValueError, match="blank"):
        bank.add_document(" \n")
