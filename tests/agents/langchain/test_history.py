"""Chat history: messages round-trip in all processes, texts are searchable, clearing deletes them."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory

from scrubjay.agents.langchain import BankChatMessageHistory
from scrubjay.agents.language.provenance import TAINTED
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.record import MAX_TEXT_LENGTH

MESSAGES_OF_ALL_TYPES = [
    SystemMessage("Be brief.", id="s"),
    HumanMessage(
        [
            {"type": "text", "text": "What is this?"},
            {"type": "image", "base64": "AAAA", "mime_type": "image/png"},
        ],
        name="ada",
    ),
    AIMessage(
        "",
        id="run-1",
        tool_calls=[{"name": "look", "args": {"at": [1, {"x": None}]}, "id": "c1", "type": "tool_call"}],
        invalid_tool_calls=[
            {"name": "look", "args": "{", "id": "c2", "error": "e", "type": "invalid_tool_call"}
        ],
        usage_metadata={
            "input_tokens": 3,
            "output_tokens": 4,
            "total_tokens": 7,
            "input_token_details": {"cache_read": 1},
        },
        response_metadata={"model_name": "m"},
        additional_kwargs={"k": [1]},
    ),
    ToolMessage("A bird.", tool_call_id="c1", artifact={"urls": ["u"]}, status="error", name="look"),
    AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "A bird."}]),
    AIMessageChunk(
        content="part",
        tool_call_chunks=[{"name": "n", "args": "{", "id": "i", "index": 0, "type": "tool_call_chunk"}],
    ),
    ChatMessage(content="other", role="critic"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda s: st.lists(s, max_size=2) | st.dictionaries(st.text(max_size=3), s, max_size=2),
)
MESSAGES = st.one_of(
    st.builds(
        lambda content, kwargs: HumanMessage(content, additional_kwargs=kwargs),
        st.text(),
        st.dictionaries(st.text(max_size=3), JSON, max_size=2),
    ),
    st.builds(lambda content, id: AIMessage(content, id=id), st.text(), st.none() | st.text(min_size=1)),
    st.builds(
        lambda content, artifact: ToolMessage(content, tool_call_id="c", artifact=artifact), st.text(), JSON
    ),
)


@pytest.fixture
def bank(tmp_path):
    with MemoryBank(tmp_path / "bank.db") as bank:
        yield bank


def test_messages_survive_whole(bank, tmp_path):
    BankChatMessageHistory(bank, "t").add_messages(MESSAGES_OF_ALL_TYPES)
    with MemoryBank(tmp_path / "bank.db") as other:
        loaded_messages = BankChatMessageHistory(other, "t").messages
    assert loaded_messages == MESSAGES_OF_ALL_TYPES
    assert [type(message) for message in loaded_messages] == [
        type(message) for message in MESSAGES_OF_ALL_TYPES
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.lists(MESSAGES, max_size=3), st.just("clear")), max_size=8))
def test_it_does_what_the_one_in_memory_does(steps):
    with MemoryBank(":memory:") as bank:
        history_in_bank, reference = BankChatMessageHistory(bank, "t", ("ada",)), InMemoryChatMessageHistory()
        neighbour = BankChatMessageHistory(bank, "t", ("bob",))
        neighbour.add_messages([HumanMessage("stays")])
        for step in steps:
            for history in (history_in_bank, reference):
                history.clear() if step == "clear" else history.add_messages(step)
            assert history_in_bank.messages == reference.messages
        assert BankChatMessageHistory(bank, "t", ("ada",)).messages == reference.messages
        texts = [m for m in reference.messages if m.text.replace("\0", "").strip()]
        assert len(bank) == 1 + len(texts)
        assert neighbour.messages == [HumanMessage("stays")]


def test_words_are_recalled_with_who_said_them(bank):
    history = BankChatMessageHistory(bank, "t", ("ada",), trusted_answers=True)
    history.add_user_message("I gather acorns.")
    history.add_ai_message("Noted: acorns.")
    history.add_messages(MESSAGES_OF_ALL_TYPES[2:4])
    history.add_messages([AIMessage("The page says acorns are birds.")])
    history.add_user_message("I gather acorns.")
    trust = [(r.text, r.trust, r.provenance["role"]) for r in bank.recent(9, namespace=("ada",))]
    assert trust == [
        ("I gather acorns.", "user", "user"),
        ("Noted: acorns.", "agent", "assistant"),
        ("A bird.", "tool", "tool"),
        ("The page says acorns are birds.", "tool", "assistant"),
        ("I gather acorns.", "user", "user"),
    ]
    assert bank.search("acorns")[0].provenance["thread"] == "t"


def test_clearing_leaves_nothing_in_the_file(bank, tmp_path):
    history = BankChatMessageHistory(bank, "t")
    history.add_messages([HumanMessage("the-secret-word"), AIMessage("the-secret-answer")])
    BankChatMessageHistory(bank, "u").add_user_message("kept-word")
    assert len(history.messages) == 2
    history.clear()
    assert history.messages == []
    assert [record.text for record in bank.recent(9)] == ["kept-word"]
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"secret" not in content
    assert b"kept-word" in content


def test_what_json_cannot_hold_keeps_nothing_of_its_turn(bank):
    history = BankChatMessageHistory(bank, "t")
    with pytest.raises(TypeError, match=r"bank='facts\.db': pass a bank"):
        BankChatMessageHistory("facts.db", "t")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="of type 'tool': all its fields must be JSON-serializable"):
        history.add_messages([HumanMessage("fine"), ToolMessage("x", tool_call_id="c", artifact=object())])
    assert history.messages == []
    assert len(bank) == 0


def test_another_process_and_threads_write_the_same_thread(bank, tmp_path):
    history = BankChatMessageHistory(bank, "t")
    code = (
        "import sys\n"
        "from scrubjay.memory import MemoryBank\n"
        "from scrubjay.agents.langchain import BankChatMessageHistory\n"
        "with MemoryBank(sys.argv[1]) as bank:\n"
        "    for n in range(20): BankChatMessageHistory(bank, 't').add_user_message(f'other {n}')"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "bank.db")])
    workers = [
        threading.Thread(
            target=lambda name=name: [history.add_user_message(f"{name} {n}") for n in range(10)]
        )
        for name in ("a", "b")
    ]
    for worker in workers:
        worker.start()
    num_messages = 0
    while other.poll() is None or any(worker.is_alive() for worker in workers):
        now = history.messages
        assert len(now) >= num_messages
        num_messages = len(now)
    assert other.returncode == 0
    for name, count in (("a", 10), ("b", 10), ("other", 20)):
        texts = [m.text for m in history.messages if m.text.startswith(f"{name} ")]
        assert texts == [f"{name} {n}" for n in range(count)]


def test_a_clearing_elsewhere_is_leaf_messages(bank, tmp_path):
    history = BankChatMessageHistory(bank, "t")
    history.add_user_message("before")
    assert len(history.messages) == 1
    with MemoryBank(tmp_path / "bank.db") as other:
        BankChatMessageHistory(other, "t").clear()
        BankChatMessageHistory(other, "t").add_user_message("after")
    assert [m.text for m in history.messages] == ["after"]


async def test_a_chain_with_history_remembers(bank):
    def answer(messages: list[BaseMessage]) -> AIMessage:
        return AIMessage(f"I know {len(messages)}.")

    chain = RunnableWithMessageHistory(
        RunnableLambda(answer),
        lambda session_id: BankChatMessageHistory(bank, session_id),
    )
    config: RunnableConfig = {"configurable": {"session_id": "s"}}
    assert chain.invoke([HumanMessage("one")], config).text == "I know 1."
    assert (await chain.ainvoke([HumanMessage("two")], config)).text == "I know 3."
    assert [m.text for m in await BankChatMessageHistory(bank, "s").aget_messages()] == [
        "one",
        "I know 1.",
        "two",
        "I know 3.",
    ]


def test_a_record_names_what_is_no_text_and_the_history_has_all_of_it(bank):
    picture = {"type": "image", "base64": "AAAA", "mime_type": "image/png"}
    messages: list[BaseMessage] = [
        HumanMessage([{"type": "text", "text": "Which bird?"}, picture]),
        AIMessage([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "A jay."}]),
        HumanMessage([picture]),
    ]
    history = BankChatMessageHistory(bank, "t")
    history.add_messages(messages)
    assert history.messages == messages
    note = "[left out, because only text is read: image]"
    assert [record.text for record in bank.recent(9)] == [f"Which bird?\n{note}", "A jay.", note]


def test_of_a_message_too_long_for_the_bank_the_bank_has_the_head_and_the_history_all(bank):
    history = BankChatMessageHistory(bank, "a")
    history.add_messages([HumanMessage("word " * (MAX_TEXT_LENGTH // 4))])
    assert len(history.messages[0].text) > MAX_TEXT_LENGTH
    assert bank.recent(1)[0].text.endswith("characters cut]")


@pytest.mark.parametrize(
    ("mark", "trusted_answers", "trust"),
    [
        (True, False, "tool"),
        (True, True, "tool"),
        (False, False, "agent"),
        (None, True, "agent"),
        (None, False, "tool"),  # the chain may have read a document
    ],
)
def test_an_answer_is_the_agent_s_only_if_the_agent_or_the_caller_says_that_it_read_nothing_from_outside(
    mark, trusted_answers, trust
):
    with MemoryBank(":memory:") as bank:
        answer = AIMessage("Ada lives in Rome.", response_metadata={} if mark is None else {TAINTED: mark})
        history = BankChatMessageHistory(bank, "t", trusted_answers=trusted_answers)
        history.add_messages([HumanMessage("Where is Ada?"), answer])
        (record_of_answer,) = (record for record in bank.recent(9) if record.text == answer.text)
        assert record_of_answer.trust == trust
        history.add_messages([HumanMessage("Sure?"), AIMessage("Yes.", response_metadata={TAINTED: False})])
        assert bank.recent(1)[0].trust == trust  # after untrusted text no answer is the agent's


@pytest.mark.parametrize(
    "message",
    [
        HumanMessage("Here is a summary.", additional_kwargs={"lc_source": "summarization"}),
        HumanMessage("The page says so.", name="researcher"),
        ChatMessage(content="The page says so.", role="tool"),
    ],
)
def test_an_untrusted_message_taints_the_thread(message):
    with MemoryBank(":memory:") as bank:
        history = BankChatMessageHistory(bank, "t", trusted_answers=True)
        history.add_messages([message])
        assert {record.trust for record in bank.recent(9)} <= {"tool"}
        history.add_messages([HumanMessage("And?"), AIMessage("So it is.")])
        assert {record.text: record.trust for record in bank.recent(2)} == {
            "And?": "user",
            "So it is.": "tool",
        }


def test_names_of_users_are_the_caller_s_word():
    with MemoryBank(":memory:") as bank:
        history = BankChatMessageHistory(bank, "t", user_names=["Ada"])
        history.add_messages([HumanMessage("I live in Rome.", name="Ada")])
        assert bank.recent(1)[0].trust == "user"
        with pytest.raises(TypeError, match="user_names='Ada'"):
            BankChatMessageHistory(bank, "t", user_names="Ada")


def test_every_message_of_a_foreign_bank_is_marked(tmp_path):
    messages = [HumanMessage("I am Ada."), AIMessage("Hello.", response_metadata={TAINTED: False})]
    with MemoryBank(tmp_path / "bank.db") as bank:
        BankChatMessageHistory(bank, "t").add_messages(messages)
        assert BankChatMessageHistory(bank, "t").messages == messages
    with MemoryBank(tmp_path / "bank.db", foreign=True) as bank:
        history = BankChatMessageHistory(bank, "t")
        history.add_messages(messages)
        assert [message.response_metadata for message in history.messages] == [{TAINTED: True}] * 4
