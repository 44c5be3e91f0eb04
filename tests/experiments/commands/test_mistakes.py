"""No command shows a traceback, whatever its arguments and files."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from scrubjay.experiments import RECIPES, Run, train, with_memory
from scrubjay.experiments.answers.facts import make_rows
from scrubjay.experiments.recipes.overrides import override
from scrubjay.memory import MemoryBank

from ..cli.fork_runner import complaint, run
from .mistakes import TINY, furnish, make_case

pytestmark = pytest.mark.requires("transformers")


@pytest.fixture(scope="session")
def world(tmp_path_factory, finished_run, tiny, tiny_chat):
    """Return a folder with one valid file or folder of each kind that a command reads."""
    world = tmp_path_factory.mktemp("world")
    shutil.copytree(finished_run.path, world / "run")
    shutil.copy(finished_run.path / "config.json", world / "settings.json")
    (world / "entries.yaml").write_text(
        "format: 2\ntotal_steps: 64\nsegment_length: 8\neval_episodes: 2\n"
        "policy:\n  memory: {name: gru, dim: 16}\nenv:\n  num_envs: 4\n"
    )
    stopped_run = Run.create(tiny(), world / "stopped")
    shutil.copytree(finished_run.path / "checkpoints", stopped_run.path / "checkpoints")
    shutil.copy(finished_run.path / "metrics.jsonl", stopped_run.path / "metrics.jsonl")
    train(override("uav-small", TINY.split()), world / "team")
    train(
        override("tmaze-demo", ["--memory", "gru", "--seed", "0", *TINY.split()]),
        world / "compared" / "tmaze-demo-gru-s0",
    )
    for name in ("none", "gru"):
        config = with_memory(dataclasses.replace(RECIPES["recall-demo"].make(), total_steps=64), name)
        done = Run.create(config, world / "demo" / f"{name}-s0")
        for file in ("metrics.jsonl", "result.json"):
            shutil.copy(finished_run.path / file, done.path / file)
    for part in tiny_chat:
        part.save_pretrained(world / "model")
    (world / "text.txt").write_text("The jay hid an acorn by the wall, and went back for it in winter. " * 40)
    with MemoryBank(world / "bank.db") as bank:
        for number in range(5):
            bank.add(f"Fact {number} is that engines compute.", namespace=("user", "ada"))
        (world / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bank.export()))
    facts = make_rows(0, 60, 2)
    (world / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in facts))
    (world / "sweep").mkdir()
    (world / "sweep" / "sweep.json").write_text(json.dumps(["tmaze-demo", [["gamma", ["1"]]], []], indent=1))
    (world / "replay.jsonl").write_text(json.dumps({"tool": "search", "arguments": {}, "x": 1}) + "\n")
    record = {"id": 1, "type": "plantooluse", "golden_result_list": ["a"], "funcs": []}
    record |= {"memory_last_task": "", "model_predict": "a"}
    (world / "benchmark.jsonl").write_text(json.dumps(record) + "\n")
    (world / "predictions.jsonl").write_text(json.dumps({"id": 1, "model_predict": "b"}) + "\n")
    folder = world.with_name("first")
    furnish(folder)
    text, model = str(world / "text.txt"), str(world / "model")
    result = run(["longcontext", "perplexity", text, "--model", model, "--tokens", "40", "--budget", "16",
                 "--block", "8", "--out", str(world / "longcontext")], folder, seconds=60)  # fmt: skip
    assert result.code == 0, result.err
    return world


def try_out(number: int, world: Path, folder: Path) -> str | None:
    furnish(folder)
    case = make_case(number, world, folder)
    result = run([os.fsdecode(word) for word in case.words], folder, case.stdin, case.output)
    wrong = complaint(result)
    if wrong is None:
        return None
    command_line = " ".join(repr(word)[:60] for word in case.words)
    return (
        f"{wrong}: {command_line}\n  {case.output or ''} {case.damages}\n  {result.code} {result.err[-1500:]}"
    )


@pytest.mark.one_in(9)
@pytest.mark.parametrize("number", range(60))
def test_a_mistake_is_told_in_one_line(number, world, tmp_path):
    assert try_out(number, world, tmp_path / "here") is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [pytest.param(first, marks=[] if first < 80 else pytest.mark.matrix) for first in range(60, 660, 20)],
)
def test_many_mistakes_are_told_in_one_line_each(first, world, tmp_path):
    complaints = [try_out(number, world, tmp_path / str(number)) for number in range(first, first + 20)]
    assert not [wrong for wrong in complaints if wrong]
