"""Ranking by words and embeddings together."""

import contextlib
import math
import sqlite3
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.embedding_model import fluency
from scrubjay.memory.bank.file.words import day_words, index_words, query_terms

DAY = timedelta(days=1)
BEGIN = datetime(2024, 1, 1, 9, tzinfo=UTC)
WORDS = ("heron", "mill", "boat", "oar", "water", "Vera", "磨坊", "what", "the", "2024", "May")


def get_explanation(hit):
    assert hit.explanation is not None
    return hit.explanation


def texts(hits):
    return [hit.text for hit in hits]


class RandomEmbeddings:
    """Random embeddings, seeded by the text; a cosine c becomes `lowest + (1 - lowest) c`."""

    def __init__(self, lowest=0.0):
        self.lowest = lowest

    def embed_query(self, text):
        vector = np.random.default_rng(list(text.rstrip("?!").encode())).standard_normal(24)
        vector *= np.sqrt(1 - self.lowest) / np.linalg.norm(vector)
        return [*vector, np.sqrt(self.lowest)]

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


def score_words(turns, query):
    """Return BM25F of all fields and without the date, by its definition."""
    texts = [index_words(text) for text, _ in turns]
    dates = [set(index_words(day_words(text, moment.timestamp()))) for text, moment in turns]
    mean_length = max(sum(map(len, texts)) / len(texts), 1)
    scores, rarities = np.zeros((2, len(turns))), 0.0
    for term in query_terms(query):
        in_text = np.array([sum(words.count(word) for word in term.words) for words in texts])
        in_text = in_text / [0.25 + 0.75 * len(words) / mean_length for words in texts]
        in_date = np.array([0.8 * len(words.intersection(term.words)) for words in dates])
        count = np.count_nonzero(in_text + in_date)
        n = len(turns)
        rarity = math.log((n - count + 0.5) / (count + 0.5)) if 2 * count < n else 1e-6
        rarities += rarity
        for i, frequency in enumerate((in_text + in_date, in_text)):
            scores[i] += rarity * 1.6 * frequency / (frequency + 0.6)
    return scores / (math.sqrt(rarities) if rarities > 1 else max(rarities, 0.1))


