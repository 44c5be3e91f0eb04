"""Runs of an agent as instruction-tuning records: every step's prompt and reply, in several templates.

The shape is that of KAgentInstruct (Pan et al. 2023, arXiv 2312.04889) as far as it is known: id, query,
source, functions, function_names; `turns` holds prompts and replies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scrubjay.agents.language.untrusted import without_control_marks
from scrubjay.experiments.language.forms import Plan
from scrubjay.experiments.language.templates import Task, Template, generate_templates, write_plan

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from scrubjay.agents.kwai import KwaiAgent


def why_not(result: Mapping[str, Any]) -> str | None:
    """Return why a run teaches nothing good, None if it is worth keeping.

    Kept is what ended by itself with an answer, each step's tool run and its plan read at the first attempt,
    at least the last step with a result.
    """
    if result["stopped"] != "finished":
        return f"it stopped early: {result['stopped']}"
    if not result["answer"].strip():
        return "it has no answer"
    steps = result["steps"]
    for step in steps:
        if len(step.rungs) > 1 or step.rungs == ("repaired",):
            return f"the plan of step {step.index} could not be read at once"
    if steps and not steps[-1].sufficient:
        return "its last step found nothing"
    calls = [json.dumps([step.tool, step.arguments], sort_keys=True, default=str) for step in steps]
    if len(set(calls)) < len(calls):
        return "it repeats a call"
    return None


def moments(result: Mapping[str, Any], agent: KwaiAgent) -> Iterator[tuple[Task, Plan | None]]:
    """Yield the task before each step with the plan that was made, last the task at its end with None.

    What user, tools, memory and model wrote is free of control tokens, as prompts of chat models are.
    """
    from langchain_core.utils.function_calling import convert_to_openai_tool

    functions = tuple(_harmless(convert_to_openai_tool(tool)["function"]) for tool in agent.tools.values())
    profile = " ".join(filter(None, [agent.profile.bio, agent.profile.instructions]))
    *earlier, question = map(without_control_marks, _spoken(result["messages"])[:-1])
    read = (*result["knowledge"], *(record.text for record in result["recalled"]))
    background = (*earlier, *map(without_control_marks, read))
    task = Task(agent.profile.name, profile, question, functions, agent.max_steps, background=background)
    for step in result["steps"]:
        plan = Plan(without_control_marks(step.task_name), step.tool, _harmless(step.arguments))
        yield task, plan
        task = replace(task, done=(*task.done, (plan, without_control_marks(step.result))))
    yield task, None


def make_record(result: Mapping[str, Any], agent: KwaiAgent, template: Template) -> dict[str, Any]:
    """Return one run in one template."""
    turns, question, functions = [], "", ()
    for task, plan in moments(result, agent):
        question, functions = task.question, task.functions
        if agent.tools:
            planned = write_plan(template, plan or template.finished())
            turns.append({"prompt": template.to_plan(task), "reply": planned})
        if plan is None:
            answer = without_control_marks(result["answer"])
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
    """Return JSON whose texts are no control tokens: what others wrote must not end a turn in training."""
    if isinstance(value, str):
        return without_control_marks(value)
    if isinstance(value, Mapping):
        return {_harmless(key): _harmless(item) for key, item in value.items()}
    return [_harmless(item) for item in value] if isinstance(value, list | tuple) else value


def append_records(path: Path, result: Mapping[str, Any], agent: KwaiAgent, templates: int) -> int:
    """Add a run to a file of JSON lines, in as many templates of the agent's language; return how many.

    Which templates is up to the question, so that a file of many questions has many. None for what `why_not`
    refuses.
    """
    if why_not(result):
        return 0
    question = _spoken(result["messages"])[-2]
    seed = int(hashlib.sha256(question.encode()).hexdigest()[:8], 16)
    made = generate_templates(templates, agent.profile.language, seed)
    lines = [json.dumps(make_record(result, agent, one), ensure_ascii=False) for one in made]
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))
    return len(lines)


def _spoken(messages: Sequence[BaseMessage]) -> list[str]:
    """Return what user and agent said, in turn; the last two are the question and its answer."""
    return [
        message.text
        for message in messages
        if message.type in ("human", "ai") and not getattr(message, "tool_calls", ())
    ]
