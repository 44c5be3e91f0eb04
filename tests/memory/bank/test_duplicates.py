"""Near-duplicates are merged; texts that differ in content are not."""

from datetime import UTC, datetime

import numpy as np
import pytest

from scrubjay.memory import MemoryBank

START = datetime(2026, 1, 1, tzinfo=UTC)


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
        ("The demo went well 🙂", "The demo went well 🙁"),
        ("It was 5 degrees in the garden.", "It was -5 degrees in the garden."),
        ("The dose is 5 mg a day.", "The dose is .5 mg a day."),
        ("Take 1.2 pills a day.", "Take 1/2 pills a day."),
        ("The rent is 900 $ a month.", "The rent is 900 € a month."),
        ("The discount is 10 for members.", "The discount is 10% for members."),
        ("Vera codes in C++ at work.", "Vera codes in C# at work."),
        ("The loop ends where x = limit.", "The loop ends where x != limit."),
        ("It holds where alpha < beta.", "It holds where alpha > beta."),
        ("The area is a*b of the sides.", "The area is a/b of the sides."),
    ],
)
def test_what_says_something_else_stays_apart(bank, one, other):
    assert bank.add(one) != bank.add(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It was -5 degrees in the garden.", "it was −5 degrees in the garden"),
        ("Great 👍🏽 we meet on Monday at 9:00", "Great 👍 we meet on Monday at 9:00!!"),
        ("*Vera* codes in C++ at work.", "Vera codes in C++ (at work)..."),
        ("pages 3-5 of the book", "Pages 3 - 5 of the book"),
    ],
)
def test_marks_that_say_nothing_do_not_keep_texts_apart(bank, one, other):
    assert bank.add(one) == bank.add(other)


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


def test_near_embeddings_join_what_words_do_not(letters):
    with MemoryBank(":memory:", letters) as bank:
        first = bank.add("listen, silent teacher")
        assert bank.add("silent tinsel, cheater") == first
        assert bank.add("zebra") != first


def test_near_embeddings_are_found_among_many_that_share_marks_by_chance():
    class SubjectEmbeddings:
        """Embeddings with one direction per subject; the wording rotates it by about 7 degrees."""

        def embed_query(self, text):
            subject, _, wording = text.partition(" ")
            centre = np.random.default_rng(list(subject.encode())).standard_normal(64)
            offset = np.random.default_rng(list(wording.encode())).standard_normal(64)
            return (centre + 0.12 * offset).tolist()

        def embed_documents(self, texts):
            return [self.embed_query(text) for text in texts]

    subjects = [f"{first}{second}" for first in "abcde" for second in "fghijk"]
    with MemoryBank(":memory:", SubjectEmbeddings()) as bank:
        for subject in subjects:
            bank.add(f"{subject} seen")
        assert len(bank) == len(subjects)
        for subject in subjects:
            bank.add(f"{subject} observed")
        assert len(bank) <= 1.15 * len(subjects)
