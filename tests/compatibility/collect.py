"""What this version of Scrubjay promises to the outside, as JSON.

    PYTHONPATH=src python tests/compatibility/collect.py > promised.json

`public.json` is what it printed at commit d9e860e; `test_public.py` holds later code against that. Only
public names are imported here, so that it runs on any later version, wherever its modules lie.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import io
import json
import os
import pkgutil
import re
import sqlite3
import sys
import tempfile
import unittest.mock
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PACKAGES = (
    "scrubjay.agents",
    "scrubjay.agents.kwai",
    "scrubjay.agents.kwai.tools",
    "scrubjay.agents.langchain",
    "scrubjay.agents.rllib",
    "scrubjay.envs",
    "scrubjay.envs.uav",
    "scrubjay.experiments",
    "scrubjay.experiments.suites",
    "scrubjay.kernels",
    "scrubjay.memory",
    "scrubjay.memory.context",
)
# They move to a room of their own, and are no part of what stays where it is.
MOVED = {
    "context_peers",
    "conversation",
    "embeddings",
    "irrelevance",
    "kept_embeddings",
    "recall",
    "recall_arms",
    "recall_sets",
}
OF_MEMORIES = ("tmaze-demo", "mqar", "uav-small")
"""One recipe of each way to say what remembers."""
OF_METHODS = "uav-small"


def names() -> dict[str, list[str]]:
    """Return the names that every package exports."""
    return {package: sorted(importlib.import_module(package).__all__) for package in PACKAGES}


def members() -> dict[str, dict[str, Any]]:
    """Return the parameters of every public function, and of every public class its fields and methods."""
    found = {}
    for package, exported in names().items():
        for name in exported:
            value = getattr(importlib.import_module(package), name)
            if inspect.isclass(value):
                found[f"{package}.{name}"] = _of_class(value)
            elif inspect.isroutine(value):
                found[f"{package}.{name}"] = {"()": _parameters(value)}
    return found


def _of_class(kind: type) -> dict[str, Any]:
    ours = [base for base in kind.__mro__ if base.__module__.partition(".")[0] == "scrubjay"]
    found: dict[str, Any] = {"()": _parameters(kind)}
    for base in reversed(ours):
        fields = [*inspect.get_annotations(base), *vars(base)]
        for name in fields:
            if not name.startswith("_") and name != "model_config":
                member = inspect.getattr_static(kind, name, None)
                member = getattr(member, "__func__", member)
                found[name] = _parameters(member) if inspect.isfunction(member) else None
    return found


def _parameters(function: Any) -> list[str]:
    try:
        return [name for name in inspect.signature(function).parameters if name != "self"]
    except ValueError:
        return []


def said(*words: str) -> str:
    """Return what the command prints on `words`, one of them --help, on a wide terminal."""
    from scrubjay.experiments.cli import main

    out = io.StringIO()
    wide = unittest.mock.patch.dict(os.environ, {"COLUMNS": "120", "NO_COLOR": "1"})
    path = unittest.mock.patch.object(sys, "path", list(sys.path))  # main adds the current folder
    with wide, path, contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(list(words))
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


def listed(text: str) -> list[str]:
    """Return the words that begin the lines of a help's list of verbs."""
    return sorted(re.findall(r"^  (\w[\w-]*)  ", text, re.MULTILINE))


def flags(*words: str) -> dict[str, str | None]:
    """Return every flag that the help on `words` names, with its default if it is told, and the arguments."""
    found: dict[str, str | None] = {}
    current: list[str] = []
    told = ""
    for line in said(*words, "--help").splitlines():
        text = line.strip("│ ")
        if line.startswith("usage:") and "[OPTIONS]" in line:
            found["arguments"] = line.partition("[OPTIONS]")[2].strip()
        if re.match(r"^[│ ] (-\w, )?--[a-z]", line):
            # What follows a gap is already the description.
            current = re.findall(r"--[a-z][\w.-]*", text.partition("  ")[0])
            told = ""
            found |= dict.fromkeys(current)
        elif not current:
            # What is parsed by hand is told in words only.
            found |= dict.fromkeys(re.findall(r"--[a-z][\w.-]*\w", text))
        told += f" {text}"
        default = re.search(r"\(default: (.*?)\)$", told)
        if default and current:
            found[current[0]] = default[1]
    return dict(sorted(found.items()))


def commands() -> dict[str, list[str]]:
    """Return by a name each command line whose flags are promised."""
    memories, methods = memory_names(), method_names()
    verbs = [verb for verb in listed(said("--help")) if verb not in ("memory", "longcontext")]
    found = [[verb] for verb in verbs]
    found += [[verb, word] for verb in ("memory", "longcontext") for word in listed(said(verb, "--help"))]
    found += [["train", recipe] for recipe in recipe_names()]
    found += [["train", recipe, "--memory", memory] for recipe in OF_MEMORIES for memory in memories]
    found += [["train", OF_METHODS, "--method", method] for method in methods]
    return {" ".join(words): words for words in found}


