import contextlib
import multiprocessing
import os
import sqlite3
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.document import split_document
from scrubjay.memory.bank.search import keyword

DAY = timedelta(days=1)
START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    def __init__(self):
        self.now = START

    def __call__(self):
        return self.now


class Letters:
    """Embeddings by counts of letters: texts of the same letters are alike."""

    def embed_query(self, text):
        return [0.01, *(float(text.lower().count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz")]

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def bank(clock):
    with MemoryBank(":memory:", clock=clock) as bank:
        yield bank


def why(hit):
    assert hit.explanation is not None
    return hit.explanation


def texts(hits):
    return [hit.text for hit in hits]


def test_a_record_comes_back_as_it_was_written(bank):
    id = bank.add(
        "Ada was born in 1815.",
        "knowledge",
        ("user", "ada"),
        0.9,
        START - DAY,
        trust="tool",
        url="https://x.org",
        n=[1],
    )
    (hit,) = bank.search("When was Ada born?")
    record = bank.get(id)
    for found in (hit, record):
        assert (found.id, found.text, found.kind) == (id, "Ada was born in 1815.", "knowledge")
        assert (found.namespace, found.trust, found.importance) == (("user", "ada"), "tool", 0.9)
        assert (found.created, found.observed) == (START, START - DAY)
        assert found.provenance == {"url": "https://x.org", "n": [1]}
    assert bank.recent(1) == [record]
    assert bank.get("nothing") is None


def test_a_new_truth_ends_an_old_one_and_both_stay(bank, clock):
    old = bank.add("Ada lives in Berlin.")
    clock.now += DAY
    new = bank.add("Ada lives in Paris.", supersedes=old)
    assert texts(bank.search("Where does Ada live?")) == ["Ada lives in Paris."]
    assert texts(bank.recent(9)) == ["Ada lives in Paris."]
    assert texts(bank.search("Where does Ada live?", at=START)) == ["Ada lives in Berlin."]
    assert bank.get(old).valid_to == bank.get(new).valid_from == START + DAY
    assert bank.get(new).supersedes == old
    assert len(bank) == 2


def test_validity_bounds_what_is_found(bank, clock):
    bank.add("The museum is closed.", valid_from=START + DAY, valid_to=START + 2 * DAY)
    for days, count in ((0, 0), (1, 1), (1.5, 1), (2, 0)):
        assert len(bank.search("museum", at=START + days * DAY)) == count
    clock.now += DAY
    assert len(bank.search("museum")) == len(bank.recent(5)) == 1


def test_what_a_tool_says_replaces_nothing_that_a_person_said(bank):
    mine = bank.add("My bank is Alpha.", trust="user")
    with pytest.raises(ValueError, match="tool"):
        bank.add("The bank is Mallory.", trust="tool", supersedes=mine)
    assert texts(bank.search("bank")) == ["My bank is Alpha."]
    bank.add("The bank of the user is Omega.", trust="tool")
    assert len(bank.search("bank")) == 2
    assert texts(bank.search("bank", trusts=("user", "agent"))) == ["My bank is Alpha."]


PARAPHRASES = (
    ("I am allergic to peanuts.", "I'm allergic to peanuts!", "Peanuts: I have an allergy to them."),
    (
        "The office opens at 9 on Monday.",
        "On Monday, the office opened at 9.",
        "Our office is open at 9 on Mondays.",
    ),
    ("Bob has two cats, Tom and Kim.", "bob has two cats: Tom and Kim", "Bob had two cats, Tom and Kim."),
    (
        "My favourite colour is dark green.",
        "Dark green is my favourite colour.",
        "my favourite colour: dark green",
    ),
    ("Remind me to water the plants.", "Remind me: water the plants", "Please remind me to water my plants."),
)


def test_the_same_said_in_other_words_is_stored_once(bank):
    for wordings in zip(*PARAPHRASES, strict=True):
        for text in wordings:
            bank.add(text)
    assert 5 <= len(bank) <= 7
    (hit, *_) = bank.search("favourite colour")
    assert bank.sayings(hit.id) == list(PARAPHRASES[3])
    assert hit.sayings == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ada lives in Berlin.", "Ada lives in Paris."),
        ("Flights go from Paris to Rome daily.", "Flights go from Rome to Paris daily."),
        ("The code of the door is 4711.", "The code of the door is 4712."),
        ("I eat meat on most days of the week.", "I don't eat meat on most days of the week."),
        ("Is the meeting on Monday?", "The meeting is on Monday."),
        ("Buy fresh bread at the bakery tomorrow morning.", "Buy fresh milk at the bakery tomorrow morning."),
        ("我住在北京的东边。", "我住在北京的西边。"),
        ("我喜欢吃鱼和蔬菜水果。", "我不喜欢吃鱼和蔬菜水果。"),
        ("🙂", "🙁"),
    ],
)
def test_what_says_something_else_stays_apart(bank, one, other):
    assert bank.add(one) != bank.add(other)


def test_duplicates_join_only_within_one_place_and_only_where_wanted(bank):
    first = bank.add("Yes, please.")
    others = {
        bank.add("Yes, please.", kind="task"),
        bank.add("Yes, please.", namespace=("ada",)),
        bank.add("Yes, please.", trust="agent"),
        bank.add("Yes, please.", valid_from=START),
        bank.add("Yes, please.", merge=False),
    }
    assert len(others | {first}) == 6
    assert bank.add("Yes,  please.") in others | {first}
    assert len(bank) == 6


def test_near_embeddings_join_what_words_do_not():
    with MemoryBank(":memory:", Letters()) as bank:
        first = bank.add("listen, silent teacher")
        assert bank.add("silent tinsel, cheater") == first
        assert bank.add("zebra") != first


def test_namespaces_contain_and_never_leak(bank):
    bank.add("tea for one", namespace=("user", "ada"))
    bank.add("tea for two", namespace=("user", "adam"))
    bank.add("tea for three", namespace=("team",))
    assert texts(bank.search("tea", namespace=("user", "ada"))) == ["tea for one"]
    assert set(texts(bank.search("tea", namespace=("user",)))) == {"tea for one", "tea for two"}
    assert texts(bank.recent(9, namespace=("user", "adam"))) == ["tea for two"]
    assert len(bank.search("tea", namespace=())) == len(bank.search("tea")) == 3


@pytest.mark.parametrize("embeddings", [None, Letters()])
def test_what_is_forgotten_is_gone_from_the_file(tmp_path, embeddings):
    path = tmp_path / "bank.db"
    bank, reader = MemoryBank(path, embeddings), MemoryBank(path, embeddings)
    secret = bank.add("The xylophonist waltzes.", note="quixotic")
    bank.add("the xylophonist waltzed")
    kept = bank.add("A plain fact.")
    assert secret in [hit.id for hit in reader.search("xylophonist")]
    assert bank.forget(secret)
    assert not bank.forget(secret)
    assert secret not in [hit.id for hit in reader.search("xylophonist")]
    assert bank.search("fact")[0].id == kept
    left = b"".join(file.read_bytes() for file in tmp_path.iterdir()).lower()
    for trace in (b"xylophonist", b"waltz", b"quixotic"):
        assert trace not in left
    with sqlite3.connect(path) as connection:
        for table in ("marks", "sayings", "vectors"):
            (count,) = connection.execute(f"SELECT COUNT(DISTINCT number) FROM {table}").fetchone()
            assert count == {"marks": 1, "sayings": 0, "vectors": 1 if embeddings else 0}[table]
    assert bank.add("The xylophonist waltzes.") != secret


def test_words_and_embeddings_both_nominate_and_the_explanation_adds_up(clock):
    with MemoryBank(":memory:", Letters(), clock=clock, dense_weight=1.5) as bank:
        for text in ("ocelot", "a dog", "tool ecology"):
            bank.add(text)
            clock.now += DAY
        hits = {hit.text: hit for hit in bank.search("ocelot dogs", explain=True)}
        assert why(hits["a dog"]).keyword_rank is not None
        assert why(hits["tool ecology"]).keyword_rank is None
        assert why(hits["tool ecology"]).dense_rank is not None
        for hit in hits.values():
            found = why(hit)
            total = found.from_words + found.from_embeddings
            assert hit.score == pytest.approx(total * found.recency * found.importance)
        assert bank.search("ocelot")[0].explanation is None


def test_words_that_too_many_records_hold_choose_none_but_weigh(bank, monkeypatch):
    monkeypatch.setattr(keyword, "_MOST_MATCHES", 5)
    bank.add("a heron by the water", merge=False)
    bank.add("an early boat", merge=False)
    bank.add("a heron by the boat", merge=False)
    for n in range(40):
        bank.add(f"boat number {n}", kind="task")
    assert texts(bank.search("heron boat", kinds="conversation"))[0] == "a heron by the boat"
    found = texts(bank.search("heron boat", k=50))
    assert found[0] == "a heron by the boat"
    assert "a heron by the water" in found
    # The newest five, and their neighbours: the chunk of 16 begins at 32.
    assert set(texts(bank.search("boat", k=50))) == {f"boat number {n}" for n in range(32, 40)}


def test_recency_and_importance_move_a_record_by_few_places(bank, clock):
    old = bank.add("the red boat sails")
    clock.now += 4000 * DAY
    for colour in ("blue", "grey", "pink", "brown", "black", "white"):
        bank.add(f"the {colour} boat sails")
        clock.now += timedelta(hours=1)
    assert bank.search("boat")[-1].id == old
    assert [hit.id for hit in bank.search("red boat")].index(old) <= 2
    grave = bank.add("the green boat sails", importance=1.0)
    assert bank.search("boat")[0].id == grave


def test_a_reply_is_found_by_its_question_in_the_same_segment_only(bank, clock):
    bank.add("Shall we paint the fence?")
    reply = bank.add("Gladly, on Sunday.")
    clock.now += DAY
    other = bank.add("Gladly, some time.")
    found = [hit.id for hit in bank.search("fence")]
    assert reply in found
    assert other not in found


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.text("abcde", min_size=1, max_size=6)), min_size=1, max_size=40)
)
def test_embeddings_alone_rank_as_a_flat_scan_does(entries):
    with MemoryBank(":memory:", Letters()) as bank:
        for space, text in entries:
            bank.add(text, namespace=(str(space),), merge=False)
        bank.forget(bank.recent(1)[0].id)
        assert all(hit.namespace == ("1",) for hit in bank.search("zz", k=50, namespace=("1",)))
        left = bank.recent(50)
        query = np.array(Letters().embed_query("a bc"))
        vectors = np.array([Letters().embed_query(record.text) for record in left]).reshape(-1, len(query))
        cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
        found = {hit.id: why(hit).cosine for hit in bank.search("a bc", k=50, explain=True)}
        assert found == pytest.approx(
            dict(zip([record.id for record in left], cosines, strict=True)), abs=1e-5
        )


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.text("abcde", min_size=1, max_size=6)), min_size=1, max_size=40)
)
def test_embeddings_held_by_torch_are_recalled_as_those_held_by_numpy_are(entries):
    clock = Clock()
    with (
        MemoryBank(":memory:", Letters(), clock) as bank,
        MemoryBank(":memory:", Letters(), clock, device="cpu") as other,
    ):
        for bank_or_other in (bank, other):
            for space, text in entries:
                bank_or_other.add(text, namespace=(str(space),), merge=False)
            assert len(bank_or_other.search("abc", k=50)) == len(entries)
            bank_or_other.forget(bank_or_other.recent(1)[0].id)
            bank_or_other.add("bead", namespace=("0",), merge=False)
        for namespace in ((), ("1",)):
            found = [either.search("a bc", 50, namespace=namespace, explain=True) for either in (bank, other)]
            by_text, by_text_too = (sorted((hit.text, why(hit).cosine) for hit in hits) for hits in found)
            assert [text for text, _ in by_text] == [text for text, _ in by_text_too]
            assert [c for _, c in by_text] == pytest.approx([c for _, c in by_text_too], abs=1e-5)
            # Where all are alike, rounding decides what stands out.
            scores, scores_too = ([hit.score for hit in hits] for hits in found)
            assert scores == pytest.approx(scores_too, abs=1e-3)


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="device='nowhere': torch cannot hold embeddings there"):
        MemoryBank(":memory:", Letters(), device="nowhere")
    with pytest.raises(ValueError, match="device='cpu': it is to hold embeddings; pass some"):
        MemoryBank(":memory:", device="cpu")


