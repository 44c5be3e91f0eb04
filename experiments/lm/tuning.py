"""Instruction-tuning records from agent runs: the prompt and reply of each step, in random prompt templates.

With random templates a model learns the task and not one wording. In KwaiAgents' meta-agent tuning (Pan et
al. 2023, arXiv 2312.04889) a language model writes the templates, and weak templates are dropped. Here
templates are sampled from fixed wordings, and `keep_strong` drops those with which the plans of a model
are weak. The fields id, query, source, functions and function_names of a record are those of KAgentInstruct
(same paper). The field `turns` holds prompts and replies.
"""

from __future__ import annotations

import hashlib
import json
import random
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from statistics import fmean
from string import Template as Text
from typing import TYPE_CHECKING, Any

from scrubjay.agents.language.text import escape_control_tokens
from scrubjay.experiments.lm.kagentbench import tool_score
from scrubjay.experiments.lm.prompt_formats import StepPlan, format_plan, parse_plan

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from scrubjay.agents.kwai import KwaiAgent


FINISH = "task_complete"
"""Name of the call that ends a task."""
_LISTS = ("json", "signature", "lines")
_MIN_RULES = 4


@dataclass(frozen=True)
class Task:
    """State of an agent's task, from which a template makes a prompt."""

    name: str
    """Name of the agent that performs the task, for the first section of the prompt."""
    profile: str
    """Description of the agent and its instructions."""
    question: str
    functions: tuple[dict[str, Any], ...]
    """Tools in OpenAI's format."""
    steps: int
    """Maximum number of steps."""
    done: tuple[tuple[StepPlan, str], ...] = ()
    """Completed steps with their results."""
    background: tuple[str, ...] = ()
    """Earlier dialogue, supplied knowledge and recalled records."""


@dataclass(frozen=True)
class Template:
    """One wording and section order of a prompt, made by `generate_templates`."""

    language: str
    """Language: en or zh."""
    form: str
    """Format of plans: KuaiAgent, AutoGPT, ToolLlama or ModelScope."""
    tools_as: str
    """Format of the tool list: json, signature or lines."""
    order: tuple[str, ...]
    """Order of the sections between the first section (identity) and the last (output format)."""
    wording: tuple[tuple[str, str], ...]
    """Text of each section."""

    @property
    def id(self) -> str:
        """Identifier with a hash of the content."""
        content = json.dumps([self.language, self.form, self.tools_as, self.order, self.wording])
        return f"{self.language}-{self.form.lower()}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    def to_plan(self, task: Task) -> str:
        """Return the prompt that requests the plan of the next step."""
        texts = dict(self.wording)
        tools = (*task.functions, {"name": FINISH, "description": texts["finish"], "parameters": {}})
        sections = {
            "rules": f"{texts['rules']}\n{_fill(texts['limit'], steps=task.steps)}",
            "tools": "\n".join([texts["tools_heading"], *(_describe(tool, self.tools_as) for tool in tools)]),
            "tasks": self._tasks(task),
            "question": _fill(texts["question"], question=task.question),
        }
        return "\n\n".join([self._identity(task), *(sections[name] for name in self.order), texts["form"]])

    def to_conclude(self, task: Task) -> str:
        """Return the prompt that requests the answer to the task's question."""
        texts = dict(self.wording)
        question = _fill(texts["question"], question=task.question)
        return "\n\n".join([self._identity(task), self._tasks(task), question, texts["conclude"]])

    def finish_plan(self) -> StepPlan:
        """Return the plan that ends the task."""
        return StepPlan(dict(self.wording)["finished"], FINISH)

    def _identity(self, task: Task) -> str:
        return " ".join(_fill(dict(self.wording)["identity"], name=task.name, profile=task.profile).split())

    def _tasks(self, task: Task) -> str:
        texts = dict(self.wording)
        # JSON quoting, so that a result or a memory cannot imitate a line of the prompt.
        background = [json.dumps(text, ensure_ascii=False) for text in task.background]
        lines = [
            json.dumps(
                {"thought": plan.thought, "tool": plan.tool, "args": plan.arguments, "result": result},
                ensure_ascii=False,
            )
            for plan, result in task.done
        ]
        before = [texts["background_heading"], *background, ""] if background else []
        return "\n".join([*before, texts["tasks_heading"], *(lines or [texts["no_tasks"]])])


