"""A try follows from its seed and number. Honest samples pass all targets. All mutators change files."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import pytest

from scrubjay.experiments.commands import COMMANDS

from . import plan as plans
from . import tree
from .child import run_child
from .findings import Progress, load_progress, save_progress
from .samples import MAKERS, make_samples
from .targets import TARGETS, read_sample

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the fuzzer reads /proc"),
    pytest.mark.requires("transformers", "gguf", "langgraph", "msgpack", "pyarrow", "trafilatura"),
]
ROOT = Path(__file__).parents[2]
_CHEAP = ("configs", "pages", "exports")
_NO_TARGET = {"doctor", "completion", "list", "demo", "launch", "sweep"}
"""Commands that read no file of a stranger, that do the same as `compare`, or that start Ray."""


@pytest.fixture(scope="module")
def cheap_samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    make_samples(folder, _CHEAP)
    return folder


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    outcome = run_child(lambda: make_samples(folder), folder / "making", cpu=600)
    assert "value" in outcome.result, outcome.result
    return folder


def read_tree(folder: Path) -> dict[str, object]:
    """Return links, sizes and small contents of all files below a folder."""
    tree: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        is_small = path.is_file() and not path.is_symlink() and status.st_size < 2**26
        content = path.read_bytes() if is_small else None
        tree[str(path.relative_to(folder))] = status.st_mode, status.st_nlink, status.st_size, content
    return tree


def test_a_try_follows_from_its_seed_and_number(cheap_samples, tmp_path):
    for number in range(30):
        for kind in _CHEAP:
            plan = plans.make_plan(5, kind, number, cheap_samples)
            assert plan == plans.make_plan(5, kind, number, cheap_samples)
    assert len({plans.make_plan(seed, "pages", 0, cheap_samples) for seed in range(9)}) == 9


@pytest.mark.slow
def test_equal_tries_write_equal_files(cheap_samples, tmp_path):
    for number in range(40):
        trees = []
        for name in ("one", "two"):
            plan = plans.make_plan(1, _CHEAP[number % len(_CHEAP)], number, cheap_samples)
            path = plans.set_up(plan, cheap_samples, tmp_path / "try")
            os.chdir(tmp_path / "try" / "here")
            plans.mutate(plan, path)
            trees.append(read_tree(tmp_path / "try" / "here"))
            os.chdir(ROOT)
            assert trees[0] == trees[-1], name


def test_every_command_that_reads_files_of_strangers_is_a_target():
    assert {target.name.split()[0] for target in TARGETS if not target.errors} == set(COMMANDS) - _NO_TARGET
    assert len({target.name for target in TARGETS}) == len(TARGETS)
    assert {pattern.partition("/")[0] for target in TARGETS for pattern in target.samples} == set(MAKERS)


def test_a_file_that_the_fuzzer_itself_reads_is_small_and_regular(tmp_path):
    for name in ("pipe", "huge", "memory", "small"):
        path = tmp_path / name
        if name == "pipe":
            os.mkfifo(path)
        elif name == "memory":
            path.symlink_to("/proc/self/mem")
        else:
            path.write_text("{}")
    os.truncate(tmp_path / "huge", 2**36)
    contents = {path.name: read_sample(path) for path in tmp_path.iterdir()}
    assert contents == {"pipe": b"", "huge": b"", "memory": b"", "small": b"{}"}


def test_aliases_of_yaml_do_not_keep_a_mutator_busy(tmp_path):
    lists = [
        "- &a [0]\n",
        *(f"- &{new} [{', '.join([f'*{old}'] * 40)}]\n" for old, new in ("ab", "bc", "cd")),
    ]
    file = tmp_path / "entries.yaml"
    file.write_text("".join([*lists, f"- [{', '.join(['*d'] * 40)}]\n"]))
    before = time.process_time()
    tree.move_value(file, random.Random(0))
    assert time.process_time() - before < 5


def test_no_checksum_covers_a_bank():
    bank = plans.Plan("banks", "banks/facts.db", 0, "facts.db", (plans.Step(".", "raw.flip", 0),), False)
    assert not plans.is_sealed(bank, Path())


def test_progress_is_kept_and_belongs_to_a_seed(tmp_path):
    save_progress(tmp_path, Progress(3, {"pages": 7}))
    assert load_progress(tmp_path, 3).tries == {"pages": 7}
    with pytest.raises(ValueError, match="progress of seed 3; pass another --out"):
        load_progress(tmp_path, 4)


@pytest.mark.matrix
@pytest.mark.timeout(1800)
def test_honest_samples_pass_every_target(samples, tmp_path):
    faults, read = [], set()
    for plan in plans.honest_plans(tuple(MAKERS), samples):
        outcome, broken_laws = plans.run_plan(plan, samples, tmp_path / "try")
        name = TARGETS[plan.target].name
        is_refused = "error" in outcome.result or (
            not TARGETS[plan.target].errors and outcome.result.get("value")
        )
        if broken_laws or (is_refused and not name.startswith("memory undo")):
            faults.append(f"{name} of {plan.sample}: {broken_laws} {outcome.result} {outcome.err[-500:]}")
        read.add(plan.target)
    assert not faults
    assert read == set(range(len(TARGETS)))


@pytest.mark.slow
def test_every_mutator_changes_a_file_for_which_it_is_made(samples, tmp_path, monkeypatch):
    files = [path for path in sorted(samples.rglob("*")) if path.is_file()]
    idle = set()
    for name, mutator in plans.MUTATORS.items():
        patterns = [pattern for pattern, _, ways in plans._WAYS if mutator in ways]
        sources = [file for file in files if any(fnmatch(file.name, pattern) for pattern in patterns)]
        for seed in range(60):
            source = sources[seed % len(sources)]
            kind = source.relative_to(samples).parts[0]
            plan = plans.Plan(kind, str(source.relative_to(samples)), 0, source.name, (), False)
            path = plans.set_up(plan, samples, tmp_path / "try")
            monkeypatch.chdir(tmp_path / "try" / "here")
            before = read_tree(Path())
            plans.mutate(plans.replace(plan, steps=(plans.Step(".", name, seed),)), path)
            is_changed = before != read_tree(Path())
            monkeypatch.chdir(tmp_path)
            if is_changed:
                break
        else:
            idle.add(name)
    assert not idle


@pytest.mark.matrix
def test_a_run_continues_after_ctrl_c(tmp_path):
    words = [
        sys.executable,
        "-P",
        "-m",
        "fuzz",
        "--only",
        "pages",
        "configs",
        "--out",
        str(tmp_path),
        "--minutes",
    ]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}"}
    process = subprocess.Popen([*words, "10"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "tries" not in (line := process.stdout.readline()):
        assert line, "the fuzzer ended"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    assert "stopped; the same command continues" in out
    first = json.loads((tmp_path / "progress.json").read_text())["tries"]
    assert sum(first.values()) > 0
    subprocess.run([*words, "0.05"], cwd=ROOT, env=environment, check=False, capture_output=True)
    second = json.loads((tmp_path / "progress.json").read_text())["tries"]
    assert sum(second.values()) > sum(first.values())
    done = subprocess.run(
        [*words[:-1], "--report"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "| kind of input | tries | accepted | refused |" in done.stdout


def test_mutators_are_seeded(cheap_samples, tmp_path):
    """A mutator that used the global generator would write other files in another process."""
    for name, mutator in plans.MUTATORS.items():
        if name.startswith(("raw.", "tree.")):
            contents = []
            for seed in (1, 2):
                random.seed(seed)
                file = tmp_path / "entries.yaml"
                file.write_bytes((cheap_samples / "configs" / "entries.yaml").read_bytes())
                try:
                    mutator(file, random.Random(3))
                except ValueError:  # no JSON
                    continue
                contents.append(file.read_bytes())
            assert len(set(contents)) <= 1, name