def test_a_document_is_sections_of_whole_sentences_that_lose_nothing(bank):
    text = (
        "Intro here.\n\n# Cats\n\nCats purr. "
        + "They sleep all day. " * 60
        + "\n\n# 狗\n\n狗会叫。它们跑得很快。\n"
    )
    sections = split_document(text, 100)
    assert [heading for heading, _ in sections] == ["", "Cats", "狗"]
    assert all(len(passage) <= 100 for _, passages in sections for passage in passages)
    words = "".join("".join(passages) for _, passages in sections)
    assert "".join(words.split()) == "".join(text.replace("# Cats", "").replace("# 狗", "").split())
    ids = bank.add_document("# Cats\n\nCats purr.\n\n# Dogs\n\nDogs bark.", source="zoo")
    assert [bank.get(id).provenance for id in ids] == [
        {"source": "zoo", "section": s} for s in ("Cats", "Dogs")
    ]
    with pytest.raises(ValueError, match="blank"):
        bank.add_document(" \n")


def test_wrong_input_is_named(bank):
    for error, match, call in (
        (ValueError, "nothing to remember", lambda: bank.add(" ")),
        (TypeError, "text=3", lambda: bank.add(3)),
        (ValueError, "choose from knowledge", lambda: bank.add("x", kind="dream")),
        (ValueError, "choose from user", lambda: bank.add("x", trust="god")),
        (TypeError, "namespace='ada'", lambda: bank.add("x", namespace="ada")),
        (ValueError, "importance=2", lambda: bank.add("x", importance=2)),
        (ValueError, "supersedes='y'", lambda: bank.add("x", supersedes="y")),
        (ValueError, "valid_to", lambda: bank.add("x", valid_from=2, valid_to=1)),
        (TypeError, "observed='now'", lambda: bank.add("x", observed="now")),
        (TypeError, "provenance", lambda: bank.add("x", who=object())),
        (ValueError, "half a character", lambda: bank.add("\ud800")),
        (ValueError, "k=0", lambda: bank.search("x", k=0)),
        (ValueError, "kinds", lambda: bank.search("x", kinds=())),
    ):
        with pytest.raises(error, match=match):
            call()
    assert len(bank) == 0