def new_flags(words: list[str]) -> dict[str, str | None]:
    """Return the flags of a command, less those that are the same without its last two words."""
    found = flags(*words)
    if len(words) == 4:
        plain = flags(*words[:2])
        return {name: value for name, value in found.items() if plain.get(name, "") != value}
    return found


def recipe_names() -> list[str]:
    """Return the names of all recipes."""
    from scrubjay.experiments import RECIPES

    return sorted(RECIPES)


def memory_names() -> list[str]:
    """Return the names of all memories."""
    from scrubjay.memory import list_memories

    return sorted(list_memories())


def method_names() -> list[str]:
    """Return the names of the methods for teams, as `scrubjay list` tells them."""
    _, _, rest = said("list").partition("methods")
    return listed(rest.partition("\n\n")[0])


def choices() -> dict[str, list[str]]:
    """Return what can be chosen by name."""
    import gymnasium
    import pettingzoo

    from scrubjay import envs
    from scrubjay.agents.kwai import tools
    from scrubjay.envs import uav
    from scrubjay.memory import context

    for name in envs.list_environments():
        gymnasium.spec(name)
    return {
        "environments": sorted(envs.list_environments()),
        "team environments": sorted(
            name for name in pettingzoo.parallel_registry if name.startswith("scrubjay/")
        ),
        "uav presets": sorted(uav.PRESETS),
        "recipes": recipe_names(),
        "memories": memory_names(),
        "context policies": sorted(context.list_policies()),
        "methods": method_names(),
        "tools": sorted(tools.list_tools()),
        "tools in Chinese": sorted(tools.list_tools("zh")),
        "verbs": listed(said("--help")),
        "verbs of memory": listed(said("memory", "--help")),
        "verbs of longcontext": listed(said("longcontext", "--help")),
        "kinds of runs": sorted({config["kind"] for config in configs().values()}),
        "suites": sorted({config["suite"]["kind"] for config in configs().values() if "suite" in config}),
    }


def config_of(experiment: Any) -> dict[str, Any]:
    """Return what config.json says of an experiment."""
    from scrubjay.experiments import Run

    with tempfile.TemporaryDirectory() as folder:
        return json.loads((Run.create(experiment, folder).path / "config.json").read_text())


def configs() -> dict[str, dict[str, Any]]:
    """Return the config.json of every recipe."""
    from scrubjay.experiments import RECIPES

    return {name: config_of(RECIPES[name]()) for name in recipe_names()}


def memory_configs() -> dict[str, dict[str, Any]]:
    """Return the config of every memory that is chosen by name alone, by recipe where that changes it."""
    from scrubjay.experiments import RECIPES, with_memory

    found = {}
    for memory in memory_names():
        of_recipe = {}
        for recipe in recipe_names():
            config = config_of(with_memory(RECIPES[recipe](), memory))
            of_recipe[recipe] = config.get("memory") or config["policy"]["memory"]
        plain = of_recipe["tmaze-demo"]
        found[memory] = plain
        found |= {f"{memory} on {name}": one for name, one in of_recipe.items() if one != plain}
    return found


def layouts() -> dict[str, Any]:
    """Return names and shapes of every memory's weights and state, width 8 and sizes by default."""
    from scrubjay.memory import make

    found = {}
    for name in memory_names():
        memory = make(name, dim=8)
        found[name] = {
            "weights": {key: list(value.shape) for key, value in memory.state_dict().items()},
            "state": {key: list(value.shape) for key, value in memory.initial_state(1).items()},
        }
    return found


def ops() -> dict[str, str]:
    """Return torch's ops of ours by name, with their schemas."""
    import torch

    from scrubjay import kernels

    for name in kernels.__all__:
        getattr(kernels, name)
    for name in memory_names():
        importlib.import_module("scrubjay.memory").make(name, dim=8)
    schemas: list[Any] = torch._C._jit_get_all_schemas()
    return {
        f"{schema.name}.{schema.overload_name}".rstrip("."): str(schema)
        for schema in schemas
        if schema.name.startswith("scrubjay::")
    }


class Letters:
    """Embeddings by counts of letters: texts of the same letters are alike."""

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a text; Chinese characters count by their code."""
        counts = [0.01] + [0.0] * 31
        for letter in text.lower():
            if letter.isalpha():
                counts[ord(letter) % 32] += 1.0
        return counts

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector per text."""
        return [self.embed_query(text) for text in texts]


