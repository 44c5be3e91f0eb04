"""Ways to recall: each finds what its kind can find, and fusions what either of their parts finds."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings

from scrubjay.experiments.lm.conversations import Conversation, Question, Turn
from scrubjay.experiments.quality import retrievers

MEANINGS = {"car": 0, "vehicle": 0, "truck": 0, "rain": 1, "storm": 1, "cake": 2, "pie": 2}
TEXTS = ("The car is red.", "A storm came.", "We ate pie.", "Nothing much.", "The truck left at noon.")


class ByMeaning(Embeddings):
    """A direction for each meaning, and a little of one for all."""

    def embed_query(self, text: str) -> list[float]:
        vector = np.full(4, 0.01)
        for word, place in MEANINGS.items():
            vector[place] += word in text.lower()
        return vector.tolist()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


def ask(text: str, **more) -> Question:
    return Question(text, frozenset({0}), "stated", **more)


@pytest.fixture(scope="module")
def conversation() -> Conversation:
    begin = datetime(2025, 1, 1, tzinfo=UTC)
    return Conversation(tuple(Turn(text, begin + timedelta(days=i)) for i, text in enumerate(TEXTS)), ())


ALL = {
    "recent": retrievers.most_recent,
    "keyword": retrievers.keyword_index,
    "keyword without stop words": retrievers.keyword_index_without_stop_words,
    "bm25s": retrievers.bm25s_index,
    "cosine": retrievers.cosine,
    "convex": retrievers.convex(),
    "convex with neighbours": retrievers.convex_with_neighbours,
    "store": retrievers.vector_store,
    "mem0": retrievers.mem0_fusion,
    "ranks": retrievers.rank_fusion,
    "bank": retrievers.bank(),
    "bank without embeddings": retrievers.bank(dense=False),
}


def with_marks(names):
    return [
        pytest.param(name, marks=pytest.mark.requires("bm25s") if name == "bm25s" else []) for name in names
    ]


@pytest.mark.parametrize("name", with_marks(ALL))
def test_places_are_turns_each_once_and_no_more_than_asked_for(name, conversation):
    recall = ALL[name](conversation, ByMeaning())
    for depth in (1, 3, 20):
        places = recall(ask("Was there a storm with rain?"), depth)
        assert len(places) == len(set(places)) <= depth
        assert set(places) <= set(range(len(TEXTS)))
        assert places == recall(ask("Was there a storm with rain?"), depth)


@pytest.mark.parametrize("name", with_marks(name for name in ALL if name != "recent"))
def test_the_turn_with_the_questions_word_is_first(name, conversation):
    assert ALL[name](conversation, ByMeaning())(ask("storm"), 3)[0] == 1


@pytest.mark.parametrize("name", ["store", "cosine", "mem0", "ranks", "convex", "bank"])
def test_what_has_embeddings_finds_what_shares_no_word(name, conversation):
    assert 2 in ALL[name](conversation, ByMeaning())(ask("cake"), 2)


@pytest.mark.parametrize(
    "name", with_marks(["keyword", "keyword without stop words", "bm25s", "bank without embeddings"])
)
def test_words_alone_find_no_meaning(name, conversation):
    assert 2 not in ALL[name](conversation, ByMeaning())(ask("cake"), 5)


def test_cosine_is_exact(conversation):
    vectors = np.array(ByMeaning().embed_documents([*TEXTS]))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for question in ("storm", "pie and rain", "a truck", "nothing"):
        query = np.array(ByMeaning().embed_query(question))
        near = vectors @ (query / np.linalg.norm(query))
        places = retrievers.cosine(conversation, ByMeaning())(ask(question), 9)
        assert sorted(places) == [0, 1, 2, 3, 4]
        assert all(np.diff(near[places]) < 1e-6)


def test_neighbours_lend_a_part_of_what_they_score():
    begin = datetime(2025, 1, 1, tzinfo=UTC)
    texts = ("Nothing.", "Which car is it?", "The blue one.", "Hm.", "Hm, well.", "So.")
    talk = Conversation(tuple(Turn(text, begin + timedelta(minutes=i)) for i, text in enumerate(texts)), ())
    places = retrievers.convex_with_neighbours(talk, ByMeaning())(ask("car"), 3)
    assert (places[0], {*places}) == (1, {0, 1, 2})
    assert retrievers.convex()(talk, ByMeaning())(ask("car"), 3) == [1, 5, 4]


def test_careful_baselines_know_chinese_and_stop_words():
    begin = datetime(2025, 1, 1, tzinfo=UTC)
    talk = Conversation((Turn("我喜欢红茶", begin), Turn("What is it that is so?", begin)), ())
    assert retrievers.keyword_index(talk, ByMeaning())(ask("谁喝红茶"), 2) == []
    assert retrievers.keyword_index_without_stop_words(talk, ByMeaning())(ask("谁喝红茶"), 2) == [0]
    assert retrievers.keyword_index_without_stop_words(talk, ByMeaning())(ask("Is it that 红茶?"), 2) == [0]


def test_the_most_recent_are_the_last_whatever_is_asked(conversation):
    assert retrievers.most_recent(conversation, ByMeaning())(ask("storm"), 2) == [4, 3]


def test_a_bank_that_is_told_when_leaves_out_what_no_longer_held():
    begin = datetime(2025, 1, 1, tzinfo=UTC)
    turns = (
        Turn("The car is red.", begin),
        Turn("The car is blue.", begin + timedelta(days=9), replaces=0),
    )
    both = Conversation(turns, ())
    question = ask("Which colour has the car?")
    assert set(retrievers.bank()(both, ByMeaning())(question, 5)) == {0, 1}
    recall = retrievers.bank(timely=True)(both, ByMeaning())
    assert recall(question, 5) == [1]
    assert recall(ask(question.text, at=begin + timedelta(days=1)), 5) == [0]


def test_more_words_in_a_question_ask_for_a_higher_keyword_score():
    middles = [retrievers._mem0_sigmoid(terms)[0] for terms in range(1, 40)]
    assert middles == sorted(middles)
    assert (middles[0], middles[-1]) == (5.0, 12.0)
