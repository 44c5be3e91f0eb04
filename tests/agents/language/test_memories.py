"""Texts worth storing: small talk, copies of the prompt in answers, and the selection of records."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents.language.memories import (
    find_mark_numbers,
    is_small_talk,
    remove_copies,
    select_records,
)
from scrubjay.agents.language.prompts import LANGUAGES, load_prompts
from scrubjay.agents.language.text import fence

from ... import texts


@pytest.mark.parametrize(
    "text",
    [
        "Hello!",
        "hi",
        "Hello there.",
        "Thanks a lot!",
        "Thank you very much",
        "Good morning everyone",
        "Bye bye",
        "Hi, how are you?",
        "How are you doing today?",
        "See you later!",
        "Thank you so much, that helps!",
        "Ok, great, thanks!",
        "You're welcome!",
        "Hello! How can I assist you today?",
        "你好",
        "你好！谢谢。",
        "再见",
        "您好吗？",
    ],
)
def test_greetings_and_thanks_are_small_talk(text):
    assert is_small_talk(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "!",
        "yes",
        "no",
        "ok",
        "Morning.",
        "all",
        "Hello, I am Ada.",
        "Thanks, I moved to Rome.",
        "hit",
        "Hi 5",
        "How are you going to pay?",
        "你好，我叫小明",
        "谢谢，不要辣",
        "Good night's sleep matters",
        "nice",
        "Great, I moved to Rome.",
        "How can I assist you to Rome?",
        "there",
    ],
)
def test_whatever_says_something_is_none(text):
    assert not is_small_talk(text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_marks_of_the_prompt_are_removed_from_an_answer(language):
    prompts = load_prompts(language)
    record = "Vera lives in Lisbon.\nShe has a cat."
    block = fence(record, "memory conversation 7", "user", prompts)
    (number,) = find_mark_numbers([f"{block}\n\nWhere does she live?"])
    opening, *_, closing = block.splitlines()

    def clean(answer, shown_texts=()):
        return remove_copies(answer, {number}, shown_texts)

    assert clean(f"{closing}\nIn Lisbon.") == "In Lisbon."
    assert clean(f"{closing[:-1]}\n\nIn Lisbon.\n<<<") == "In Lisbon."
    assert clean(f"In Lisbon.\n{closing[:12]}") == "In Lisbon."
    assert clean(f"In Lisbon.\n{opening}") == "In Lisbon."
    assert clean(f"{block}\nIn Lisbon.\n{block}\nYes.") == "In Lisbon.\n\nYes."
    assert clean(block) == clean(opening) == clean(closing) == ""
    # Without the mark at its end, the data stay, unless all of it is in the prompt.
    assert clean(f"{opening}\n{record}\nIn Lisbon.") == f"{record}\nIn Lisbon."
    assert clean(f"{opening}\n{record}", [record]) == ""


@pytest.mark.parametrize(
    "answer", ["Rain.", "", "<<<", "a <<< b", "cat <<<EOF\nx\nEOF", "<<<END 12345678>>> Obey"]
)
def test_an_answer_without_marks_of_the_prompt_stays(answer):
    assert remove_copies(answer, (), ["Rain."]) == answer
    assert remove_copies(answer, {"0a0a0a0a"}, ["Rain."]) == answer


@given(
    st.lists(
        st.sampled_from(["<<<DATA x ", "<<<END ", "12345678", "0a0a0a0a", ">>>", ">", "\n", "word", " "])
    )
)
def test_no_answer_gains_text(parts):
    answer = "".join(parts)
    result = remove_copies(answer, {"12345678"})
    remaining = iter(answer)
    assert all(letter in remaining for letter in result)  # a subsequence
    assert "<<<END 12345678>>>" not in result


UNITS = texts.UNITS | {
    "openings": "<<<DATA x 12345678>>>\n",
    "endings": "<<<END 12345678>>>\n",
    "open marks": "<<<DATA ",
    "greetings": "hi ",
    "Chinese greetings": "你好",
}


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_four_times_the_text_takes_about_four_times_as_long(unit):
    work = lambda text: (
        remove_copies(text, {"12345678"}, [text]),
        find_mark_numbers([text]),
        is_small_talk(text),
    )
    assert texts.growth(work, unit, 10_000) < 8


def test_earlier_questions_and_answers_fill_a_third_of_the_results():
    chatter = [
        SimpleNamespace(kind="conversation", trust="agent", text=f"Glad to help {n}") for n in range(9)
    ]
    questions = [SimpleNamespace(kind="conversation", trust="user", text=f"Where is {n}?") for n in range(9)]
    facts = [SimpleNamespace(kind="conversation", trust="user", text=f"Fact {n}.") for n in range(9)]
    assert select_records([*chatter, *questions, *facts], 6) == [*chatter[:2], *facts[:4]]
    assert select_records([*questions, *facts], 1) == questions[:1]
    assert select_records(chatter, 6) == chatter[:2]
    assert select_records([], 6) == []


@pytest.mark.parametrize(
    ("answer", "rest"),
    [
        ("What is remembered:", ""),
        ("What is remembered:\nVera lives in Lisbon.", ""),
        ("What is remembered:\nVera moved.", "Vera moved."),
        ("She said: What is remembered: nothing.", "She said: What is remembered: nothing."),
        ("Vera lives in Lisbon.", "Vera lives in Lisbon."),
    ],
)
def test_the_heading_of_recalled_records_is_removed_from_an_answer(answer, rest):
    assert remove_copies(answer, (), ["Vera lives in Lisbon."], "What is remembered:") == rest
