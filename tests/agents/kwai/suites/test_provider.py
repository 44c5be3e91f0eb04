"""A provider's own client and wire: OpenAI takes what the agent sends, and what goes wrong is borne."""

from __future__ import annotations

import asyncio
import json
import operator
from functools import reduce
from typing import Any

import pytest

pytest.importorskip("langchain_openai")

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import ToolException
from langchain_core.tools import tool as undeclared
from langchain_openai import ChatOpenAI
from openai import OpenAIError

from scrubjay.agents import tool
from scrubjay.agents.kwai import KwaiAgent, Limits, Profile
from scrubjay.agents.language.prompts import LANGUAGES, load_prompts
from scrubjay.agents.tools import make_tools

from ..chat_completions import KEY, BreaksOff, Fails, Hangs, Says, calls, check, serve
from ..replayable import assert_replayable
from ..scripted import plan


@tool(side_effect=False)
def born(name: str) -> str:
    """Return the year in which somebody was born."""
    if name not in ("Ada", "Alan"):
        raise ToolException(f"nobody here is called {name!r}")
    return {"Ada": "1815", "Alan": "1912"}[name]


def connect(server, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(model="small", base_url=server.url, api_key=KEY, **{"max_retries": 0, **options})  # pyright: ignore[reportArgumentType]


def steps_of(result):
    return [(step.tool, step.arguments, step.result, step.status) for step in result["steps"]]


THINKING = [
    calls("born", name="Eda"),
    calls("born", name="Ada"),
    calls("born", name="Ada"),
    Says("And the other", calls=(("born", '{"name": "Alan"}'), ("born", '{"name": "Ada"}'))),
    "I have both.",
    "97 years.",
]


@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke", "astream"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_native_calls_over_several_steps(way, language):
    """A tool that fails, a call again, two calls at once; each way of running sends the same."""
    say = load_prompts(language).say
    with serve(*THINKING) as server:
        agent = KwaiAgent(connect(server, stream_usage=True), [born], Profile(language=language))
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
    assert server.refused == []
    assert [status for *_, status in steps_of(result)] == ["error", "success", "error", "success"]
    assert result["steps"][2].result == say("repeated", tool="born", step=2)
    assert (result["answer"], result["stopped"]) == ("97 years.", "finished")
    assert result["usage"]["total_tokens"] == server.used
    assert_replayable(result["messages"])
    # After what failed it is told to think again, after what succeeded it is not.
    reflected = [say("reflection_error") in str(prompt[-1]["content"]) for prompt in server.prompts]
    assert reflected == [False, True, False, True, False, False]
    told = server.prompts[4]
    assert [message["role"] for message in told[-4:]] == ["tool", "assistant", "tool", "tool"]
    assert say("postponed") in told[-1]["content"]
    assert [bool(request.get("stream")) for request in server.requests[-1:]] == ["stream" in way]


def test_plans_as_json_text_need_no_tools_of_the_provider():
    done = plan("", "task_complete", reason="found")
    with serve(plan("when?", "born", name="Ada"), Says(f"```json\n{done}\n```"), "1815.") as server:
        result = KwaiAgent(connect(server), [born], planning="json").invoke("When was Ada born?")
    assert server.refused == []
    assert steps_of(result) == [("born", {"name": "Ada"}, "1815", "success")]
    assert not any("tools" in request for request in server.requests)
    assert result["answer"] == "1815."


def test_all_our_tools_have_schemas_that_it_takes():
    for language in LANGUAGES:
        with serve("Hello.") as server:
            KwaiAgent(connect(server), make_tools("auto", language=language)).invoke("Hi")
        assert server.refused == []
        assert len(server.requests[0]["tools"]) == 10


def test_words_in_place_of_a_plan_keep_what_they_cost():
    with serve("Hello.") as server:
        result = KwaiAgent(connect(server), [born]).invoke("Hi")
    (_, answer) = result["messages"]
    assert (answer.text, answer.usage_metadata["total_tokens"]) == ("Hello.", server.used)


@pytest.mark.parametrize(
    ("written", "arguments", "asked"),
    [
        ("{'name': 'Ada',}", {"name": "Ada"}, 3),  # repaired
        ("name is Ada", {"name": "Ada"}, 4),  # asked for again
    ],
)
def test_arguments_that_are_no_json_are_repaired_or_asked_for_again(written, arguments, asked):
    replies = [calls("born", name="Ada")] if asked == 4 else []
    with serve(Says(calls=(("born", written),)), *replies, "ok", "1815.") as server:
        result = KwaiAgent(connect(server), [born]).invoke("When was Ada born?")
    assert (server.refused, len(server.requests)) == ([], asked)
    assert [step.arguments for step in result["steps"]] == [arguments]


def test_a_call_that_was_cut_off_is_not_run():
    """Repair would make a call of it, with half of what was meant."""
    sent = []

    @undeclared
    def mail(text: str) -> str:
        """Send a mail."""
        sent.append(text)
        return "sent"

    cut = Says(calls=(("mail", '{"text": "Do not'),), finish_reason="length")
    with serve(cut, calls("mail", text="Do not come."), "ok", "Sent.") as server:
        result = KwaiAgent(connect(server), [mail]).invoke("Tell them not to come.")
    assert sent == ["Do not come."]
    assert load_prompts("en").say("plan_cut") in server.prompts[1][-1]["content"]
    assert result["steps"][0].rungs[-1] == "tool_calls"
    written = Says('{"command": {"name": "mail", "args": {"text": "Do not', finish_reason="length")
    with serve(written, calls("mail", text="Stay."), "ok", "Sent.") as server:
        KwaiAgent(connect(server), [mail]).invoke("Tell them not to come.")
    assert sent == ["Do not come.", "Stay."]
    with serve(cut, cut, "It is too long.") as server:
        result = KwaiAgent(connect(server), [mail]).invoke("Tell them.")
    assert (result["stopped"], len(sent), server.refused) == ("unreadable_plan", 2, [])


@pytest.mark.parametrize("at", range(3))
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
    good = [calls("born", name="Ada"), "I have it.", "1815."]
    messages: list[Any] = []

    def run(server):
        # Long enough for what does answer, on a busy machine too.
        seconds = 2 if isinstance(failure, Hangs) else 60
        for part in KwaiAgent(connect(server, timeout=seconds), [born]).stream("When was Ada born?"):
            messages.extend(part.get("messages", []))
            assert_replayable(messages)

    with serve(*good[:at], failure) as server, pytest.raises(OpenAIError) as raised:
        run(server)
    assert error in [kind.__name__ for kind in type(raised.value).__mro__]
    assert len(messages) == (1 if at == 0 else 3)
    with serve("Once more: 1815.") as server:
        again = KwaiAgent(connect(server), [born]).invoke([*messages, HumanMessage("And?")])
    assert (again["answer"], server.refused) == ("Once more: 1815.", [])


def test_a_limit_of_requests_is_waited_out():
    with serve(Fails(429, "Rate limit reached", {"Retry-After": "0.02"}), "Hello.") as server:
        assert KwaiAgent(connect(server, max_retries=1)).invoke("Hi")["answer"] == "Hello."
    assert len(server.requests) == 2


def test_a_question_with_a_picture_is_sent_in_its_form():
    picture = {"type": "image", "url": "https://a.example/jay.png"}
    asked = HumanMessage([{"type": "text", "text": "What bird is this?"}, picture])
    with serve("A jay.") as server:
        KwaiAgent(connect(server), [born]).invoke([asked])
    assert server.refused == []
    parts = server.prompts[0][-1]["content"]
    assert {"type": "image_url", "image_url": {"url": picture["url"]}} in parts


def test_results_that_are_left_out_leave_every_call_answered():
    @tool(side_effect=False)
    def tell(number: int) -> str:
        """Tell a lot."""
        return f"{number} is a number. " * 60

    replies = [calls("tell", number=number) for number in range(5)]
    with serve(*replies, "Enough.") as server:
        limits = Limits(context_tokens=900, result_tokens=400)
        result = KwaiAgent(connect(server), [tell], limits=limits).invoke("What are the numbers?")
    assert server.refused == []
    assert any("left out to save room" in str(prompt) for prompt in server.prompts)
    assert len(result["steps"]) == 5


@pytest.mark.parametrize(
    ("messages", "told"),
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
def test_the_server_refuses_what_openai_refuses(messages, told):
    call = {"id": "a", "type": "function", "function": {"name": "born", "arguments": "{}"}}
    given = json.loads(json.dumps(messages).replace('"CALL"', json.dumps([call])))
    with pytest.raises(ValueError, match=told):
        check({"model": "small", "messages": given})
    with serve("Hello.") as server, pytest.raises(Exception, match="400"):
        connect(server).invoke([AIMessage("", tool_calls=[{"name": "born", "args": {}, "id": "a"}])])
    assert len(server.refused) == 1
