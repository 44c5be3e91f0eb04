"""Rerankers: functions, cross-encoders of LangChain and of sentence-transformers, and their errors."""

import numpy as np
import pytest
from langchain_core.cross_encoders import BaseCrossEncoder

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.search.rerank import DEPTH


@pytest.fixture
def many(clock):
    """A bank of more records than a reranker reads."""
    with MemoryBank(":memory:", clock=clock) as bank:
        for number in range(DEPTH + 20):
            bank.add(f"heron {'wades ' * (number % 7)}x{number}", merge=False, title=f"page {number}")
        yield bank


def by_number(query, texts):
    return [float(text.rpartition("x")[2]) for text in texts]


class ByNumber(BaseCrossEncoder):
    """Scores of `by_number` for pairs."""

    def score(self, text_pairs):
        assert {query for query, _ in text_pairs} == {"heron"}
        return by_number("", [text for _, text in text_pairs])


@pytest.mark.parametrize("rerank", [by_number, ByNumber(), lambda *a: np.array(by_number(*a), np.float32)])
def test_a_reranker_orders_the_best_hits_and_gives_their_scores(many, rerank):
    best = [hit.text for hit in many.search("heron", k=DEPTH)]
    expected = sorted(best, key=lambda text: -by_number("", [text])[0])
    hits = many.search("heron", k=5, rerank=rerank)
    assert [hit.text for hit in hits] == expected[:5]
    assert [hit.score for hit in hits] == by_number("", expected[:5])
    assert len(many.search("heron", k=DEPTH + 10, rerank=rerank)) == DEPTH + 10
    assert many.search("egret", rerank=rerank) == []


def test_a_reranker_reads_the_title_before_the_text(bank):
    bank.add("It wades.", title="Herons")
    bank.search(
        "heron wades", rerank=lambda query, texts: [float(text == "Herons\nIt wades.") for text in texts]
    )
    (hit,) = bank.search("wades", rerank=lambda query, texts: [float(texts == ["Herons\nIt wades."])])
    assert (hit.score, hit.text) == (1.0, "It wades.")


def test_equal_scores_keep_the_order_and_changes_are_marked_afterwards(bank):
    old = bank.add("Ada works at Acme.", observed="2025-01-01")
    new = bank.add("Ada works at Globex.", observed="2025-06-01")
    for rerank in (lambda query, texts: ["Acme" in text for text in texts], lambda query, texts: [0] * 2):
        hits = bank.search("Where does Ada work?", rerank=rerank)
        assert [(hit.id, hit.superseded_by) for hit in hits] == [(new, None), (old, new)]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda query, texts: [1.0], r"scores of the shape \(1,\) for 2 texts"),
        (lambda query, texts: [[1.0]] * 2, r"scores of the shape \(2, 1\)"),
        (lambda query, texts: [1.0, float("nan")], "one finite number for each text"),
        (lambda query, texts: None, r"scores of the shape \(\)"),
        (lambda query, texts: ["good", "bad"], "the reranker returned no numbers"),
    ],
)
def test_scores_that_order_nothing_are_refused(bank, scores, message):
    for text in ("a heron", "a heron wades"):
        bank.add(text)
    with pytest.raises(ValueError, match=message):
        bank.search("heron", rerank=scores)


def test_an_object_that_is_no_reranker_is_refused(bank):
    with pytest.raises(TypeError, match=r"rerank='best'.*pass a function of a query and texts"):
        bank.search("heron", rerank="best")


@pytest.mark.requires("sentence_transformers")
def test_a_cross_encoder_of_sentence_transformers_is_a_reranker(bank, tmp_path):
    from sentence_transformers import CrossEncoder
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "heron", "wades", "flies", "sleeps"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        id2label={0: "relevance"},
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    encoder = CrossEncoder(str(tmp_path), device="cpu")
    texts = ["a heron wades", "a heron flies", "a heron sleeps"]
    for text in texts:
        bank.add(text, merge=False)
    values = np.asarray(encoder.predict([("heron", text) for text in texts]))
    scores = dict(zip(texts, values.tolist(), strict=True))
    hits = bank.search("heron", rerank=encoder)
    assert [hit.text for hit in hits] == sorted(texts, key=lambda text: -scores[text])
    assert [hit.score for hit in hits] == pytest.approx([scores[hit.text] for hit in hits], abs=1e-6)
