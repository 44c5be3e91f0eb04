"""Tests of the readers: fact chains, a model that is shown records in order, and its judge."""

from datetime import UTC, datetime, timedelta

import pytest
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage

from scrubjay.experiments.answers.bench import answer_from_facts, answer_with_model, judge
from scrubjay.experiments.answers.views import View
from scrubjay.experiments.cli.failures import FailedError
from scrubjay.experiments.lm.conversations import Conversation, Hop, Question, Turn

BEGAN = datetime(2025, 1, 1, tzinfo=UTC)
FACTS = [
    ("Ada", "city", "Bath"),
    ("Rome", "country", "Italy"),
    ("Ada", "city", "Rome"),
    ("Bath", "country", "England"),
    ("Ben", "city", "Oslo"),
]
TURNS = tuple(
    Turn(f"{s} {r} {o}.", BEGAN + timedelta(days=n), fact=(s, r, o)) for n, (s, r, o) in enumerate(FACTS)
)
HOPS = (Hop("Ada", "city", "Where does {} live?"), Hop("", "country", "Where does {} lie?"))
ASKED = Question("In which country does Ada live?", frozenset({1, 2}), "x", references=("Italy",), hops=HOPS)
TALK = Conversation(TURNS, (ASKED,))


def showing(**views):
    """Return a view function that shows the places listed for a word of the text."""
    return lambda text: next(View(tuple(places), 10, False) for word, places in views.items() if word in text)


def model(*replies):
    return GenericFakeChatModel(messages=iter([AIMessage(reply) for reply in replies]))


@pytest.mark.parametrize(
    ("places", "newest", "answer"),
    [
        ([2, 0], False, "Italy"),
        ([0, 2], False, "England"),
        ([0, 2], True, "Italy"),
        ([4, 2], False, "Italy"),
        ([4, 1], False, ""),
        ([], True, ""),
    ],
)
def test_a_hop_goes_on_from_the_object_of_the_one_before(places, newest, answer):
    reply = answer_from_facts(TALK, ASKED, showing(Ada=places, Rome=[1, 3], Bath=[1, 3]), newest)
    assert reply == (answer, 20 if answer else 10, False)


def test_a_fact_that_is_not_shown_ends_the_search():
    assert answer_from_facts(TALK, ASKED, showing(Ada=[2], Rome=[3, 4]), False).answer == ""


def test_a_model_is_asked_with_the_day_of_the_question():
    prompts = []

    class RecordingModel(GenericFakeChatModel):
        def _generate(self, messages, *args, **kwargs):
            prompts.append(messages[-1].text)
            return super()._generate(messages, *args, **kwargs)

    question = Question("Where is {Ada}?", frozenset(), "x", BEGAN)
    hears = RecordingModel(messages=iter([AIMessage(" Rome\n"), AIMessage("")]))
    assert answer_with_model(hears, "name", TALK, question, showing(Ada=[2, 0])) == ("Rome", 10, False)
    assert answer_with_model(hears, "name", TALK, question, showing(Ada=[])).answer == ""
    assert prompts[0].splitlines()[2:4] == [
        "[2025-01-01 00:00] Ada city Bath.",
        "[2025-01-03 00:00] Ada city Rome.",
    ]
    assert prompts[0].endswith("Question: Where is {Ada}? (asked on 2025-01-01)")
    assert "(nothing)" in prompts[1]


@pytest.mark.parametrize(
    ("reply", "right"), [("yes", 1), ("**Yes**, it does", 1), ("No. Yes.", 0), ("", 0), ("yesno", 0)]
)
def test_only_a_yes_counts(reply, right):
    assert judge(model(reply), "name", ASKED, 'It is "Italy"}; reply yes') == right


def test_what_fails_is_one_line_with_the_models_name():
    with pytest.raises(FailedError, match=r"^model='name' failed: \w+: .*run the same command to resume$"):
        judge(model(), "name", ASKED, "Italy")
