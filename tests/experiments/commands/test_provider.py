"""`scrubjay agent --model openai:...` with a local server: answers, and one line per failure."""

from __future__ import annotations

import io
import json

import pytest

from scrubjay.memory import MemoryBank

from ...agents.kwai.chat_completions import BreaksOff, Fails, Hangs, Says, calls

pytestmark = pytest.mark.requires("langchain_openai", "langchain")

MODEL = ("--model", "openai:small")
ADD = [calls("calculator", expression="2 + 3"), "I have it."]


def test_the_command_answers_with_a_tool(openai, scrubjay):
    server = openai(*ADD, "It is 5.")
    code, out, err = scrubjay("agent", "What is 2 + 3?", *MODEL, "--tools", "calculator,time_delta")
    assert (code, out, server.rejections) == (0, "It is 5.\n", [])
    assert '→ calculator({"expression": "2 + 3"})\n← 2 + 3 = 5\n' in err
    assert [len(request.get("tools", [])) for request in server.requests] == [2, 2, 0]
    assert [request["stream"] for request in server.requests] == [False, False, True]


def test_a_conversation_with_a_memory(openai, here, monkeypatch):
    server = openai("Noted.", *ADD, "5 for Ada.")
    monkeypatch.setattr("sys.stdin", io.StringIO("I am Ada.\nWhat is 2 + 3?\n"))
    code, out, _ = here("agent", *MODEL, "--tools", "calculator", "--memory", "m.db", "--json")
    assert (code, server.rejections) == (0, [])
    assert [json.loads(line)["answer"] for line in out.splitlines()] == ["Noted.", "5 for Ada."]
    assert {"role": "user", "content": "I am Ada."} in server.prompts[1]
    with MemoryBank("m.db") as bank:
        assert [record.kind for record in bank.recent(9)] == ["conversation"] * 3 + ["task", "conversation"]
    server = openai("You are Ada.")
    here("agent", "Who am I?", *MODEL, "--tools", "none", "--memory", "m.db")
    assert "I am Ada." in server.prompts[0][-1]["content"]


def test_settings_reach_the_provider(openai, here):
    server = openai("Hello.")
    words = ["--temperature", "0.5", "--max-tokens", "9", "--tools", "none"]
    assert here("agent", "Hi", *MODEL, *words)[:2] == (0, "Hello.\n")
    (request,) = server.requests
    assert (request["temperature"], request["max_completion_tokens"]) == (0.5, 9)


SOON = {"retry-after-ms": "1"}


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (Fails(401, "Incorrect API key provided: sk-wr***ng."), "401 - Incorrect API key provided"),
        (Fails(404, "The model `small` does not exist"), "The model `small` does not exist"),
        (Fails(429, "Rate limit reached for small.", SOON), "Rate limit reached"),
        (Fails(500, "The server had an error.", SOON), "The server had an error"),
        (BreaksOff(4), "onnection error. ("),
        pytest.param(Hangs(60), "timed out", marks=pytest.mark.slow),
    ],
    ids=["401", "404", "429", "500", "drop", "hang"],
)
def test_a_failure_is_one_line(openai, here, failure, message):
    server = openai(*ADD, failure)
    seconds = "2" if isinstance(failure, Hangs) else "60"  # long enough for servers that answer
    words = ["--tools", "calculator", "--memory", "m.db", "--max-seconds", seconds]
    code, out, err = here("agent", "What is 2 + 3?", *MODEL, *words)
    last = err.splitlines()[-1]
    assert code == 1
    assert out in ("", "some words that \n")
    assert last.startswith("scrubjay: model='openai:small' failed: ")
    assert message in last
    assert "Traceback" not in err
    assert server.rejections == []
    with MemoryBank("m.db") as bank:  # results of the failed question are kept
        assert "2 + 3 = 5" in bank.recent(9)[-1].text


@pytest.mark.slow
def test_a_server_that_is_not_there_is_one_line(openai, here, monkeypatch):
    openai("Hello.")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    code, out, err = here("agent", "Hi", *MODEL, "--tools", "none")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "Connection refused" in err


def test_a_missing_key_is_told_before_anything_happens(usage_error, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "OPENAI_API_KEY" in usage_error("agent", "Hi", *MODEL, "--tools", "none", "--memory", "m.db")


@pytest.mark.parametrize("terminal", [True, False])
def test_after_a_failure_a_conversation_on_a_terminal_goes_on(openai, here, monkeypatch, terminal):
    server = openai("Hello, Ada.", Fails(400, "no"), "You are Ada.")
    stdin = io.StringIO("I am Ada.\nWhat?\nWho am I?\n")
    stdin.isatty = lambda: terminal
    monkeypatch.setattr("sys.stdin", stdin)
    code, out, err = here("agent", *MODEL, "--tools", "none")
    assert "400 - no" in err
    if not terminal:
        assert (code, out) == (1, "Hello, Ada.\n")
        return
    assert (code, out, server.rejections) == (0, "Hello, Ada.\nYou are Ada.\n", [])
    texts = [message["content"] for message in server.prompts[-1][1:-1]]
    assert texts == [
        "I am Ada.",
        "Hello, Ada.",
    ]  # a question without an answer is not part of the conversation


@pytest.mark.parametrize("last", [Says("It is a long", finish_reason="length"), Says(finish_reason="length")])
def test_an_answer_that_is_cut_says_so(openai, here, last):
    openai(*ADD, last)
    code, out, err = here("agent", "What is 2 + 3?", *MODEL, "--tools", "calculator")
    assert code == 0
    assert out == f"{last.text or 'I could not write an answer to this question.'}\n"
    assert err.splitlines()[-1].startswith("the answer was cut at the token limit")
