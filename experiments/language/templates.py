"""Prompt templates by the hundred, so that a model tuned on runs learns the work and not its wording.

KwaiAgents' meta-agent tuning (Pan et al. 2023, arXiv 2312.04889) lets a language model write them and drops
the weak. Here they are drawn from wordings of ours, and `keep_strong` drops those with which a model plans
worse than others.
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

from scrubjay.experiments.language.forms import Plan, read_form, write_form
from scrubjay.experiments.language.scores import tool_score

FINISH = "task_complete"
"""Name of the call that ends the work."""
_LISTS = ("json", "signature", "lines")
_FEWEST_RULES = 4


@dataclass(frozen=True)
class Task:
    """A question in an agent's hands, as a template shows it."""

    name: str
    """The agent's."""
    profile: str
    """About the agent and how it works."""
    question: str
    functions: tuple[dict[str, Any], ...]
    """Tools, in OpenAI's format."""
    steps: int
    """How many are allowed."""
    done: tuple[tuple[Plan, str], ...] = ()
    """Steps with their results."""
    background: tuple[str, ...] = ()
    """What was said before, supplied with the question, or remembered."""


@dataclass(frozen=True)
class Template:
    """One wording and order of a prompt. `generate_templates` makes them."""

    language: str
    """en or zh."""
    form: str
    """How plans are written: KuaiAgent, AutoGPT, ToolLlama or ModelScope."""
    tools_as: str
    """How tools are listed: json, signature or lines."""
    order: tuple[str, ...]
    """Sections of the prompt, between the first one, who it is, and the last, the form."""
    wording: tuple[tuple[str, str], ...]
    """The text of each section."""

    @property
    def id(self) -> str:
        """A name that differs wherever the template does."""
        content = json.dumps([self.language, self.form, self.tools_as, self.order, self.wording])
        return f"{self.language}-{self.form.lower()}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"

    def to_plan(self, task: Task) -> str:
        """Return the prompt for the next step."""
        said = dict(self.wording)
        sections = {
            "rules": f"{said['rules']}\n{_fill(said['limit'], steps=task.steps)}",
            "tools": f"{said['tools_heading']}\n{self._tools(task)}",
            "tasks": self._tasks(task),
            "question": _fill(said["question"], question=task.question),
        }
        return "\n\n".join([self._identity(task), *(sections[name] for name in self.order), said["form"]])

    def to_conclude(self, task: Task) -> str:
        """Return the prompt for the answer."""
        said = dict(self.wording)
        question = _fill(said["question"], question=task.question)
        return "\n\n".join([self._identity(task), self._tasks(task), question, said["conclude"]])

    def finished(self) -> Plan:
        """Return the plan that ends the work."""
        return Plan(dict(self.wording)["finished"], FINISH)

    def _identity(self, task: Task) -> str:
        return " ".join(_fill(dict(self.wording)["identity"], name=task.name, profile=task.profile).split())

    def _tools(self, task: Task) -> str:
        ending = {"name": FINISH, "description": dict(self.wording)["finish"], "parameters": {}}
        return "\n".join(_describe(function, self.tools_as) for function in (*task.functions, ending))

    def _tasks(self, task: Task) -> str:
        said = dict(self.wording)
        # As JSON: neither a result nor a memory can pass for a line of the prompt.
        known = [json.dumps(text, ensure_ascii=False) for text in task.background]
        lines = [
            json.dumps(
                {"thought": plan.thought, "tool": plan.tool, "args": plan.arguments, "result": result},
                ensure_ascii=False,
            )
            for plan, result in task.done
        ]
        before = [said["background_heading"], *known, ""] if known else []
        return "\n".join([*before, said["tasks_heading"], *(lines or [said["no_tasks"]])])


def generate_templates(count: int, language: str, seed: int = 0) -> list[Template]:
    """Return `count` templates, no two alike, the same for the same seed.

    Raises ValueError on an unknown language.
    """
    if language not in ("en", "zh"):
        raise ValueError(f"language={language!r}: there are templates in en, zh")
    if count < 1:
        raise ValueError(f"count={count}: at least 1 is needed")
    wording, draw = _wording(language), random.Random(f"{language} {seed}")
    made: dict[str, Template] = {}
    while len(made) < count:
        forms = list(wording["forms"])
        form = forms[len(made) % len(forms)]
        rules = draw.sample(wording["rules"], draw.randint(_FEWEST_RULES, len(wording["rules"])))
        mark = draw.choice(["- ", "* ", "{}. "])
        lines = [mark.format(number) + rule for number, rule in enumerate(rules, 1)]
        chosen = {
            name: draw.choice(texts) for name, texts in wording.items() if name not in ("rules", "forms")
        }
        chosen["rules"] = "\n".join([chosen.pop("rules_heading"), *lines])
        chosen["form"] = draw.choice(wording["forms"][form])
        order = tuple(draw.sample(["rules", "tools", "tasks", "question"], 4))
        template = Template(language, form, draw.choice(_LISTS), order, tuple(sorted(chosen.items())))
        made.setdefault(template.id, template)
    return list(made.values())


def rate(template: Template, tasks: Sequence[tuple[Task, Plan]], reply: Callable[[str], str]) -> float:
    """Return how well a model plans with this template, from 0 to 1.

    Tool and arguments are judged against those known good.

    `tasks` are moments of runs that were `worth_keeping`, with the step that came next; `reply` is the model.
    """
    if not tasks:
        raise ValueError("there are no tasks to rate a template on")
    scores = []
    for task, wanted in tasks:
        planned = read_form(template.form, reply(template.to_plan(task)), task.functions)
        reference = {"thought": wanted.thought, "tool_name": wanted.tool, "tool_args": wanted.arguments}
        scores.append(tool_score([reference], planned))
    return fmean(scores)


def keep_strong(ratings: Mapping[str, float], share: float = 0.8) -> list[str]:
    """Return the ids of templates rated at least `share` of the best one's rating, the best first."""
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}: must be from 0 to 1")
    least = share * max(ratings.values(), default=0.0)
    return sorted(
        (id for id, rating in ratings.items() if rating >= least), key=lambda id: (-ratings[id], id)
    )


def write_plan(template: Template, plan: Plan) -> str:
    """Return a plan in the template's form."""
    return write_form(template.form, plan)


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
        named = ", ".join(f"{name}: {known.get('type', 'any')}" for name, known in properties.items())
        return f"{function['name']}({named}): {about}"
    told = "; ".join(
        f"{name}, {known.get('description', '')}".rstrip(", ") for name, known in properties.items()
    )
    return f"- {function['name']}: {about}" + (f" ({told})" if told else "")
