"""What an agent does with a reply, an argument or a page takes time in proportion to its length."""

import contextlib
from datetime import datetime

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk

from scrubjay.agents.chat.calls import CallSplitter
from scrubjay.agents.kwai.drive import _Written
from scrubjay.agents.kwai.plans import PlanError, read_plan
from scrubjay.agents.kwai.replies import said, without_thoughts
from scrubjay.agents.language.address import Given, named, unheard
from scrubjay.agents.language.gate import Gate
from scrubjay.agents.language.prompts import load_prompts
from scrubjay.agents.language.text import clean, estimate_tokens, is_question
from scrubjay.agents.language.untrusted import fence
from scrubjay.agents.tools import make_tools
from scrubjay.agents.tools.base import Mistaken
from scrubjay.agents.tools.browse import choose
from scrubjay.agents.tools.moments import parse_moment

from .... import texts


def _plan(text):
    with contextlib.suppress(PlanError):
        read_plan(text)


def _moment(text):
    with contextlib.suppress(Mistaken):
        parse_moment(text, datetime.now)


def _split(text):
    splitter = CallSplitter()
    list(splitter.push(text))
    list(splitter.finish())


GATE = Gate(make_tools(["web_search"])[0])
WORK = {
    "reply": lambda text: said(AIMessage(text)),
    "plan": _plan,
    "question": lambda text: is_question(clean(text)),
    "tokens": estimate_tokens,
    "addresses": lambda text: GATE.has_ungiven({"q": text}, Given([text], [named(text)])),
    "heard": lambda text: unheard(f"{text} https://{text}", text),
    "fence": lambda text: fence(text, text, text, load_prompts("en")),
    "page": lambda text: choose(text, text, 6000, "..."),
    "moment": _moment,
    "calls": _split,
    "arguments": lambda text: _split(f'<tool_call>\n{{"name": "{text}'),
}


@pytest.mark.parametrize("unit", texts.UNITS.values(), ids=texts.UNITS)
@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_four_times_the_text_takes_about_four_times_as_long(work, unit):
    assert texts.growth(work, unit, 10_000) < 8


@pytest.mark.parametrize("unit", texts.UNITS.values(), ids=texts.UNITS)
def test_of_a_streamed_reply_no_more_is_read_again_than_what_may_begin_a_mark(unit):
    written = _Written()
    for piece in ("<think>", *[unit] * 100, "</think>", "<think>", *[unit] * 100, "</think>a", unit):
        list(written.add(AIMessageChunk(content=piece)))
        assert len(written._text) <= len("<think></think><think></think")


@pytest.mark.parametrize("unit", texts.UNITS.values(), ids=texts.UNITS)
def test_what_is_streamed_says_what_the_whole_does(unit):
    thoughts = f" <think>{unit}</think> {unit}<think>", f"<think>{unit * 9}</thin</think>a"
    for text in (*thoughts, unit, "<think"):
        for size in (1, 2, 5, 100):
            written = _Written()
            shown = "".join(
                update["answer"]
                for first in range(0, len(text), size)
                for update in written.add(AIMessageChunk(content=text[first : first + size]))
            )
            assert shown == without_thoughts(text)
            assert written.message.text == text