def generate_templates(count: int, language: str, seed: int = 0) -> list[Template]:
    """Generate `count` distinct templates; equal arguments give equal templates.

    Raises ValueError on an unknown language or a count below 1.
    """
    if language not in ("en", "zh"):
        raise ValueError(f"language={language!r}: choose from en, zh")
    if count < 1:
        raise ValueError(f"count={count}: must be at least 1")
    wording, draw = _wording(language), random.Random(f"{language} {seed}")
    templates: dict[str, Template] = {}
    while len(templates) < count:
        forms = list(wording["forms"])
        form = forms[len(templates) % len(forms)]
        rules = draw.sample(wording["rules"], draw.randint(_MIN_RULES, len(wording["rules"])))
        mark = draw.choice(["- ", "* ", "{}. "])
        lines = [mark.format(number) + rule for number, rule in enumerate(rules, 1)]
        sections = {
            name: draw.choice(texts) for name, texts in wording.items() if name not in ("rules", "forms")
        }
        sections["rules"] = "\n".join([sections.pop("rules_heading"), *lines])
        sections["form"] = draw.choice(wording["forms"][form])
        order = tuple(draw.sample(["rules", "tools", "tasks", "question"], 4))
        template = Template(language, form, draw.choice(_LISTS), order, tuple(sorted(sections.items())))
        templates.setdefault(template.id, template)
    return list(templates.values())


def rate(template: Template, tasks: Sequence[tuple[Task, StepPlan]], reply: Callable[[str], str]) -> float:
    """Return the mean planning score of a model with this template, from 0 to 1.

    Tool and arguments are compared with those of good runs. `tasks` holds states from accepted runs, each
    with the plan that the run made in this state. `reply` maps a prompt to the model's reply.
    """
    if not tasks:
        raise ValueError("tasks is empty; give at least one task")
    scores = []
    for task, target in tasks:
        plan = parse_plan(template.form, reply(template.to_plan(task)), task.functions)
        reference = {"thought": target.thought, "tool_name": target.tool, "tool_args": target.arguments}
        scores.append(tool_score([reference], plan))
    return fmean(scores)


def keep_strong(ratings: Mapping[str, float], share: float = 0.8) -> list[str]:
    """Return the ids of strong templates, in descending order of rating.

    A template is strong if its rating is at least `share` times the best rating.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}: must be from 0 to 1")
    least = share * max(ratings.values(), default=0.0)
    return sorted(
        (id for id, rating in ratings.items() if rating >= least), key=lambda id: (-ratings[id], id)
    )


@cache
def _wording(language: str) -> dict[str, Any]:
    text = resources.files("scrubjay.experiments.lm").joinpath(f"tuning_{language}.toml").read_text("utf-8")
    return tomllib.loads(text)


def _fill(text: str, **values: object) -> str:
    return Text(text).substitute({name: str(value) for name, value in values.items()})


def _describe(function: Mapping[str, Any], tools_as: str) -> str:
    if tools_as == "json":
        return json.dumps(function, ensure_ascii=False)
    properties = (function.get("parameters") or {}).get("properties") or {}
    about = " ".join(str(function.get("description", "")).split())
    if tools_as == "signature":
        signature = ", ".join(f"{name}: {schema.get('type', 'any')}" for name, schema in properties.items())
        return f"{function['name']}({signature}): {about}"
    parameters = "; ".join(
        f"{name}, {schema.get('description', '')}".rstrip(", ") for name, schema in properties.items()
    )
    return f"- {function['name']}: {about}" + (f" ({parameters})" if parameters else "")


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
            reply = format_plan(template.form, plan or template.finish_plan())
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
