"""Random prompt templates, so that a model tuned on agent runs learns the task and not one wording.

In KwaiAgents' meta-agent tuning (Pan et al. 2023, arXiv 2312.04889) a language model writes the templates,
and weak templates are dropped. Here templates are sampled from fixed wordings, and `keep_strong` drops the
templates with which the plans of a model are weak.
"""

from __future__ import annotations

import hashlib
import json
import random
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from statistics import fmean
from string import Template as Text
from typing import Any

from scrubjay.experiments.language.prompt_formats import StepPlan, format_plan, parse_plan
from scrubjay.experiments.language.scores import tool_score

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
        sections = {
            "rules": f"{texts['rules']}\n{_fill(texts['limit'], steps=task.steps)}",
            "tools": f"{texts['tools_heading']}\n{self._tools(task)}",
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

    def _tools(self, task: Task) -> str:
        ending = {"name": FINISH, "description": dict(self.wording)["finish"], "parameters": {}}
        return "\n".join(_describe(function, self.tools_as) for function in (*task.functions, ending))

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


def write_plan(template: Template, plan: StepPlan) -> str:
    """Format a plan in the template's output format."""
    return format_plan(template.form, plan)


@cache
def _wording(language: str) -> dict[str, Any]:
    text = (
        resources.files("scrubjay.experiments.language")
        .joinpath(f"tuning_{language}.toml")
        .read_text("utf-8")
    )
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
