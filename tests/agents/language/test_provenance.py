"""Only the process decides whose word a message is: names and marks in the data lower its trust."""

from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)

from scrubjay.agents.language.provenance import (
    TAINTED,
    USER_NAMES,
    check_user_names,
    is_untrusted,
    is_untrusted_record,
    mark,
)

SUMMARY = {"lc_source": "summarization"}
CLEAN = {TAINTED: False}
TRUSTED = [
    HumanMessage("Hi."),
    HumanMessageChunk(content="Hi."),
    HumanMessage("Hi.", name="user"),
    HumanMessage("Hi.", name="Ada"),
    SystemMessage("Be brief."),
    RemoveMessage(id="1"),
    AIMessage("Hi.", response_metadata=CLEAN),
    AIMessageChunk(content="Hi.", response_metadata=CLEAN),
    ToolMessage("4", tool_call_id="1", name="calculator"),
]
UNTRUSTED = [
    AIMessage("The page says so."),
    AIMessageChunk(content="The page says so."),
    AIMessage("", tool_calls=[{"name": "read", "args": {}, "id": "1"}]),
    *(AIMessage("So it is.", response_metadata={TAINTED: value}) for value in (True, 1, "no", None, 0, "")),
    *(HumanMessage("It says so.", name=name) for name in ("tool", "function", "researcher", "ada", " user")),
    HumanMessage("Here is a summary.", additional_kwargs=SUMMARY),
    SystemMessage("Here is a summary.", additional_kwargs=SUMMARY),
    AIMessage("Here is a summary.", additional_kwargs=SUMMARY, response_metadata=CLEAN),
    ToolMessage("A page.", tool_call_id="1", name="read"),
    ToolMessage("A page.", tool_call_id="1"),
    FunctionMessage(content="A page.", name="calculator"),
    *(ChatMessage(content="A page.", role=role) for role in ("tool", "user", "assistant", "system")),
    *convert_to_messages(
        [
            {"role": "assistant", "content": "The page says so."},
            {"role": "user", "content": "It says so.", "name": "tool"},
            {"role": "user", "content": "Here is a summary.", "lc_source": "summarization"},
            ("ai", "The page says so."),
        ]
    ),
]


def judge(message):
    return is_untrusted(message, lambda result: result.name == "calculator", {*USER_NAMES, "Ada"})


@pytest.mark.parametrize("message", TRUSTED, ids=repr)
def test_the_words_of_user_owner_and_agent_are_trusted_until_they_are_marked(message: BaseMessage):
    assert not judge(message)
    assert judge(mark(message, True))
    assert message.response_metadata in ({}, CLEAN)  # `mark` returns a copy


@pytest.mark.parametrize("message", UNTRUSTED, ids=repr)
def test_every_other_message_is_untrusted(message: BaseMessage):
    assert judge(message)


def test_names_of_users_are_a_list_of_names():
    assert check_user_names(["Ada", "Bob"]) == {"Ada", "Bob"}
    for names in ("Ada", [1], [None]):
        with pytest.raises(TypeError, match="user_names="):
            check_user_names(names)  # type: ignore[arg-type]


class Note:
    def __init__(self, trust: Any) -> None:
        self.trust = trust


def test_a_record_of_a_tool_is_untrusted_and_an_unknown_author_is_refused():
    assert [is_untrusted_record(Note(trust)) for trust in ("user", "agent", "tool")] == [
        False,
        False,
        True,
    ]
    for trust in ("root", "User", "", None):
        with pytest.raises(ValueError, match="trust="):
            is_untrusted_record(Note(trust))
