"""Pages of the site that are made: of each memory, policy and environment, the reference, the leaderboard.

What they say comes from the registries, the docstrings, `memory/README.md`, `experiments/bench/memories.md`
and the JSON-lines behind the tables of results, so that a new memory has its page without a line here.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from kept import TOLD as KEPT
from kept import draw_kept
from measured import ROOT, write_measured, write_others
from PIL import Image
from reach import TOLD as HEARD
from reach import draw_reach

from scrubjay import envs, memory
from scrubjay.experiments.forms import form_of
from scrubjay.experiments.runs.statistics import bootstrap_interval, interquartile_mean
from scrubjay.memory import context

_FEW = 4
"""Seeds below which an interval is the seeds' own spread."""
_FACES = (
    "memory", "memory.context", "memory.contract", "kernels", "envs", "agents", "agents.langchain",
    "experiments",
)  # fmt: skip

Row = Mapping[str, Any]


def write_pages(folder: Path) -> None:
    """Write all pages into a folder, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    scores = list(read_scores(ROOT / "experiments" / "results"))
    for section in ("memories", "policies", "environments", "reference"):
        (folder / section).mkdir()
    for name in memory.list_memories():
        (folder / "memories" / f"{name}.rst").write_text(_memory(name, scores) + "\n", encoding="utf-8")
        draw_reach(name, folder / "memories" / f"{name}.png")
    _section(folder, "policies", "Context policies", {n: _policy(n) for n in context.list_policies()})
    for name in context.list_policies():
        draw_kept(name, folder / "policies" / f"{name}.png")
    pages = {_slug(id): _environment(id, folder / "environments") for id in envs.list_environments()}
    _section(folder, "environments", "Environments", pages)
    _section(folder, "reference", "Reference", {face.replace(".", "-"): _reference(face) for face in _FACES})
    (folder / "leaderboard.md").write_text(leaderboard(scores), encoding="utf-8")
    write_others(folder)
    write_measured(folder)


def read_scores(results: Path) -> Iterator[Row]:
    """Yield what the JSON-lines of results say of a task, a memory and a seed that nothing was tuned on."""
    for path in sorted(results.rglob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if {"task", "memory", "seed", "score", "command"} <= row.keys() and not row.get("development"):
                yield {**row, "file": path.relative_to(ROOT).as_posix()}


def leaderboard(scores: Iterable[Row]) -> str:
    """Return the page of memories by tasks, with seeds, intervals and commands, as Markdown."""
    of_task: dict[str, list[Row]] = defaultdict(list)
    for row in scores:
        of_task[row["task"]].append(row)
    parts = ["# Leaderboard", _OF_LEADERBOARD, _overview(of_task)]
    for task, rows in sorted(of_task.items()):
        parts += [f"## {task}", _scores_table([row for row in rows if not row.get("test")])]
        tested = [row for row in rows if row.get("test")]
        if tested:
            parts += ["The same models, tested otherwise than they were trained:", _tests_table(tested)]
        files = ", ".join(f"[{file}](../../{file})" for file in sorted({row["file"] for row in rows}))
        commands = "\n".join(dict.fromkeys(row["command"] for row in rows))
        parts += [f"```sh\n{commands}\n```", f"Lines: {files}"]
    return "\n\n".join(parts) + "\n"


_OF_LEADERBOARD = (
    "Every number comes from a JSON-lines file that is committed beside the table it stands in, one line for "
    "each seed. Scores are interquartile means with a 95 % bootstrap interval, or, of fewer than "
    f"{_FEW} seeds, the mean and the spread of the seeds. Some results have "
    "[tables alone](../../experiments/results/README.md)."
)


def _overview(of_task: Mapping[str, Sequence[Row]]) -> str:
    """Return memories by tasks, as they were trained; what was not tried is left empty."""
    cells: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for task, rows in of_task.items():
        for row in rows:
            if not row.get("test"):
                cells[row["memory"]][task].append(row["score"])
    tasks = sorted(of_task)
    lines = [(_linked(name), *(_score(of[task]) for task in tasks)) for name, of in sorted(cells.items())]
    return _table(("memory", *tasks), lines)


def _scores_table(rows: Sequence[Row]) -> str:
    of_memory: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        of_memory[row["memory"]].append(row)
    ranked = sorted(of_memory.items(), key=lambda item: -np.mean([row["score"] for row in item[1]]))
    return _table(
        ("memory", "score", "seeds", "steps", "measure"),
        [
            (
                _linked(name),
                _score([row["score"] for row in of_name]),
                ", ".join(str(seed) for seed in sorted({row["seed"] for row in of_name})),
                f"{max(row.get('steps', 0) for row in of_name):,}",
                ", ".join(sorted({row.get("measure", "score") for row in of_name})),
            )
            for name, of_name in ranked
        ],
    )


def _tests_table(rows: Sequence[Row]) -> str:
    cells: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        tested = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row["test"].items())
        cells[tested][row["memory"]].append(row["score"])
    names = sorted({row["memory"] for row in rows})
    lines = [(tested, *(_score(of[name]) for name in names)) for tested, of in cells.items()]
    return _table(("tested with", *(f"`{name}`" for name in names)), lines)


def _linked(name: str) -> str:
    return f"[`{name}`](memories/{_slug(name)}.rst)" if name in memory.list_memories() else f"`{name}`"


def _score(scores: Sequence[float]) -> str:
    if not scores:
        return ""
    if len(scores) < _FEW:
        mean, low, high = float(np.mean(scores)), min(scores), max(scores)
    else:
        mean, (low, high) = interquartile_mean(scores), bootstrap_interval(scores)
    return f"{mean:.2f} [{low:.2f},\u00a0{high:.2f}]" if len(scores) > 1 else f"{mean:.2f}"


def _memory(name: str, scores: Sequence[Row]) -> str:
    config = memory.make_config(name)
    kind = type(config)
    built = config.build()
    paper, file, state, reach = _table_rows(ROOT / "memory" / "README.md")[f"`{name}`"]
    laws = "nine, and it retrieves" if built.retrieves else "nine; law 7 is of memories that retrieve"
    facts = {
        "Paper": _as_rst(paper),
        "What it can reach": _as_rst(reach),
        "State of one agent": f"{state} at width 64",
        "Parameters": f"{sum(p.numel() for p in built.parameters()):,} at width {config.dim}",
        "Laws": laws,
        "File": _as_rst(file),
        "Made by": f"``scrubjay.memory.make({name!r}, dim=64)``, ``--memory {name}``",
    }
    image = f".. image:: {name}.png\n   :alt: What {name} hears of the steps before"
    parts = [
        _title(name),
        _facts(facts),
        *_what_it_is(kind),
        _title("How far back it hears", "-"),
        HEARD,
        image,
    ]
    costs = _table_rows(ROOT / "experiments" / "bench" / "memories.md")
    if name in costs:
        parts += [_title("Cost", "-"), _facts(dict(zip(_COSTS, costs[name], strict=False)))]
    measured = [row for row in scores if row["memory"] == name and not row.get("test")]
    if measured:
        of_task: dict[str, list[float]] = defaultdict(list)
        for row in measured:
            of_task[row["task"]].append(row["score"])
        found = {task: f"{_score(of)}, {_counted(len(of), 'seed')}" for task, of in sorted(of_task.items())}
        parts += [_title("Results", "-"), _facts(found), "All of them: :doc:`../leaderboard`."]
    return "\n\n".join(parts)


_COSTS = (
    "PPO update, ms (times ``none``)", "Its matrix products alone, ms", "Training, steps/s",
    "Against RecurrentPPO", "Step of 1 row, µs", "Step of 64 rows, µs", "Step of 256 rows, µs",
    "Bytes of a row's state",
)  # fmt: skip


def _policy(name: str) -> tuple[str, str]:
    kind = type(context.make(name))
    facts = {"Made by": f"``scrubjay.memory.context.make({name!r})``, ``--policy {name}``"}
    image = f".. image:: {name}.png\n   :alt: What {name} keeps of a text"
    parts = [_title(name), _facts(facts), *_what_it_is(kind), _title("What it keeps", "-"), KEPT, image]
    measured = _measured(name)
    if measured:
        parts += [_title("Cost and results", "-"), _facts(measured)]
    return _docstring(importlib.import_module(kind.__module__)), "\n\n".join(parts)


def _measured(policy: str) -> dict[str, str]:
    """Return what tables say of a context policy: the time of a token, and agreement with the full cache."""
    found = {}
    for line in (ROOT / "experiments" / "bench" / "decoding.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if len(cells) > 3 and cells[1] == policy:
            found[f"A token, {cells[0]}"] = f"{cells[2]} ms, {cells[3]} times that of transformers' own cache"
    results = (ROOT / "experiments" / "results" / "longcontext.md").read_text(encoding="utf-8")
    agreement = results.partition("## Agreement with the full cache")[2].partition("\n## ")[0]
    same = re.findall(rf"^\| {policy} \| ([^|]+) \|", agreement, re.MULTILINE)
    if same:
        found["Next tokens as of `full`, 256 and 1,024 keys"] = " % and ".join(same) + " %"
    return found


def _what_it_is(kind: type[Any]) -> list[str]:
    about = _docstring(importlib.import_module(kind.__module__))
    return [_title("What it is", "-"), about, _title("Sizes", "-"), _fields(kind)]


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
        "Made by": f'``gymnasium.make("scrubjay.envs:{id}")``',
        "Observation space": f"``{observation}``",
        "Action space": f"``{action}``",
    }
    image = f".. image:: {picture}\n   :alt: The first moment of an episode of {id}"
    about = inspect.getdoc(kind) or ""
    return about, "\n\n".join([_title(id), _facts(facts), image, about])


def _reference(face: str) -> tuple[str, str]:
    module = importlib.import_module(f"scrubjay.{face}")
    about = _docstring(module)
    parts = [_title(f"scrubjay.{face}"), about]
    for name in sorted(module.__all__):
        thing = getattr(module, name)
        if inspect.isclass(thing) and thing.__module__.startswith("scrubjay"):
            parts.append(f".. autoclass:: scrubjay.{face}.{name}\n   :members:\n   :no-index:")
        elif inspect.isroutine(thing):
            parts.append(f".. autofunction:: scrubjay.{face}.{name}\n   :no-index:")
        else:
            kind = thing if hasattr(thing, "__origin__") else type(thing).__name__
            parts.append(f"``scrubjay.{face}.{name}``\n   ``{kind}``")
    return about, "\n\n".join(parts)


def _fields(kind: type[Any]) -> str:
    form = form_of(kind)
    required = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
    lines = []
    for name, field in form["fields"].items():
        default = "" if name in required else f" = {field['default']!r}"
        lines.append(f"``{name}{default}``\n   {' '.join((field['help'] or '').split())}")
    return "\n\n".join(lines) or "None."


def _section(folder: Path, name: str, title: str, pages: Mapping[str, tuple[str, str]]) -> None:
    """Write pages, and one that leads to them by the first paragraph of what each is about."""
    leads = []
    for page, (about, text) in pages.items():
        (folder / name / f"{page}.rst").write_text(text + "\n", encoding="utf-8")
        leads.append(f":doc:`{page}`\n   {' '.join(about.partition(chr(10) * 2)[0].split())}")
    listed = "\n".join(f"   {page}" for page in pages)
    parts = [_title(title), _INTRODUCTIONS[name], *leads, f".. toctree::\n   :hidden:\n\n{listed}\n"]
    (folder / name / "index.rst").write_text("\n\n".join(parts), encoding="utf-8")


_INTRODUCTIONS = {
    "policies": "What a language model's cache keeps and reads.",
    "environments": 'Made by ``gymnasium.make("scrubjay.envs:ID")``; a thousand at once by ``make_vec``.',
    "reference": "What each package promises.",
}


def _table_rows(path: Path) -> dict[str, list[str]]:
    """Return the cells of the tables of a Markdown file by their first one."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("| "):
            first, *cells = (cell.strip() for cell in line.strip("| ").split("|"))
            found.setdefault(first, cells)
    return found