def test_embeddings_of_another_length_and_files_of_the_future_are_refused(tmp_path):
    class Two:
        def embed_query(self, text):
            return [1.0, 0.0]

        def embed_documents(self, texts):
            return [[1.0, 0.0] for _ in texts]

    path = tmp_path / "bank.db"
    with MemoryBank(path, Letters()) as bank:
        bank.add("a fact")
    with MemoryBank(path, Two()) as bank:
        for call in (lambda: bank.add("another"), lambda: bank.search("a")):
            with pytest.raises(ValueError, match="27 numbers, these give 2"):
                call()
    with MemoryBank(path) as bank:
        assert texts(bank.search("fact")) == ["a fact"]
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ValueError, match="layout 99"):
        MemoryBank(path)


def _write_until_killed(path, pipe):
    with MemoryBank(path) as bank:
        for i in range(10**9):
            pipe.send(bank.add(f"child fact {i}"))


def _write(path, who):
    with MemoryBank(path) as bank:
        for i in range(30):
            bank.add(f"fact {i} of {who}")
            bank.add(f"shared fact {i}")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which starts a process in no time")
def test_a_killed_process_loses_nothing_it_acknowledged(tmp_path):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_write_until_killed, args=(tmp_path / "bank.db", sender))
    child.start()
    acknowledged = [receiver.recv() for _ in range(50)]
    child.kill()
    child.join()
    sender.close()
    while receiver.poll():
        try:
            acknowledged.append(receiver.recv())
        except EOFError:
            break
    with MemoryBank(tmp_path / "bank.db") as bank:
        for i, id in enumerate(acknowledged):
            record = bank.get(id)
            assert record is not None
            assert record.text == f"child fact {i}"
        assert len(bank) - len(acknowledged) in (0, 1)
        assert bank.search("child")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which starts a process in no time")
