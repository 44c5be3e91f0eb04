import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.embedding_model import fluency, question_pairs, script_of
from scrubjay.memory.bank.file.words import words

PAIRS = question_pairs()
SCRIPTS = sorted(PAIRS)


class ScriptEmbeddings:
    """Embeddings that place question and answer at `nearness` to each other in the given scripts."""

    def __init__(self, *scripts, nearness=0.5):
        self.scripts, self.nearness, self.calls = scripts, nearness, 0

    def embed_documents(self, texts):
        self.calls += 1
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text):
        vector = draw_vector(text)
        for script in self.scripts:
            for pair in PAIRS[script]:
                if text in pair:
                    vector = (1 - self.nearness) * vector + self.nearness * draw_vector(pair[0])
        return vector.tolist()


def draw_vector(text, width=64):
    vector = np.random.default_rng(list(text.encode())).standard_normal(width)
    return vector / np.linalg.norm(vector)


def content_words(text):
    """Return the content words of a text: bigrams except pure hiragana, or words of at least four letters."""
    pairs = [word for word in words(text) if re.fullmatch(r"[぀-ヿ一-鿿가-힯]+", word)]
    pairs = [pair for pair in pairs if not re.fullmatch("[ぁ-ん]+", pair)]
    return pairs or re.findall(r"\S{4,}", text.lower())


@pytest.mark.parametrize("script", SCRIPTS)
def test_pairs_are_of_their_script_and_share_no_word(script):
    assert len(PAIRS[script]) == 12
    assert len({text for pair in PAIRS[script] for text in pair}) == 24
    for question, answer in PAIRS[script]:
        assert script_of(question) == script_of(answer) == script
        assert not set(content_words(question)) & set(content_words(answer))


@pytest.mark.parametrize("script", SCRIPTS)
def test_who_tells_all_answers_apart_is_fluent_and_who_guesses_is_not(script):
    assert fluency(ScriptEmbeddings(script, nearness=0.9), script) == pytest.approx(1)
    guesses = [fluency(ScriptEmbeddings(other, nearness=0.9), script) for other in SCRIPTS if other != script]
    assert max(guesses) < 0.5
    assert min(guesses) >= 0.02


def test_embeddings_that_are_all_alike_know_nothing():
    class Alike:
        def embed_documents(self, texts):
            return [[1.0, 2.0]] * len(texts)

        def embed_query(self, text):
            return [1.0, 2.0]

    assert fluency(Alike(), "latin") == 0.02


@given(st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=24, max_size=24))
def test_fluency_is_the_share_of_pairs_in_the_right_order(vectors):
    class FixedEmbeddings(ScriptEmbeddings):
        def embed_documents(self, texts):
            return vectors

    result = fluency(FixedEmbeddings(), "latin")
    unit = [np.array(v) / max(np.linalg.norm(v), 1e-12) for v in vectors]
    cosine = np.array([[unit[q] @ unit[a] for a in range(1, 24, 2)] for q in range(0, 24, 2)])
    ahead = [
        cosine[i, i] - other
        for i in range(12)
        for j in range(12)
        for other in (cosine[i, j], cosine[j, i])
        if i != j
    ]
    right = sum(one > 1e-5 for one in ahead)
    ties = sum(abs(one) <= 1e-5 for one in ahead)  # decided by rounding
    assert len(ahead) == 264
    assert max(0.02, 2 * right / 264 - 1) - 1e-9 <= result <= max(0.02, 2 * (right + ties) / 264 - 1) + 1e-9


def test_no_pairs_no_doubt():
    embeddings = ScriptEmbeddings()
    assert fluency(embeddings, "greek") == 1
    assert embeddings.calls == 0


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Where is Ada?", "latin"),
        ("", "latin"),
        ("12:30!", "latin"),
        ("王芳住在哪里？", "cjk"),
        ("Ada 住在哪个城市里?", "cjk"),
        ("東京の天気", "hiragana"),
        ("コーヒー", "hiragana"),
        ("ー", "hiragana"),
        ("그녀는 어디에 살아요?", "hangul"),
        ("Где она, Ada?", "cyrillic"),
        ("Ｗｈｅｒｅ", "latin"),
        ("Πού μένει;", "greek"),
    ],
)
def test_a_text_is_of_the_script_of_most_of_its_letters(text, script):
    assert script_of(text) == script


def test_a_bank_tries_its_embeddings_once_a_script_and_weighs_them_by_it():
    embeddings = ScriptEmbeddings("latin", nearness=0.9)
    with MemoryBank(":memory:", embeddings) as bank:
        for text in ("a heron", "a mill", "磨坊在河边", "苍鹭在睡觉"):
            bank.add(text)
        before = embeddings.calls

        def by_embeddings(query):
            explanations = [hit.explanation for hit in bank.search(query, explain=True)]
            return max(explanation.from_embeddings for explanation in explanations if explanation is not None)

        fluent_score, foreign_score = by_embeddings("Where is the heron?"), by_embeddings("苍鹭在哪里？")
        assert embeddings.calls == before + 2
        by_embeddings("And the mill?")
        by_embeddings("磨坊呢？")
        assert embeddings.calls == before + 2
    assert 0 < foreign_score < fluent_score / 3
