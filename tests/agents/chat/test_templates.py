"""Templates of all structures contain the whole conversation, and tool calls work with each of them."""

import copy
from typing import Any

import pytest
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.utils.function_calling import convert_to_openai_tool

from scrubjay.agents import LocalChatModel
from scrubjay.agents.chat.prompt import write_prompt
from scrubjay.memory.context.quotes import build_chat_prompt

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


@pytest.mark.one_in(4, rest="slow")
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


NAMED = {
    "default": "D{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    "tool_use": "T{{ tools | tojson }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
}


def prompt_of(templates, tools=(), template=None, tokenizer: Any = None):
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = templates
    return write_prompt(tokenizer, [HumanMessage("First?")], tools, template=template)


@pytest.mark.parametrize("as_list", [False, True], ids=["dict", "list"])
def test_named_templates_follow_the_convention_of_transformers(as_list, tiny_chat):
    tool = convert_to_openai_tool(adder)
    templates = [{"name": n, "template": t} for n, t in NAMED.items()] if as_list else NAMED
    for tools, first in (([], "D"), ([tool], "T")):
        prompt = prompt_of(templates, tools, tokenizer=tiny_chat[1])
        assert prompt.startswith(first)
        assert "First?" in prompt
        assert prompt_of("plain {{ messages[0].content }}", tools, NAMED, tiny_chat[1]).startswith(first)
    assert prompt_of(templates, [], "tool_use", tiny_chat[1]).startswith("T")
    assert prompt_of({"rag": NAMED["default"]}, [tool], tokenizer=tiny_chat[1]).startswith("D")
    assert prompt_of({"default": NAMED["default"]}, [tool], tokenizer=tiny_chat[1]).startswith("D")


def test_templates_that_no_convention_selects_are_refused_by_name(tiny_chat):
    templates = {"rag": NAMED["default"], "tool_use": NAMED["tool_use"]}
    with pytest.raises(ValueError, match=r"templates are 'rag', 'tool_use', and none of them is 'default'"):
        prompt_of(templates, tokenizer=tiny_chat[1])
    with pytest.raises(ValueError, match=r"'rags': no template of this name; choose from 'rag', 'tool_use'"):
        prompt_of(templates, [], "rags", tiny_chat[1])
    assert prompt_of(templates, [], "rag", tiny_chat[1]).startswith("D")


@pytest.mark.slow
def test_a_folder_with_several_templates_answers_with_and_without_tools(tiny_chat, tmp_path):
    model, tokenizer = tiny_chat
    model.save_pretrained(tmp_path)
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = NAMED
    tokenizer.save_pretrained(tmp_path)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    local = LocalChatModel(model=str(tmp_path), temperature=0, max_tokens=40)
    assert local.invoke("Hello").text
    assert end in local.loaded_model.end_tokens
    assert local.bind_tools([adder], tool_choice="any").invoke("Hello", max_tokens=80).tool_calls
    prompt = build_chat_prompt(local.loaded_model.tokenizer, "Which?")
    assert prompt.before.startswith("D")