def test_several_processes_write_one_file(tmp_path):
    context = multiprocessing.get_context("fork")
    path = tmp_path / "bank.db"
    children = [context.Process(target=_write, args=(path, who)) for who in ("Ada", "Bob", "Cy")]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    with MemoryBank(path) as bank:
        assert len(bank) == 4 * 30
        assert all(record.sayings == 3 for record in bank.recent(200) if record.text.startswith("shared"))


def test_what_is_written_together_is_there_together():
    with MemoryBank(":memory:") as bank:
        first = bank.add("Ada lives in Bern.")

        def move_what_was_forgotten():
            with bank.store.writing():
                bank.forget(first)
                bank.add("Ada lives in Basel.", supersedes=first)

        with pytest.raises(ValueError, match="no such record"):
            move_what_was_forgotten()
        assert [record.text for record in bank.recent(9)] == ["Ada lives in Bern."]
        with bank.store.writing():
            bank.write(bank.embedded([bank.draft("Ada lives in Basel."), bank.draft("So does Vera.")]))
            bank.forget(first)
        assert [record.text for record in bank.recent(9)] == ["Ada lives in Basel.", "So does Vera."]
        assert bank.write([]) == []


@pytest.mark.parametrize("transaction", ["reading", "writing"])
def test_what_was_searched_before_it_was_rolled_back_leaves_no_trace(tmp_path, transaction):
    path = tmp_path / "bank.db"

    def told(bank):
        return [(hit.text, hit.explanation) for hit in bank.search("a real record", explain=True)]

    with MemoryBank(path, Letters(), lambda: START) as bank:
        ids = [bank.add(text, merge=False) for text in ("quick brown foxes", "lazy dogs", "a real fox")]
        before = told(bank)
        with contextlib.suppress(KeyError), getattr(bank.store, transaction)():
            bank.add("a phantom of nothing")
            bank.forget(ids[2])
            assert "a real fox" not in [text for text, _ in told(bank)]
            raise KeyError
        assert told(bank) == before
        bank.add("a real record, beta")
        bank.forget(ids[0])
        with MemoryBank(path, Letters(), lambda: START) as fresh:
            assert told(bank) == told(fresh)


