import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.search.shares import PORTIONS, lent, shares

SCORES = st.lists(st.floats(-20, 20), min_size=1, max_size=50)
SHARE = st.floats(0, 1)


@given(SCORES, st.floats(0.5, 5), st.floats(-100, 100))
def test_a_few_scores_are_shared_by_a_softmax_that_only_differences_move(scores, temperature, moved):
    scores = np.array(scores)
    found = shares(scores, temperature)
    assert found == pytest.approx(softmax(scores / temperature))
    assert shares(scores + moved, temperature) == pytest.approx(found)


@given(SCORES)
def test_what_is_far_below_the_best_takes_nothing_from_them_however_much_there_is(scores):
    best = np.resize(scores, 60)
    found = shares(np.append(best, np.full(1000, best.min() - 3)), 2.0)
    assert found[:60].sum() == pytest.approx(1)
    assert found[:60] == pytest.approx(shares(best, 2.0))
    assert (found[60:] < found[:60].min()).all()


@given(SHARE, SHARE)
def test_of_two_neighbours_the_better_stays_the_better(one, other):
    better, worse = max(one, other), min(one, other)
    assert better + PORTIONS[0] * lent(worse) >= worse + PORTIONS[0] * lent(better) - 1e-12


class Drawn:
    """Embeddings drawn by the text; each cosine c is `lowest + (1 - lowest) c`."""

    def __init__(self, lowest=0.0):
        self.lowest = lowest

    def embed_query(self, text):
        vector = np.random.default_rng(list(text.rstrip("?!").encode())).standard_normal(24)
        vector *= np.sqrt(1 - self.lowest) / np.linalg.norm(vector)
        return [*vector, np.sqrt(self.lowest)]

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


def chat(bank):
    for n in range(100):
        bank.add(f"Chatter of day {n}", observed=n * 60, merge=False)
    bank.add("Where did the heron nest!", observed=6000, merge=False)
    bank.add("Under the old mill", observed=6060, merge=False)
    for n in range(100, 200):
        bank.add(f"Chatter of day {n}", observed=n * 60 + 120, merge=False)
    return bank


@pytest.mark.parametrize("embeddings", [None, Drawn(), Drawn(0.8)])
def test_a_reply_is_found_by_what_it_replies_to(embeddings):
    with chat(MemoryBank(":memory:", embeddings)) as bank:
        found = [hit.text for hit in bank.search("Where did the heron nest?", k=2)]
    assert found == ["Where did the heron nest!", "Under the old mill"]


def test_where_many_are_alike_none_draws_its_neighbours_along():
    with chat(MemoryBank(":memory:")) as bank:
        assert all("Chatter" in hit.text for hit in bank.search("chatter", k=50))


def test_a_model_whose_cosines_are_all_high_recalls_as_one_whose_are_not():
    found = []
    for lowest in (0.0, 0.8):
        with chat(MemoryBank(":memory:", Drawn(lowest), clock=lambda: 20_000.0)) as bank:
            found.append([(hit.text, hit.score) for hit in bank.search("Chatter of the heron?", k=30)])
    # Where two scores all but agree, rounding may exchange them.
    assert sorted(score for _, score in found[0]) == pytest.approx(
        sorted(score for _, score in found[1]), rel=1e-4
    )
    assert dict(found[0]).keys() == dict(found[1]).keys()


def test_the_order_of_the_first_is_the_same_however_many_are_asked_for():
    with chat(MemoryBank(":memory:", Drawn())) as bank:
        many = [hit.id for hit in bank.search("Chatter of the heron?", k=40)]
        assert [hit.id for hit in bank.search("Chatter of the heron?", k=5)] == many[:5]
