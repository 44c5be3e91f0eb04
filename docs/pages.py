"""Generated pages: one for each memory, policy and environment, and the reference.

The content comes from the registries, the docstrings, `memory/README.md`, `docs/papers.md`,
`experiments/bench/memories.md` and the JSON-lines files of results. A new memory gets its page automatically.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from leaderboard import Row, format_score, leaderboard, read_scores, title_of
from markup import as_rst, module_docstring, title
from PIL import Image
from policy_plot import DESCRIPTION as POLICY_PLOT
from policy_plot import draw_policy
from reach import DESCRIPTION as REACH
from reach import draw_reach
from reference import write_reference
from sphinx.pycode import ModuleAnalyzer
from tables import ROOT, write_others, write_tables

from scrubjay import envs, memory
from scrubjay.memory import context


def write_pages(folder: Path) -> None:
    """Write all pages into a folder. Its old content is deleted."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    scores = list(read_scores(ROOT / "experiments" / "results"))
    for section in ("memories", "policies", "environments"):
        (folder / section).mkdir()
    for name in memory.list_memories():
        (folder / "memories" / f"{name}.rst").write_text(_memory(name, scores) + "\n", encoding="utf-8")
        draw_reach(name, folder / "memories" / f"{name}.png")
    _section(folder, "policies", "Context policies", {n: _policy(n) for n in context.list_policies()})
    for name in context.list_policies():
        draw_policy(name, folder / "policies" / f"{name}.png")
    pages = {_slug(id): _environment(id, folder / "environments") for id in envs.list_environments()}
    _section(folder, "environments", "Environments", pages)
    write_reference(folder / "reference")
    (folder / "leaderboard.md").write_text(leaderboard(scores), encoding="utf-8")
    write_others(folder)
    write_tables(folder)


def _memory(name: str, scores: Sequence[Row]) -> str:
    config = memory.make_config(name)
    kind = type(config)
    model = config.build()
    paper, file, state, reach = _table_rows(ROOT / "memory" / "README.md")[f"`{name}`"]
    laws = "nine" if model.retrieves else "eight; law 7 applies to memories that retrieve"
    facts = {
        "Paper": as_rst(paper),
        "Reach": as_rst(reach),
        "State size": f"{state} per agent at width 64",
        "Parameters": f"{sum(p.numel() for p in model.parameters()):,} at width {config.dim}",
        "Laws": laws,
        "File": as_rst(file),
        "Usage": f"``scrubjay.memory.make({name!r}, dim=64)``, ``--memory {name}``",
    }
    image = f".. image:: {name}.png\n   :alt: Influence of earlier inputs on {name}"
    parts = [
        title(name),
        _facts(facts),
        *_about_and_sizes(kind),
        title("Differs from the paper in", "-"),
        differences(name),
        title("Influence of earlier inputs", "-"),
        REACH,
        image,
    ]
    costs = _table_rows(ROOT / "experiments" / "bench" / "memories.md")
    if name in costs:
        parts += [title("Cost", "-"), _facts(dict(zip(_COSTS, costs[name], strict=False)))]
    results = [row for row in scores if row["memory"] == name and not row.get("test")]
    if results:
        scores_by_task: dict[str, list[float]] = defaultdict(list)
        for row in results:
            scores_by_task[row["task"]].append(row["score"])
        facts_by_task = {
            title_of(task): f"{format_score(of)}, {_pluralize(len(of), 'seed')}"
            for task, of in sorted(scores_by_task.items())
        }
        parts += [title("Results", "-"), _facts(facts_by_task), "All results: :doc:`../leaderboard`."]
    return "\n\n".join(parts)


def differences(name: str) -> str:
    """Return the section of a memory in `docs/papers.md` as reStructuredText."""
    text = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## `{name}`\n")[2].partition("\n## ")[0].strip()
    about = "\n".join(line for line in section.splitlines() if not line.startswith("|"))
    lines = [line.strip("| ").split("|") for line in section.splitlines() if line.startswith("| ")]
    if not lines:
        return about
    rows = [[cell.strip() for cell in cells] for cells in lines if "---" not in cells[0]]
    table = "\n".join("   * - " + "\n     - ".join(cells) for cells in rows)
    return f"{about}\n\n.. list-table::\n   :header-rows: 1\n\n{table}"


_COSTS = (
    "PPO update, ms (times ``none``)", "Matrix products of the update, ms", "Training, steps/s",
    "Training relative to RecurrentPPO", "Step, batch 1, µs", "Step, batch 64, µs", "Step, batch 256, µs",
    "State size of one environment, bytes",
)  # fmt: skip