def test_an_index_is_kept_unless_what_it_read_was_rolled_back():
    with MemoryBank(":memory:", Letters()) as bank:
        id = bank.add("a real record")
        bank.search("record")
        kept = bank._index
        with bank.store.writing():
            bank.add("something else")
            bank.search("record")
        with pytest.raises(ValueError, match="no such record"):
            bank.add("a third", supersedes="nobody")
        with contextlib.suppress(KeyError), bank.store.writing():
            bank.search("record")
            bank.forget(id)
            raise KeyError
        assert len(bank.search("record")) == 2
        assert bank._index is kept


def test_what_was_forgotten_leaves_no_trace_in_how_sure_words_are(clock):
    banks = MemoryBank(":memory:", clock=clock), MemoryBank(":memory:", clock=clock)
    with banks[0], banks[1]:
        gone = [banks[1].add(f"filler number {n}", kind="task") for n in range(40)]
        for bank in banks:
            for text in ("the heron nests", "a boat", "a late boat", "an oar", "the mill"):
                bank.add(text, merge=False)
        for id in gone:
            banks[1].forget(id)
        never, after = ([(h.text, h.score) for h in bank.search("heron boat")] for bank in banks)
    assert never == after


def test_near_embeddings_are_found_among_many_that_share_marks_by_chance():
    class Meant:
        """A direction for each subject, which a wording moves by about 7 degrees."""

        def embed_query(self, text):
            subject, _, wording = text.partition(" ")
            centre = np.random.default_rng(list(subject.encode())).standard_normal(64)
            moved = np.random.default_rng(list(wording.encode())).standard_normal(64)
            return (centre + 0.12 * moved).tolist()

        def embed_documents(self, texts):
            return [self.embed_query(text) for text in texts]

    subjects = [f"{first}{second}" for first in "abcde" for second in "fghijk"]
    with MemoryBank(":memory:", Meant()) as bank:
        for subject in subjects:
            bank.add(f"{subject} seen")
        assert len(bank) == len(subjects)
        for subject in subjects:
            bank.add(f"{subject} observed")
        assert len(bank) <= 1.15 * len(subjects)
