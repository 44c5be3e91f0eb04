"""Prompts for a local model stay in its view until the answer ends."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import PrivateAttr

from scrubjay.agents import LocalChatModel, tool
from scrubjay.agents.kwai import KwaiAgent, Limits, Profile
from scrubjay.agents.kwai.limits import make_limits, make_prompt_token_counter
from scrubjay.agents.language.text import estimate_tokens, make_token_counter
from scrubjay.agents.tools import make_tools
from scrubjay.experiments.commands.agent import AgentOptions
from scrubjay.memory import MemoryBank, context

from ..scripted_model import ScriptedModel, call, plan

pytestmark = pytest.mark.requires("transformers")


class Counting(LocalChatModel):
    """Model that counts the tokens of its prompts with its own template and returns scripted replies."""

    _replies: list = PrivateAttr(default_factory=list)
    _sizes: list = PrivateAttr(default_factory=list)

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self._sizes.append(self.get_num_tokens_from_messages(messages, kwargs.get("tools")))
        reply = self._replies.pop(0)
        message = AIMessage(reply) if isinstance(reply, str) else reply
        return ChatResult(generations=[ChatGeneration(message=message)])


@tool(side_effect=False)
def look_up(topic: str) -> str:
    """Look something up and return a long text."""
    return f"{topic} is much spoken of, and little known. " * 200


def sizes_of(model, replies, tools, language="en", turns=40):
    """Ask after a long conversation, with many memories and long results; return the sizes of all prompts."""
    model._replies = list(replies)
    with MemoryBank(":memory:") as bank:
        for number in range(30):
            bank.add(f"Jay number {number} buried its acorns under {number + 3} oaks. " * 6)
        agent = KwaiAgent(
            model,
            tools,
            Profile(language=language),
            bank,
            planning="json" if isinstance(replies[0], str) else "native",
        )
        dialogue = [HumanMessage("Is it so?"), AIMessage("It is.")] * turns
        result = agent.invoke([*dialogue, HumanMessage("Where did the jays bury acorns? 橡子呢？")])
    assert result["answer"] == "Under oaks."
    return model._sizes, result


NATIVE = [call("look_up", topic=name) for name in ("jays", "oaks", "acorns")]
JSON = [plan("find out", "look_up", topic=name) for name in ("jays", "oaks", "acorns")]
DONE = plan("", "task_complete")


@pytest.mark.one_in(4)
@pytest.mark.parametrize("replies", [[*NATIVE, "ok"], [*JSON, DONE]], ids=["native", "json"])
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("policy", ["sinks", "full"])
def test_no_prompt_outgrows_what_is_in_view(tiny_chat, replies, language, policy):
    # One token per byte: token counts differ as much as possible from those of other tokenizers.
    model = Counting(model=tiny_chat, policy=policy, budget=4000, max_tokens=300)
    sizes, result = sizes_of(model, [*replies, "Under oaks."], [look_up], language)
    view_length = 4000 if policy == "sinks" else 4096
    assert len(sizes) == 5
    assert max(sizes) + 300 <= view_length
    assert max(sizes) > view_length / 2  # the budget is used
    assert all(step.status == "success" for step in result["steps"])


def test_a_local_model_says_how_much_it_sees(tiny_chat):
    def view_length(**settings):
        return LocalChatModel(model=tiny_chat, **{"max_tokens": 96, **settings}).tokens_in_view

    assert view_length(budget=1000) == 904
    assert view_length(policy="window", budget=1000) == 904
    snapkv = context.make("snapkv", budget=1000)
    assert view_length(policy=context.make("flexprefill", policy=snapkv)) == 904
    assert view_length(policy="full") == view_length(budget=9000) == 4000  # trained on 4,096
    with pytest.raises(ValueError, match=r"max_tokens=96.*budget is 64 tokens"):
        view_length(budget=64)


def test_limits_follow_the_model_and_what_is_given_follows_nothing(tiny_chat):
    model = LocalChatModel(model=tiny_chat, budget=1000, max_tokens=200)
    assert make_limits(model, seconds=9.0) == Limits(context_tokens=800, result_tokens=201, seconds=9.0)
    assert make_limits(model, context_tokens=9000).context_tokens == 9000
    assert KwaiAgent(model, limits=Limits()).limits == Limits()
    assert (make_token_counter(model)("jay"), make_prompt_token_counter(model)("jay")) == (3, 3 + 16)
    hosted_model = ScriptedModel()
    assert (make_limits(hosted_model), make_token_counter(hosted_model)) == (Limits(), estimate_tokens)
    assert make_prompt_token_counter(hosted_model) == estimate_tokens


@pytest.mark.parametrize("most", [11, 16])
def test_of_a_long_result_as_many_tokens_are_kept_as_the_limit_says(tiny_chat, most):
    model = Counting(model=tiny_chat, policy="full", max_tokens=300)
    model._replies = [NATIVE[0], "ok", "Under oaks."]
    result = KwaiAgent(model, [look_up], limits=make_limits(model, result_tokens=most)).invoke("Where?")
    full_result = look_up.invoke({"topic": "jays"})
    head, note = result["steps"][0].result.split("\n")
    assert head == full_result[:most]
    assert f"{len(full_result.strip()) - most} characters cut" in note


def test_a_question_that_is_out_of_view_is_refused_before_it_is_remembered(tiny_chat):
    model = LocalChatModel(model=tiny_chat, budget=600, max_tokens=100)
    with MemoryBank(":memory:") as bank:
        with pytest.raises(ValueError, match=r"context_tokens=500: .* need \d,\d+ .*larger LocalChatModel"):
            KwaiAgent(model, [look_up], memory=bank).invoke("Where?")
        assert bank.recent(9) == []


@pytest.mark.slow
def test_the_command_s_defaults_fit_all_tools_into_the_view_of_smollm2(smollm2):
    options = AgentOptions()
    model = Counting(model=smollm2, policy=options.policy, budget=options.budget, max_tokens=512)
    tools = [*make_tools("auto"), look_up]
    sizes, _ = sizes_of(model, [*NATIVE, "ok", "Under oaks."], tools)
    assert model.tokens_in_view is not None
    assert max(sizes) + 512 <= min(model.tokens_in_view, 8192)
