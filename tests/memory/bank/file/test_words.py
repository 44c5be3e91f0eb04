import sqlite3

from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.file.words import MAX_WORD, Term, index_words, query_terms, stem

HAN = st.text(alphabet="天地玄黄宇宙洪荒日月盈昃", min_size=1, max_size=12)


def matches(text: str, query: str) -> bool:
    words, terms = index_words(text), query_terms(query)
    return any(
        word.startswith(own) if term.is_prefix else word == own
        for term in terms
        for own in term.words
        for word in words
    )


@given(HAN, st.data())
@settings(max_examples=50)
def test_every_part_of_a_chinese_sentence_finds_it(sentence, data):
    start = data.draw(st.integers(0, len(sentence) - 1))
    end = data.draw(st.integers(start + 1, len(sentence)))
    assert matches(f"On Monday: {sentence}, at noon", sentence[start:end])


@given(st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=50)
def test_every_text_finds_itself_and_has_short_words(text, query):
    with MemoryBank(":memory:") as bank:
        text = text.encode(errors="replace").decode()
        if text.strip():
            bank.add(text)
            assert bool(bank.search(text)) == bool(query_terms(text))
        bank.search(query)
    assert all(0 < len(word) <= MAX_WORD for word in index_words(text))


def test_a_long_word_matches_by_its_first_letters():
    assert matches("x" * 1000, "x" * 900)
    assert not matches("x" * 1000, "x" * 63)


def test_words_are_found_by_their_stem_width_and_accent():
    assert matches("She was running in the cafés", "runs")
    assert matches("She was running in the cafés", "cafe")
    assert matches("ＡＢＣ ｶﾒﾗ", "abc")
    assert matches("ｶﾒﾗを買った", "カメラ")
    assert matches("서울에서 만나요", "서울")
    assert not matches("大学在北方", "京大")


def test_stop_words_count_only_where_there_is_nothing_else():
    assert query_terms("Where is the cat? The cats!") == [Term(("cat",))]
    assert [term.words for term in query_terms("To be or not to be")] == [("to",), ("be",), ("or",), ("not",)]
    assert query_terms("?!") == []


def test_an_ordinal_matches_its_number_and_one_character_the_start_of_a_pair():
    assert query_terms("25th") == [Term(("25th", "25"))]
    assert query_terms("鱼") == [Term(("鱼",), is_prefix=True)]


def test_a_name_whose_stem_is_a_stop_word_is_found_alone():
    assert index_words("Ines came in.") == ["ines", "came", "in"]
    assert query_terms("Where does Ines live?") == [Term(("ines",)), Term(("live",))]


def test_stems_are_those_of_sqlite():
    """SQLite's Porter stemmer is an independent implementation."""
    words = [
        "running",
        "runs",
        "relational",
        "hopefulness",
        "cafés",
        "caresses",
        "ponies",
        "sky",
        "agreed",
        "plastered",
        "motoring",
    ]
    connection = sqlite3.connect(":memory:")
    connection.execute(
        "CREATE VIRTUAL TABLE t USING fts5(body, tokenize = 'porter unicode61 remove_diacritics 2')"
    )
    connection.execute("CREATE VIRTUAL TABLE v USING fts5vocab(t, 'row')")
    connection.executemany("INSERT INTO t VALUES (?)", [(word,) for word in words])
    expected = {term for (term,) in connection.execute("SELECT term FROM v")}
    assert {stem(word) for word in words} == expected
