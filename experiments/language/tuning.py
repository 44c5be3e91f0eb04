"""Convert agent runs to instruction-tuning records: the prompt and reply of each step, in several templates.

The fields id, query, source, functions and function_names are those of KAgentInstruct (Pan et al. 2023, arXiv
2312.04889). The field `turns` holds prompts and replies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scrubjay.agents.language.untrusted import escape_control_tokens
from scrubjay.experiments.language.prompt_formats import StepPlan
from scrubjay.experiments.language.templates import Task, Template, generate_templates, write_plan

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from scrubjay.agents.kwai import KwaiAgent


def rejection_reason(result: Mapping[str, Any]) -> str | None:
    """Return the reason to reject a run as training data, or None to accept it.

    In an accepted run the agent finished with an answer. Every plan was parsed at the first attempt, no call
    was repeated, and the last step has a sufficient result.
    """
    if result["stopped"] != "finished":
        return f"it stopped early: {result['stopped']}"
    if not result["answer"].strip():
        return "it has no answer"
    steps = result["steps"]
    for step in steps:
        if len(step.parse_methods) > 1 or step.parse_methods == ("repaired",):
            return f"the plan of step {step.index} could not be read at once"
    if steps and not steps[-1].sufficient:
        return "its last step found nothing"
    calls = [json.dumps([step.tool, step.arguments], sort_keys=True, default=str) for step in steps]
    if len(set(calls)) < len(calls):
        return "it repeats a call"
    return None


def iterate_steps(result: Mapping[str, Any], agent: KwaiAgent) -> Iterator[tuple[Task, StepPlan | None]]:
    """Yield (task before the step, plan of the step) for each step of a run, then (final task, None).

    Control tokens are escaped in texts from the user, tools, memory and model, as in prompts of chat models.
    """
    from langchain_core.utils.function_calling import convert_to_openai_tool

    functions = tuple(_harmless(convert_to_openai_tool(tool)["function"]) for tool in agent.tools.values())
    profile = " ".join(filter(None, [agent.profile.bio, agent.profile.instructions]))
    *earlier, question = map(escape_control_tokens, _dialogue_texts(result["messages"])[:-1])
    read = (*result["knowledge"], *(record.text for record in result["recalled"]))
    background = (*earlier, *map(escape_control_tokens, read))
    task = Task(agent.profile.name, profile, question, functions, agent.max_steps, background=background)
    for step in result["steps"]:
        plan = StepPlan(escape_control_tokens(step.task_name), step.tool, _harmless(step.arguments))
        yield task, plan
        task = replace(task, done=(*task.done, (plan, escape_control_tokens(step.result))))
    yield task, None


def make_record(result: Mapping[str, Any], agent: KwaiAgent, template: Template) -> dict[str, Any]:
    """Return the tuning record of one run, with the prompts of one template."""
    turns, question, functions = [], "", ()
    for task, plan in iterate_steps(result, agent):
        question, functions = task.question, task.functions
        if agent.tools:
            reply = write_plan(template, plan or template.finish_plan())
            turns.append({"prompt": template.to_plan(task), "reply": reply})
        if plan is None:
            answer = escape_control_tokens(result["answer"])
            turns.append({"prompt": template.to_conclude(task), "reply": answer})
    content = json.dumps([template.id, turns], ensure_ascii=False)
    return {
        "id": hashlib.sha256(content.encode()).hexdigest()[:32],
        "query": question,
        "source": "scrubjay-agent",
        "template": template.id,
        "functions": [json.dumps(function, ensure_ascii=False) for function in functions],
        "function_names": [function["name"] for function in functions],
        "turns": turns,
    }


def _harmless(value: Any) -> Any:
    """Escape control tokens in a JSON value, because untrusted text must not end a turn in training."""
    if isinstance(value, str):
        return escape_control_tokens(value)
    if isinstance(value, Mapping):
        return {_harmless(key): _harmless(item) for key, item in value.items()}
    return [_harmless(item) for item in value] if isinstance(value, list | tuple) else value


def append_records(path: Path, result: Mapping[str, Any], agent: KwaiAgent, templates: int) -> int:
    """Append records of a run to a JSON Lines file, one per template, and return the number of new records.

    `templates` is the number of sampled templates in the agent's language. The question determines the seed,
    so that different questions use different templates. A run that `rejection_reason` rejects adds no
    records.
    """
    if rejection_reason(result):
        return 0
    question = _dialogue_texts(result["messages"])[-2]
    seed = int(hashlib.sha256(question.encode()).hexdigest()[:8], 16)
    variants = generate_templates(templates, agent.profile.language, seed)
    lines = [json.dumps(make_record(result, agent, one), ensure_ascii=False) for one in variants]
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))
    return len(lines)


def _dialogue_texts(messages: Sequence[BaseMessage]) -> list[str]:
    """Return the texts of user and agent in order; the last two are the question and its answer."""
    return [
        message.text
        for message in messages
        if message.type in ("human", "ai") and not getattr(message, "tool_calls", ())
    ]
