"""Templates of all structures contain the whole conversation, and tool calls work with each of them."""

import pytest
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.utils.function_calling import convert_to_openai_tool

from scrubjay.agents import LocalChatModel
from scrubjay.agents.chat.prompt import write_prompt

from .talking import adder
from .templates import TEMPLATES

pytestmark = pytest.mark.requires("transformers", "llguidance")


def make_call_message(*ids):
    return AIMessage("", tool_calls=[{"name": "adder", "args": {"a": 31, "b": 2}, "id": i} for i in ids])


def result(number, call):
    return ToolMessage(number, name="adder", tool_call_id=call)


CONVERSATIONS = {
    "plain": [SystemMessage("Be kind."), HumanMessage("First?"), AIMessage("One."), HumanMessage("Second?")],
    "greeted": [AIMessage("Welcome."), HumanMessage("First?")],
    "told twice": [
        SystemMessage("Be kind."),
        HumanMessage("First?"),
        SystemMessage("Be brief."),
        HumanMessage("Second?"),
    ],
    "only told": [SystemMessage("Be kind.")],
    "called": [
        SystemMessage("Be kind."),
        HumanMessage("First?"),
        make_call_message("1"),
        result("33", "1"),
        AIMessage("It is that."),
        HumanMessage("Second?"),
    ],
    "called twice": [
        HumanMessage("First?"),
        make_call_message("1", "2"),
        result("33", "1"),
        result("34", "2"),
    ],
}


@pytest.mark.parametrize("tools", [[], [convert_to_openai_tool(adder)]], ids=["alone", "tools"])
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_nothing_of_a_conversation_is_left_out(template, name, tools, tiny_chat):
    prompt = write_prompt(tiny_chat[1], CONVERSATIONS[name], tools, template=TEMPLATES[template])
    for message in CONVERSATIONS[name]:
        assert prompt.count(message.content) == 1 or not message.content
    calls = sum(len(getattr(message, "tool_calls", [])) for message in CONVERSATIONS[name])
    assert prompt.count('"a": 31') == calls
    assert bool(tools) == ("Add." in prompt)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_model_calls_reads_the_result_and_answers(template, tiny_chat):
    model = LocalChatModel(model=tiny_chat, chat_template=TEMPLATES[template], max_tokens=200, temperature=0)
    messages = [SystemMessage("Be kind."), HumanMessage("First?")]
    call_answer = model.bind_tools([adder], tool_choice="adder").invoke(messages)
    (call,) = call_answer.tool_calls
    assert call["name"] == "adder"
    assert all(isinstance(call["args"][name], int) for name in "ab")
    messages_with_result = [*messages, make_call_message("1"), result("33", "1")]
    usage = model.invoke(messages_with_result).usage_metadata
    assert usage is not None
    assert usage["output_tokens"] > 0


def test_calls_in_another_models_form_are_text(tiny_chat):
    from scrubjay.agents.chat.answer_format import CallSplitter

    for text in (
        '[TOOL_CALLS] [{"name": "adder"}]',
        "<|python_tag|>adder(a=1)",
        '{"name": "adder", "parameters": {}}',
    ):
        splitter = CallSplitter()
        assert "".join([*map(str, splitter.push(text)), *map(str, splitter.finish())]) == text


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('not today') }}", "not today"),
        ("{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}", "concatenate"),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "leaves out the user message"),
        ("{% for m in messages %}", "end of template"),
        ("{{ messages[7]['content'] }}", "undefined|no element"),
    ],
)
def test_what_a_template_cannot_do_is_one_line(template, reason, tiny_chat):
    with pytest.raises(ValueError, match=reason) as refusal:
        LocalChatModel(model=tiny_chat, chat_template=template).invoke("Hello")
    assert "\n" not in str(refusal.value)
    assert "chat_template" in str(refusal.value)


def test_a_role_that_a_template_leaves_out_is_refused(tiny_chat):
    messages = [HumanMessage("First?"), ChatMessage(content="Hm.", role="critic")]
    with pytest.raises(ValueError, match="leaves out the critic message"):
        write_prompt(tiny_chat[1], messages, template=TEMPLATES["phi"])