def tables() -> dict[str, Any]:
    """Return the SQLite layout of a bank, of what stands beside its records, and of checkpoints."""
    from scrubjay.agents.langchain import BankChatMessageHistory, BankStore, Checkpointer
    from scrubjay.memory import MemoryBank, SurpriseConfig

    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, f"{name}.db") for name in ("bank", "surprise", "messages", "items")}
        with MemoryBank(files["bank"], Letters()) as bank:
            bank.add("Ada was born in 1815.")
        with MemoryBank(files["surprise"], Letters(), surprise=SurpriseConfig()) as bank:
            bank.add("Ada was born in 1815.")
        with MemoryBank(files["messages"]) as bank:
            BankChatMessageHistory(bank, "thread")
        with BankStore(files["items"]):
            pass
        files["checkpoints"] = Path(folder, "checkpoints.db")
        with Checkpointer(files["checkpoints"]):
            pass
        found = {name: _layout(file) for name, file in files.items()}
    beside = {
        name: {key: value for key, value in layout.items() if found["bank"].get(key) != value}
        for name, layout in found.items()
    }
    return beside | {"bank": found["bank"]}


def _layout(file: Path) -> dict[str, Any]:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        layout: dict[str, Any] = {name: " ".join(sql.split()) for name, sql in rows}
        for pragma in ("user_version", "application_id"):
            (layout[pragma],) = connection.execute(f"PRAGMA {pragma}").fetchone()
        layout["facts"] = sorted(name for (name,) in connection.execute("SELECT name FROM facts"))
        if "layouts" in layout:
            layout["layouts of"] = dict(connection.execute("SELECT name, version FROM layouts").fetchall())
    return layout


def tiny_run(folder: Path, **fields: Any) -> Any:
    """Return a run of a few steps."""
    from scrubjay.agents import PPOConfig
    from scrubjay.experiments import RECIPES, EnvConfig, train, with_memory
    from scrubjay.memory import make_config

    config = with_memory(RECIPES["tmaze-demo"](), make_config("gru", dim=8))
    settings: dict[str, Any] = {
        "env": EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 4}, num_envs=4),
        "ppo": PPOConfig(epochs=1, num_minibatches=2),
        "total_steps": 64,
        "segment_length": 8,
        "device": "cpu",
        "eval_episodes": 4,
    }
    return train(dataclasses.replace(config, **settings | fields), folder)


def files() -> dict[str, Any]:
    """Return what files there are in a run's directory and in a saved model, and what they name."""
    import torch
    from safetensors import safe_open

    from scrubjay.memory import SequenceConfig, make_config

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        run = tiny_run(folder / "run")
        paths = [path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()]
        found["run"] = sorted({re.sub(r"(tfevents)\..*|(?<=step_)\d+", r"\1", path) for path in paths})
        found["columns of metrics.jsonl"] = sorted({name for row in run.metrics() for name in row})
        found["result.json"] = sorted(run.result)
        found["training.pt"] = sorted(torch.load(run.latest / "training.pt", weights_only=False))
        found["manifest.json"] = sorted(json.loads((run.latest / "manifest.json").read_text()))
        SequenceConfig(vocab_size=8, memory=make_config("gru", dim=8)).build().save_pretrained(
            folder / "model"
        )
        found["save_pretrained"] = sorted(path.name for path in (folder / "model").iterdir())
        found["config.json of save_pretrained"] = json.loads((folder / "model" / "config.json").read_text())
        for name, file in {
            "checkpoint": run.latest / "model.safetensors",
            "save_pretrained": folder / "model" / "model.safetensors",
        }.items():
            with safe_open(file, framework="pt") as opened:
                found[f"tensors of {name}"] = sorted(opened.keys())
                found[f"metadata of {name}"] = opened.metadata() or {}
    return found


def benches() -> list[str]:
    """Return the modules of measurements that are run by `python -m`."""
    package = "scrubjay.experiments.bench"
    spec = importlib.util.find_spec(package)
    assert spec is not None
    found = {module.name for module in pkgutil.iter_modules(spec.submodule_search_locations)}
    return sorted(f"{package}.{name}" for name in found - MOVED)


PARTS: dict[str, Callable[[], Any]] = {
    "names": names,
    "members": members,
    "choices": choices,
    "flags": lambda: {name: new_flags(words) for name, words in commands().items()},
    "configs": configs,
    "memory configs": memory_configs,
    "layouts": layouts,
    "ops": ops,
    "tables": tables,
    "files": files,
    "benches": benches,
}


def missing(promised: Any, found: Any, path: str = "") -> Iterator[str]:
    """Yield in words what was promised and is not there, or is another; what is new is no matter."""
    if isinstance(promised, dict) and isinstance(found, dict):
        for name, value in promised.items():
            where = f"{path} > {name}" if path else name
            if name not in found:
                yield f"{where} is missing"
            else:
                yield from missing(value, found[name], where)
    elif isinstance(promised, list) and isinstance(found, list) and all(isinstance(x, str) for x in promised):
        yield from (f"{path} > {name} is missing" for name in promised if name not in found)
        there = [name for name in promised if name in found]
        if there != [name for name in found if name in promised]:
            yield f"{path} was in the order {promised}, is {found}"
    elif promised != found:
        yield f"{path} was {promised!r}, is {found!r}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(
        json.dumps(
            {name: part() for name, part in PARTS.items()}, indent=1, sort_keys=True, ensure_ascii=False
        )
    )
