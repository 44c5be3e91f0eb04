"""Runtime of a bank's operations is linear in the length of a text, for any text."""

import contextlib
import random
import re
import sqlite3

import pytest

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank import duplicates
from scrubjay.memory.bank.document import split_document
from scrubjay.memory.bank.duplicates import compute_marks, extract_features
from scrubjay.memory.bank.file import words
from scrubjay.memory.bank.file.words import index_words, normalise, query_terms

from ... import texts


def _add(text):
    with MemoryBank(":memory:") as bank:
        bank.add(f"{text} and so on", merge=True)
        bank.add(f"{text} and so forth")


def _search(text):
    with MemoryBank(":memory:") as bank:
        bank.add("and so on")
        bank.search(text)


WORK = {
    "features": lambda text: compute_marks("", extract_features(text, None)),
    "index": index_words,
    "query": query_terms,
    "document": split_document,
    "document in one passage": lambda text: split_document(text, 10**9),
    "add": _add,
    "search": _search,
}


@pytest.mark.one_in(9)
@pytest.mark.parametrize("unit", texts.UNITS.values(), ids=texts.UNITS)
@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_four_times_the_text_takes_about_four_times_as_long(work, unit):
    assert texts.growth(work, unit, 10_000) < 8


@pytest.mark.parametrize("unit", texts.UNITS.values(), ids=texts.UNITS)
def test_what_is_matched_is_what_the_plain_patterns_match(unit):

    plain = re.compile(r"(?:^|[.!?:;\n]\s*)[A-Z](?=[a-z'’ ])")
    random_text = random.Random(unit)
    for _ in range(300):
        text = "".join(random_text.choices([unit, unit[:1], "A", "b", " ", "\n", ".", "1", "_", "é"], k=12))
        assert duplicates._SENTENCE_START.findall(text) == plain.findall(text) or [
            match.end() for match in duplicates._SENTENCE_START.finditer(text)
        ] == [match.end() for match in plain.finditer(text)]
        assert duplicates._NAME.findall(text) == re.findall(r"\b[A-Z]\w*|\w*\d\w*", text)


def test_marks_beyond_thirty_on_one_letter_change_no_other_text():
    assert normalise("e" + "\u0301" * 30) == "é" + "\u0301" * 29
    assert normalise("e" + "\u0301" * 31 + "f") == "é" + "\u0301" * 29 + "\u034f\u0301f"
    assert normalise("ｅ\u0301ﬁ") == "éfi"
    assert normalise("が") == normalise("か\u3099") == normalise("か\uff9e") == "が"
    assert "word" in normalise("\u0301\u0316" * 1000 + "word")


@pytest.mark.parametrize("merge", [True, False])
def test_nothing_is_read_of_a_text_while_the_file_waits_for_its_writer(letters, tmp_path, monkeypatch, merge):
    paths, read_texts = (tmp_path / "bank.db", tmp_path / "new.db"), []

    def normalise_and_check(text):
        for path in paths:
            with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")  # fails while another writes
                other.execute("ROLLBACK")
        read_texts.append(text)
        return normalise(text)

    with MemoryBank(paths[0], letters) as bank, MemoryBank(paths[1], letters) as new:
        bank.add("Ada lives in Berlin since May.")
        for module in (duplicates, words):
            monkeypatch.setattr(module, "normalise", normalise_and_check)
        bank.add("Since May Ada lives in Berlin.", merge=merge)
        drafts = [bank.draft(text, merge=merge) for text in ("Bob has a cat.", "A cat Bob has.")]
        bank.write(bank.embed_drafts(drafts))
        bank.add_document("# Cats\nThey purr.\n# Dogs\nThey bark.")
        list(new.restore(bank.export()))
        assert len(bank) == len(new) == (4 if merge else 6)
    assert "Ada lives in Berlin since May." in read_texts
