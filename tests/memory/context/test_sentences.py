"""Sentences: nothing is lost, the ends are right, and pieces of the text do not matter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.memory.context.sentences import LONGEST, split_sentences

LETTERS = st.text(alphabet='aB1.!?。！”" \n\t…)é中', max_size=200)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", " Two!", " Three?", " Four"]),
        (
            "Mr. Bingley met J. Smith at 3.30, i.e. late. So?",
            ["Mr. Bingley met J. Smith at 3.30, i.e. late.", " So?"],
        ),
        ('"No!" she said. "Why?" He left.', ['"No!" she said.', ' "Why?"', " He left."]),
        ("第一句。“第二句！”第三句？完", ["第一句。", "“第二句！”", "第三句？", "完"]),
        ("A heading\n\nIts text\nover lines.", ["A heading", "\n\nIts text\nover lines."]),
        ("", []),
        (" \n", [" \n"]),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text, sentences):
    assert list(split_sentences(text)) == sentences


@given(LETTERS, st.lists(st.integers(0, 200), max_size=8))
def test_pieces_do_not_matter_and_nothing_is_lost(text, cuts):
    cuts = sorted({min(cut, len(text)) for cut in cuts})
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = list(split_sentences(text))
    assert "".join(whole) == text
    assert all(whole)
    assert list(split_sentences(iter(pieces))) == whole


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("x" * 3 * LONGEST, LONGEST),
        ("word " * LONGEST, LONGEST - 1),
        (("word " * 50 + "\n") * 20, 752),
    ],
)
def test_a_text_without_sentence_ends_is_split(text, first):
    sentences = list(split_sentences(text[i : i + 7] for i in range(0, len(text), 7)))
    assert len(sentences[0]) == first
    assert max(map(len, sentences)) <= LONGEST
    assert "".join(sentences) == text