def _docstring(module: Any) -> str:
    """Return a module's docstring; what is in single backticks is code."""
    return _as_rst(inspect.getdoc(module) or "")


def _as_rst(markdown: str) -> str:
    """Return prose with Markdown's links as reStructuredText has them, and links to papers."""
    lines = markdown.splitlines()
    escape_bars(lines)
    linked = re.sub(r"\[([^\]]+)\]\((https?://[^)]+)\)", r"`\1 <\2>`__", "\n".join(lines))
    return re.sub(r"\barXiv\s(\d{4}\.\d{5})\b", r"`arXiv \1 <https://arxiv.org/abs/\1>`__", linked)


def escape_bars(lines: list[str]) -> None:
    """Escape, in place, what docutils would take for the name of a substitution: |x|, outside of code."""
    lines[:] = [re.sub(r"\|(?=[^`]*(?:`[^`]*`[^`]*)*$)", r"\\|", line) for line in lines]


def _facts(facts: Mapping[str, str]) -> str:
    rows = "\n".join(f"   * - {name}\n     - {value}" for name, value in facts.items() if value)
    return f".. list-table::\n   :widths: 30 70\n\n{rows}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _title(text: str, under: str = "=") -> str:
    return f"{text}\n{under * len(text)}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _slug(name: str) -> str:
    return name.replace("/", "-").replace("scrubjay-", "")
