"""The agent with OpenAI's client and protocol: valid requests, and errors of the provider."""

from __future__ import annotations

import asyncio
import json
import operator
from functools import reduce
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import ToolException
from langchain_core.tools import tool as langchain_tool
from langchain_openai import ChatOpenAI
from openai import OpenAIError

from scrubjay.agents import tool
from scrubjay.agents.kwai import KwaiAgent, Limits, Profile
from scrubjay.agents.language.prompts import LANGUAGES, load_prompts
from scrubjay.agents.tools import make_tools

from ..chat_completions import KEY, BreaksOff, Fails, Hangs, Says, calls, check, serve
from ..replayable import assert_replayable
from ..scripted_model import plan

pytestmark = pytest.mark.requires("langchain_openai")


@tool(side_effect=False)
def birth_year(name: str) -> str:
    """Return a person's year of birth."""
    if name not in ("Ada", "Alan"):
        raise ToolException(f"nobody here is called {name!r}")
    return {"Ada": "1815", "Alan": "1912"}[name]


def connect(server, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(model="small", base_url=server.url, api_key=KEY, **{"max_retries": 0, **options})  # pyright: ignore[reportArgumentType]


def steps_of(result):
    return [(step.tool, step.arguments, step.result, step.status) for step in result["steps"]]


THINKING = [
    calls("birth_year", name="Eda"),
    calls("birth_year", name="Ada"),
    calls("birth_year", name="Ada"),
    Says("And the other", calls=(("birth_year", '{"name": "Alan"}'), ("birth_year", '{"name": "Ada"}'))),
    "I have both.",
    "97 years.",
]


@pytest.mark.one_in(4)
@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke", "astream"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_native_calls_over_several_steps(way, language):
    """A failing tool, a repeated call and two calls at once; all ways of running send the same requests."""
    say = load_prompts(language).say
    with serve(*THINKING) as server:
        agent = KwaiAgent(connect(server, stream_usage=True), [birth_year], Profile(language=language))
        parts: Any = []
        if way == "astream":

            async def collect():
                return [part async for part in agent.astream("How many years?")]

            parts = asyncio.run(collect())
        elif way == "stream":
            parts = list(agent.stream("How many years?"))
        elif way == "invoke":
            parts = [agent.invoke("How many years?")]
        else:
            parts = [asyncio.run(agent.ainvoke("How many years?"))]
    result = reduce(operator.add, parts)
    assert server.rejections == []
    assert [status for *_, status in steps_of(result)] == ["error", "success", "error", "success"]
    assert result["steps"][2].result == say("repeated", tool="birth_year", step=2)
    assert (result["answer"], result["stopped"]) == ("97 years.", "finished")
    assert result["usage"]["total_tokens"] == server.used_tokens
    assert_replayable(result["messages"])
    # The prompt after a failure asks to reflect, the prompt after a success does not.
    has_reflection = [say("reflection_error") in str(prompt[-1]["content"]) for prompt in server.prompts]
    assert has_reflection == [False, True, False, True, False, False]
    last_plan = server.prompts[4]
    assert [message["role"] for message in last_plan[-4:]] == ["tool", "assistant", "tool", "tool"]
    assert say("postponed") in last_plan[-1]["content"]
    assert [bool(request.get("stream")) for request in server.requests[-1:]] == ["stream" in way]


def test_plans_as_json_text_need_no_tools_of_the_provider():
    done = plan("", "task_complete", reason="found")
    with serve(plan("when?", "birth_year", name="Ada"), Says(f"```json\n{done}\n```"), "1815.") as server:
        result = KwaiAgent(connect(server), [birth_year], planning="json").invoke("When was Ada born?")
    assert server.rejections == []
    assert steps_of(result) == [("birth_year", {"name": "Ada"}, "1815", "success")]
    assert not any("tools" in request for request in server.requests)
    assert result["answer"] == "1815."


def test_all_our_tools_have_schemas_that_it_takes():
    for language in LANGUAGES:
        with serve("Hello.") as server:
            KwaiAgent(connect(server), make_tools("auto", language=language)).invoke("Hi")
        assert server.rejections == []
        assert len(server.requests[0]["tools"]) == 10


def test_words_in_place_of_a_plan_keep_what_they_cost():
    with serve("Hello.") as server:
        result = KwaiAgent(connect(server), [birth_year]).invoke("Hi")
    (_, answer) = result["messages"]
    assert (answer.text, answer.usage_metadata["total_tokens"]) == ("Hello.", server.used_tokens)


@pytest.mark.parametrize(
    ("arguments_text", "arguments", "request_count"),
    [
        ("{'name': 'Ada',}", {"name": "Ada"}, 3),  # repaired
        ("name is Ada", {"name": "Ada"}, 4),  # requested again
    ],
)
@pytest.mark.requires("json_repair")
def test_arguments_that_are_no_json_are_repaired_or_asked_for_again(arguments_text, arguments, request_count):
    replies = [calls("birth_year", name="Ada")] if request_count == 4 else []
    with serve(Says(calls=(("birth_year", arguments_text),)), *replies, "ok", "1815.") as server:
        result = KwaiAgent(connect(server), [birth_year]).invoke("When was Ada born?")
    assert (server.rejections, len(server.requests)) == ([], request_count)
    assert [step.arguments for step in result["steps"]] == [arguments]


@pytest.mark.requires("json_repair")
def test_a_call_that_was_cut_off_is_not_run():
    """Repair would produce a call with incomplete arguments."""
    sent_texts = []

    @langchain_tool
    def mail(text: str) -> str:
        """Send a mail."""
        sent_texts.append(text)
        return "sent"

    cut = Says(calls=(("mail", '{"text": "Do not'),), finish_reason="length")
    with serve(cut, calls("mail", text="Do not come."), "ok", "Sent.") as server:
        result = KwaiAgent(connect(server), [mail]).invoke("Tell them not to come.")
    assert sent_texts == ["Do not come."]
    assert load_prompts("en").say("plan_cut") in server.prompts[1][-1]["content"]
    assert result["steps"][0].parse_methods[-1] == "tool_calls"
    text_plan = Says('{"command": {"name": "mail", "args": {"text": "Do not', finish_reason="length")
    with serve(text_plan, calls("mail", text="Stay."), "ok", "Sent.") as server:
        KwaiAgent(connect(server), [mail]).invoke("Tell them not to come.")
    assert sent_texts == ["Do not come.", "Stay."]
    with serve(cut, cut, "It is too long.") as server:
        result = KwaiAgent(connect(server), [mail]).invoke("Tell them.")
    assert (result["stopped"], len(sent_texts), server.rejections) == ("unreadable_plan", 2, [])


@pytest.mark.one_in(4)
@pytest.mark.parametrize("at", [0, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 2))])
@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (Fails(401, "Incorrect API key"), "AuthenticationError"),
        (Fails(429, "Rate limit reached"), "RateLimitError"),
        (Fails(500, "The server had an error"), "InternalServerError"),
        (BreaksOff(), "APIConnectionError"),
        (BreaksOff(4), "APIConnectionError"),
        (Hangs(60), "APITimeoutError"),
    ],
    ids=["401", "429", "500", "drop", "drop-late", "hang"],
)
def test_what_the_provider_raises_is_raised_and_the_history_goes_on(at, failure, error):
    good = [calls("birth_year", name="Ada"), "I have it.", "1815."]
    messages: list[Any] = []

    def run(server):
        # Long enough for a reply on a busy machine.
        seconds = 2 if isinstance(failure, Hangs) else 60
        for part in KwaiAgent(connect(server, timeout=seconds), [birth_year]).stream("When was Ada born?"):
            messages.extend(part.get("messages", []))
            assert_replayable(messages)

    with serve(*good[:at], failure) as server, pytest.raises(OpenAIError) as raises:
        run(server)
    assert error in [kind.__name__ for kind in type(raises.value).__mro__]
    assert len(messages) == (1 if at == 0 else 3)
    with serve("Once more: 1815.") as server:
        again = KwaiAgent(connect(server), [birth_year]).invoke([*messages, HumanMessage("And?")])
    assert (again["answer"], server.rejections) == ("Once more: 1815.", [])