def _policy(name: str) -> tuple[str, str]:
    kind = type(context.make(name))
    facts = {"Usage": f"``scrubjay.memory.context.make({name!r})``, ``--policy {name}``"}
    image = f".. image:: {name}.png\n   :alt: Tokens retained by {name}"
    parts = [
        title(name),
        _facts(facts),
        *_about_and_sizes(kind),
        title("Retained tokens", "-"),
        POLICY_PLOT,
        image,
    ]
    results = _policy_results(name)
    if results:
        parts += [title("Cost and results", "-"), _facts(results)]
    return module_docstring(importlib.import_module(kind.__module__)), "\n\n".join(parts)


def _policy_results(policy: str) -> dict[str, str]:
    """Return the time per token of a policy and its agreement with the full cache, from the tables."""
    facts = {}
    for line in (ROOT / "experiments" / "bench" / "decoding.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if len(cells) > 3 and cells[1] == policy:
            facts[f"Time per token, {cells[0]}"] = (
                f"{cells[2]} ms, {cells[3]} times that of transformers' own cache"
            )
    results = (ROOT / "experiments" / "results" / "longcontext.md").read_text(encoding="utf-8")
    agreement = results.partition("## Agreement with the full cache")[2].partition("\n## ")[0]
    same = re.findall(rf"^\| {policy} \| ([^|]+) \|", agreement, re.MULTILINE)
    if same:
        facts["Same next token as `full`, 256 and 1,024 keys"] = " % and ".join(same) + " %"
    return facts


def _about_and_sizes(kind: type[Any]) -> list[str]:
    about = module_docstring(importlib.import_module(kind.__module__))
    return [title("Description", "-"), about, title("Settings", "-"), _fields(kind)]


def _environment(id: str, folder: Path) -> tuple[str, str]:
    env = gymnasium.make(id, render_mode="rgb_array")
    env.reset(seed=1)
    picture = f"{_slug(id)}.png"
    frame = env.render()
    assert isinstance(frame, np.ndarray)
    Image.fromarray(frame).save(folder / picture)
    observation, action = (
        str(space).replace("\n", " ") for space in (env.observation_space, env.action_space)
    )
    kind = type(env.unwrapped)
    env.close()
    facts = {
        "Usage": f'``gymnasium.make("scrubjay.envs:{id}")``',
        "Observation space": f"``{observation}``",
        "Action space": f"``{action}``",
    }
    image = f".. image:: {picture}\n   :alt: First step of an episode of {id}"
    about = inspect.getdoc(kind) or ""
    return about, "\n\n".join([title(id), _facts(facts), image, about])


def _fields(kind: type[Any]) -> str:
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            attribute_texts = ModuleAnalyzer.for_module(base.__module__).find_attr_docs()
            texts |= {
                name: " ".join(doc)
                for (owner, name), doc in attribute_texts.items()
                if owner == base.__name__
            }
    lines = []
    for field in dataclasses.fields(kind):
        if not field.metadata.get("recorded"):  # recorded fields are not settings
            value = list(field.default) if isinstance(field.default, tuple) else field.default
            default = "" if value is dataclasses.MISSING else f" = {value!r}"
            lines.append(f"``{field.name}{default}``\n   {' '.join(texts.get(field.name, '').split())}")
    return "\n\n".join(lines) or "None."


def _section(folder: Path, name: str, heading: str, pages: Mapping[str, tuple[str, str]]) -> None:
    """Write pages and an index with the first paragraph of each."""
    leads = []
    for page, (about, text) in pages.items():
        (folder / name / f"{page}.rst").write_text(text + "\n", encoding="utf-8")
        leads.append(f":doc:`{page}`\n   {' '.join(about.partition(chr(10) * 2)[0].split())}")
    names = "\n".join(f"   {page}" for page in pages)
    parts = [title(heading), _INTRODUCTIONS[name], *leads, f".. toctree::\n   :hidden:\n\n{names}\n"]
    (folder / name / "index.rst").write_text("\n\n".join(parts), encoding="utf-8")


_INTRODUCTIONS = {
    "policies": "Cache policies decide which tokens a language model retains and reads.",
    "environments": 'Make one with ``gymnasium.make("scrubjay.envs:ID")`` or many with ``make_vec``.',
}


def _table_rows(path: Path) -> dict[str, list[str]]:
    """Return the table rows of a Markdown file by their first cell."""
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("| "):
            first, *cells = (cell.strip() for cell in line.strip("| ").split("|"))
            rows.setdefault(first, cells)
    return rows


def _facts(facts: Mapping[str, str]) -> str:
    rows = "\n".join(f"   * - {name}\n     - {value}" for name, value in facts.items() if value)
    return f".. list-table::\n   :widths: 30 70\n\n{rows}"


def _pluralize(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _slug(name: str) -> str:
    return name.replace("/", "-").replace("scrubjay-", "")
