"""Processing of a reply, an argument or a page takes linear time."""

import contextlib
from datetime import datetime

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk

from scrubjay.agents.chat.answer_format import CallSplitter
from scrubjay.agents.kwai.messages import AnswerStream, extract_text, strip_thoughts
from scrubjay.agents.kwai.planner import PlanError, read_plan
from scrubjay.agents.language.address import AllowedAddresses, find_addresses, find_new_addresses
from scrubjay.agents.language.gate import Gate
from scrubjay.agents.language.prompts import load_prompts
from scrubjay.agents.language.text import clean, estimate_tokens, fence, is_question
from scrubjay.agents.tools import make_tools
from scrubjay.agents.tools.base import ToolArgumentError
from scrubjay.agents.tools.browse import select_passages
from scrubjay.agents.tools.dates import parse_moment

from .... import texts


def _plan(text):
    with contextlib.suppress(PlanError):
        read_plan(text)


def _moment(text):
    with contextlib.suppress(ToolArgumentError):
        parse_moment(text, datetime.now)


def _split(text):
    splitter = CallSplitter()
    list(splitter.push(text))
    list(splitter.finish())


GATE = Gate(make_tools(["web_search"])[0])
WORK = {
    "reply": lambda text: extract_text(AIMessage(text)),
    "plan": _plan,
    "question": lambda text: is_question(clean(text)),
    "tokens": estimate_tokens,
    "addresses": lambda text: GATE.has_disallowed_address(
        {"q": text}, AllowedAddresses([text], [find_addresses(text)])
    ),
    "heard": lambda text: find_new_addresses(f"{text} https://{text}", text),
    "fence": lambda text: fence(text, text, text, load_prompts("en")),
    "page": lambda text: select_passages(text, text, 6000, "..."),
    "moment": _moment,
    "calls": _split,
    "arguments": lambda text: _split(f'<tool_call>\n{{"name": "{text}'),
}


@pytest.mark.one_in(9)
@pytest.mark.parametrize("unit", texts.UNITS.values(), ids=texts.UNITS)
@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_four_times_the_text_takes_about_four_times_as_long(work, unit):
    assert texts.growth(work, unit, 10_000) < 8


@pytest.mark.parametrize("unit", texts.UNITS.values(), ids=texts.UNITS)
def test_of_a_streamed_reply_no_more_is_read_again_than_what_may_begin_a_mark(unit):
    stream = AnswerStream()
    for piece in ("<think>", *[unit] * 100, "</think>", "<think>", *[unit] * 100, "</think>a", unit):
        stream.add(AIMessageChunk(content=piece))
        assert len(stream._text) <= len("<think></think><think></think")


@pytest.mark.parametrize("unit", texts.UNITS.values(), ids=texts.UNITS)
def test_what_is_streamed_says_what_the_whole_does(unit):
    thoughts = f" <think>{unit}</think> {unit}<think>", f"<think>{unit * 9}</thin</think>a"
    for text in (*thoughts, unit, "<think"):
        for size in (1, 2, 5, 100):
            stream = AnswerStream()
            visible_text = "".join(
                stream.add(AIMessageChunk(content=text[first : first + size]))
                for first in range(0, len(text), size)
            )
            assert visible_text == strip_thoughts(text)
            assert stream.message.text == text
