import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.memory.bank.file.words import day_terms, index_text, match_terms

HAN = st.text(alphabet="天地玄黄宇宙洪荒日月盈昃", min_size=1, max_size=12)


def matches(text: str, query: str) -> bool:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE t USING fts5(body, tokenize = 'porter unicode61')")
    connection.execute("INSERT INTO t VALUES (?)", (index_text(text),))
    terms = match_terms(query)
    return bool(terms) and bool(
        connection.execute("SELECT 1 FROM t WHERE t MATCH ?", (" OR ".join(terms),)).fetchall()
    )


@given(HAN, st.data())
@settings(max_examples=50)
def test_every_part_of_a_chinese_sentence_finds_it(sentence, data):
    start = data.draw(st.integers(0, len(sentence) - 1))
    end = data.draw(st.integers(start + 1, len(sentence)))
    assert matches(f"On Monday: {sentence}, at noon", sentence[start:end])


@pytest.mark.slow
@given(st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=50)
def test_no_text_is_a_syntax_error(text, query):
    matches(text.encode(errors="replace").decode(), query.encode(errors="replace").decode())


def test_words_are_found_by_their_stem_width_and_accent():
    assert matches("She was running in the cafés", "runs")
    assert matches("She was running in the cafés", "cafe")
    assert matches("ＡＢＣ ｶﾒﾗ", "abc")
    assert matches("ｶﾒﾗを買った", "カメラ")
    assert matches("서울에서 만나요", "서울")
    assert not matches("大学在北方", "京大")


def test_stop_words_count_only_where_there_is_nothing_else():
    assert match_terms("Where is the cat? The cat!") == ['"cat"']
    assert match_terms("To be or not to be") == ['"to"', '"be"', '"or"', '"not"']
    assert match_terms("?!") == []


@pytest.mark.parametrize(
    ("query", "expected_terms"),
    [
        ("What did I do on 25th February 2025?", {'("25th" OR "25")', '"february"', '"2025"'}),
        ("25 lamps and 3 boats", set()),
        ("the 25 lamps of 2025", {'"25"', '"2025"'}),
        ("2025年2月25日我做了什么", {'"2025"', '"2"', '"25"', '"年"*', '"月"*'}),
        ("", set()),
    ],
)
def test_date_terms_are_returned_only_with_a_month_or_a_year(query, expected_terms):
    assert day_terms(query) == expected_terms
    assert day_terms(query) <= set(match_terms(query))