def score_by_definition(turns, query, embeddings):
    """Return the score of every turn by a direct implementation of the formula."""
    w, w_without_date = score_words(turns, query)
    vectors = np.array(embeddings.embed_documents([text for text, _ in turns]))
    cosines = vectors @ embeddings.embed_query(query)
    z = 0.65 * (cosines - cosines.mean()) / max(cosines.std(), 1e-3) * fluency(embeddings, "latin")
    pauses = np.diff([moment.timestamp() for _, moment in turns]) > 86400
    scores, half = [], max(0.0, (w + z).max()) / 2
    for i in range(len(turns)):
        beside = [i - 1] * (i > 0 and not pauses[i - 1])
        beside += [i + 1] * (i + 1 < len(turns) and not pauses[i])
        scores.append(w[i] + z[i] + 0.3 * sum(max(0.0, w_without_date[j] + z[j] - half) for j in beside))
    return np.array(scores)


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5), st.sampled_from([1, 1, 2000])),
        min_size=1,
        max_size=25,
    ),
    st.lists(st.sampled_from(WORDS[:6]), min_size=1, max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_scores_are_those_of_the_rule_over_all_records(turn_words, question):
    turns, moment = [], BEGIN
    for words, minutes in turn_words:
        moment += timedelta(minutes=minutes)
        turns.append((" ".join(words), moment))
    embeddings, query = RandomEmbeddings(), " ".join(question)
    with MemoryBank(":memory:", embeddings, clock=lambda: moment) as bank:
        ids = [bank.add(text, observed=then, merge=False) for text, then in turns]
        hit_of_id = {hit.id: hit for hit in bank.search(query, k=50, explain=True)}
    assert hit_of_id.keys() == set(ids)
    plain = [
        hit_of_id[id].score
        - get_explanation(hit_of_id[id]).recency
        - get_explanation(hit_of_id[id]).importance
        for id in ids
    ]
    assert plain == pytest.approx(score_by_definition(turns, query, embeddings), abs=1e-4)


@pytest.mark.parametrize(("length", "factor"), [(1, 1), (125, 1), (200, 1.6), (250, 2), (600, 2)])
def test_embeddings_count_more_in_a_bank_of_long_texts(length, factor, clock):
    embeddings, texts = RandomEmbeddings(), [" ".join([word] * length) for word in WORDS[:6]]
    with MemoryBank(":memory:", embeddings, clock=clock) as bank:
        for text in texts:
            bank.add(text, merge=False)
        parts = {hit.text: get_explanation(hit) for hit in bank.search("heron", explain=True)}
    cosines = np.array([embeddings.embed_query(text) for text in texts]) @ embeddings.embed_query("heron")
    z = (cosines - cosines.mean()) / cosines.std() * fluency(embeddings, "latin")
    assert [parts[text].from_embeddings for text in texts] == pytest.approx(0.65 * factor * z, abs=1e-4)


def test_words_and_embeddings_both_nominate_and_the_explanation_adds_up(letters, clock):
    with MemoryBank(":memory:", letters, clock=clock, dense_weight=1.5) as bank:
        for text in ("ocelot", "a dog", "tool ecology"):
            bank.add(text)
            clock.now += DAY
        hits = {hit.text: hit for hit in bank.search("ocelot dogs", explain=True)}
        assert get_explanation(hits["a dog"]).keyword_rank is not None
        assert get_explanation(hits["tool ecology"]).keyword_rank is None
        assert get_explanation(hits["tool ecology"]).dense_rank is not None
        for hit in hits.values():
            explanation = get_explanation(hit)
            total = explanation.from_words + explanation.from_embeddings + explanation.from_neighbours
            assert hit.score == pytest.approx(total + explanation.recency + explanation.importance)
        assert bank.search("ocelot")[0].explanation is None


def test_by_meaning_is_the_exact_cosine_and_by_words_what_a_bank_without_embeddings_finds(clock):
    embeddings, query = RandomEmbeddings(0.5), "Where did the heron nest?"
    with (
        MemoryBank(":memory:", embeddings, clock=clock) as bank,
        MemoryBank(":memory:", clock=clock) as words,
    ):
        for one in (bank, words):
            for n in range(300):
                one.add(f"{WORDS[n % 5]} {n // 5} by the {WORDS[n % 3]}", merge=False)
        cosines = np.array(embeddings.embed_documents(texts(bank.recent(300)))) @ embeddings.embed_query(
            query
        )
        hits = bank.search(query, k=20, by="meaning", explain=True)
        assert [hit.score for hit in hits] == pytest.approx(np.sort(cosines)[::-1][:20], abs=1e-6)
        assert [get_explanation(hit).dense_rank for hit in hits] == [*range(1, 21)]
        assert all(get_explanation(hit).cosine == hit.score for hit in hits)
        results = [
            [(hit.text, hit.score) for hit in one.search(query, k=20, by="words")] for one in (bank, words)
        ]
        assert results[0] == results[1] == [(hit.text, hit.score) for hit in words.search(query, k=20)]
        with pytest.raises(ValueError, match="by='meaning': the bank has no embeddings"):
            words.search(query, by="meaning")
        with pytest.raises(ValueError, match="by='feeling'; choose from meaning, words"):
            bank.search(query, by="feeling")
        assert bank.search(" ", by="meaning") == []


@pytest.mark.parametrize("by", ["meaning", "words", None])
def test_what_holds_no_longer_hides_nothing_that_does(by, clock):
    with MemoryBank(":memory:", RandomEmbeddings(), clock=clock) as bank:
        right = bank.add("Who feeds the heron? Vera.", merge=False)
        for n in range(700):
            old = bank.add(f"Who feeds the heron? {n}", valid_to=clock.now + DAY, merge=False)
        clock.now += 2 * DAY
        assert [hit.id for hit in bank.search("Who feeds the heron?", k=3, by=by)] == [right]
        assert len(bank.search("Who feeds the heron?", k=3, by=by, at=clock.now - 2 * DAY)) == 3
        bank.forget(old)


def test_recency_and_importance_move_a_record_by_few_places(bank, clock):
    old = bank.add("the red boat sails", namespace=("red",))
    clock.now += 4000 * DAY
    for colour in ("blue", "grey", "pink", "brown", "black", "white"):
        bank.add(f"the {colour} boat sails", namespace=(colour,))
        clock.now += timedelta(hours=1)
    assert bank.search("boat")[-1].id == old
    assert [hit.id for hit in bank.search("red boat")].index(old) <= 2
    grave = bank.add("the green boat sails", namespace=("green",), importance=1.0)
    assert bank.search("boat")[0].id == grave


def test_a_reply_is_found_by_its_question_in_the_same_segment_only(bank, clock):
    bank.add("Shall we paint the fence?")
    reply = bank.add("Gladly, on Sunday.")
    clock.now += DAY + timedelta(seconds=1)
    other = bank.add("Gladly, some time.")
    ids = [hit.id for hit in bank.search("fence")]
    assert reply in ids
    assert other not in ids


def test_what_was_forgotten_leaves_no_trace_in_what_words_weigh(clock):
    banks = MemoryBank(":memory:", clock=clock), MemoryBank(":memory:", clock=clock)
    with banks[0], banks[1]:
        filler_ids = [banks[1].add(f"filler number {n}", kind="task") for n in range(40)]
        for bank in banks:
            for text in ("the heron nests", "a boat", "a late boat", "an oar", "the mill"):
                bank.add(text, merge=False)
        for id in filler_ids:
            banks[1].forget(id)
        never, after = ([(h.text, h.score) for h in bank.search("heron boat")] for bank in banks)
    assert never == after


def chat(bank):
    for n in range(100):
        bank.add(f"Chatter of day {n}", observed=n * 60, merge=False)
    bank.add("Where did the heron nest!", observed=6000, merge=False)
    bank.add("Under the old mill", observed=6060, merge=False)
    for n in range(100, 200):
        bank.add(f"Chatter of day {n}", observed=n * 60 + 120, merge=False)
    return bank


@pytest.mark.parametrize("embeddings", [None, RandomEmbeddings(), RandomEmbeddings(0.8)])
def test_a_reply_is_found_by_what_it_replies_to(embeddings):
    with chat(MemoryBank(":memory:", embeddings)) as bank:
        results = texts(bank.search("Where did the heron nest?", k=3))
    assert results[0] == "Where did the heron nest!"
    assert "Under the old mill" in results


def test_where_many_are_alike_none_draws_its_neighbours_along():
    with chat(MemoryBank(":memory:")) as bank:
        assert all("Chatter" in hit.text for hit in bank.search("chatter", k=50))


def test_words_that_all_records_say_leave_the_choice_to_meaning():
    embeddings = RandomEmbeddings()
    with MemoryBank(":memory:", embeddings) as bank:
        for n in range(40):
            bank.add(f"Vera {'and so ' * (n % 4)}{n}", namespace=(str(n),), merge=False)
        nearest = bank.search("Vera!", k=3, by="meaning")
        assert texts(bank.search("Vera!", k=3)) == texts(nearest)


def test_a_model_whose_cosines_are_all_high_recalls_as_one_whose_are_not():
    scores = []
    for lowest in (0.0, 0.8):
        with chat(MemoryBank(":memory:", RandomEmbeddings(lowest), clock=lambda: 20_000.0)) as bank:
            scores.append({hit.text: hit.score for hit in bank.search("Chatter of the heron?", k=30)})
    # Rounding may swap two nearly equal scores.
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_the_order_of_the_first_is_the_same_however_many_are_asked_for():
    with chat(MemoryBank(":memory:", RandomEmbeddings())) as bank:
        many = [hit.id for hit in bank.search("Chatter of the heron?", k=60)]
        assert [hit.id for hit in bank.search("Chatter of the heron?", k=5)] == many[:5]


@pytest.mark.parametrize(
    "question",
    ["9 February 2024", "February 9, 2024", "2024-02-09", "on February 9th", "2024年2月9日", "二月？ 2月9日"],
)
def test_what_was_observed_on_a_day_is_recalled_by_it_though_it_does_not_name_it(question):
    with MemoryBank(":memory:") as bank:
        for day in range(100):
            text = "苍鹭吃了一条鱼" if "月" in question else "the heron ate a fish"
            bank.add(text, observed=BEGIN + day * DAY, merge=False)
        (first, *_) = bank.search(f"{question}?", k=1)
    assert (first.observed.month, first.observed.day) == (2, 9)


def test_a_month_is_recalled_by_its_name():
    with MemoryBank(":memory:") as bank:
        for day in range(150):
            bank.add(f"the heron ate fish {day}", observed=BEGIN + day * DAY, merge=False)
        assert {hit.observed.month for hit in bank.search("fish in March 2024", k=20)} == {3}
        assert {hit.observed.month for hit in bank.search("What did it eat in May?", k=20)} == {5}


def test_days_begin_where_the_clock_is(tmp_path):
    here = timezone(timedelta(hours=8))
    midnight = datetime(2024, 3, 5, tzinfo=here)
    with (
        MemoryBank(":memory:", clock=lambda: midnight + 90 * DAY) as bank,
        MemoryBank(":memory:", clock=lambda: midnight + 90 * DAY) as copy,
    ):
        for hour in (-1, 1, 23, 25):
            bank.add(
                f"at {hour}", observed=midnight + timedelta(hours=hour), merge=False, namespace=(str(hour),)
            )
        list(copy.restore(bank.export(), foreign=False))
        for one in (bank, copy):
            assert set(texts(one.search("5 March", k=2))) == {"at 1", "at 23"}


def test_a_moment_that_no_calendar_has_is_refused_and_harms_no_search(tmp_path):
    path = tmp_path / "bank.db"
    with MemoryBank(path) as bank:
        for wrong in (1.7e12, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=r"observed=.*milliseconds"):
                bank.add("a stamp", observed=wrong)
        right = bank.add("rain", observed=datetime(2024, 3, 5, tzinfo=UTC))
        (row,) = bank.export()
        stamp = row | {"id": "stamp", "text": "a stamp"}
        with pytest.raises(ValueError, match=r"observed=.*milliseconds"):
            list(bank.restore([stamp | {"observed": 1.7e12}]))
        assert list(bank.restore([stamp])) == [True]
    with contextlib.closing(sqlite3.connect(path)) as file, file:  # as files of older versions may have
        file.execute("UPDATE records SET observed = 1.7e12 WHERE id = 'stamp'")
    with MemoryBank(path) as bank:
        assert [hit.id for hit in bank.search("rain on March 5", namespace=(), k=1)] == [right]