def test_a_limit_of_requests_is_waited_out():
    with serve(Fails(429, "Rate limit reached", {"Retry-After": "0.02"}), "Hello.") as server:
        assert KwaiAgent(connect(server, max_retries=1)).invoke("Hi")["answer"] == "Hello."
    assert len(server.requests) == 2


def test_a_question_with_a_picture_is_sent_in_its_form():
    picture = {"type": "image", "url": "https://a.example/jay.png"}
    question = HumanMessage([{"type": "text", "text": "What bird is this?"}, picture])
    with serve("A jay.") as server:
        KwaiAgent(connect(server), [birth_year]).invoke([question])
    assert server.rejections == []
    parts = server.prompts[0][-1]["content"]
    assert {"type": "image_url", "image_url": {"url": picture["url"]}} in parts


def test_results_that_are_left_out_leave_every_call_answered():
    @tool(side_effect=False)
    def tell(number: int) -> str:
        """Return a long text."""
        return f"{number} is a number. " * 60

    replies = [calls("tell", number=number) for number in range(5)]
    with serve(*replies, "Enough.") as server:
        limits = Limits(context_tokens=900, result_tokens=400)
        result = KwaiAgent(connect(server), [tell], limits=limits).invoke("What are the numbers?")
    assert server.rejections == []
    assert any("left out to save room" in str(prompt) for prompt in server.prompts)
    assert len(result["steps"]) == 5


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "tool", "content": "x", "tool_call_id": "a"}], "role tool"),
        ([{"role": "assistant", "content": "", "tool_calls": "CALL"}], "none answers"),
        ([{"role": "assistant", "tool_calls": "CALL"}, {"role": "user", "content": "x"}], "none answers"),
        ([{"role": "robot", "content": "x"}], "unknown role"),
        ([{"role": "user", "content": None}], "content must be"),
        ([{"role": "user", "content": [{"type": "tool_use"}]}], "tool_use"),
        ([{"role": "user", "content": "x", "status": "error"}], "status"),
    ],
)
def test_the_server_refuses_what_openai_refuses(messages, message):
    call = {"id": "a", "type": "function", "function": {"name": "birth_year", "arguments": "{}"}}
    request_messages = json.loads(json.dumps(messages).replace('"CALL"', json.dumps([call])))
    with pytest.raises(ValueError, match=message):
        check({"model": "small", "messages": request_messages})
    with serve("Hello.") as server, pytest.raises(Exception, match="400"):
        connect(server).invoke([AIMessage("", tool_calls=[{"name": "birth_year", "args": {}, "id": "a"}])])
    assert len(server.rejections) == 1
