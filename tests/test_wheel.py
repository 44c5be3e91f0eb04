"""The wheel contains every package, and a package index can show its page."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scrubjay.experiments.commands import COMMANDS
from scrubjay.experiments.commands.benchmarks import MEASUREMENTS
from scrubjay.experiments.commands.memory import ACTIONS

ROOT = Path(__file__).parent.parent


TINY = "--total-steps 64 --env.num-envs 4 --segment-length 8 --eval-episodes 2"
CALLS = {
    "train": f"train tmaze-demo --memory gru {TINY} --quiet --run-dir run",
    "resume": "resume run --total-steps 128 --quiet",
    "eval": "eval run --episodes 2",
    "plot": "plot run",
    "play": "play run --max-steps 4",
    "look": "look run --max-steps 4",
    "export": "export run --pretrained",
    "results": "results run --csv",
    "compare": f"compare --memories gru --recipes tmaze-demo --seeds 0 --out c -- {TINY}",
    "demo": "demo --total-steps 256 --out d",
    "list": "list",
    "doctor": "doctor",
    "completion": "completion bash",
    "kagentbench": "kagentbench part.jsonl",
    "chat": "chat --help",
    "agent": "agent --help",
    "inspect": "inspect --help",
    "launch": "launch tmaze-demo --help",
    "sweep": "sweep tmaze-demo --help",
}
"""A call of each command in this order; its help where a call needs a model or a cluster."""
MEMORY_CALLS = {
    "add": "add m.db one",
    "search": "search m.db one --json",
    "show": "show m.db",
    "page": "page m.db",
    "namespaces": "namespaces m.db",
    "update": "update --help",
    "supersede": "supersede --help",
    "forget": "forget --help",
    "export": "export m.db --out records.jsonl",
    "import": "import n.db records.jsonl",
    "decisions": "decisions m.db",
    "undo": "undo --help",
    "facts": "facts f.jsonl --facts 60 --questions 3",
    "bench": "bench f.jsonl --arms bank files --out b",
}
MEASUREMENT_CALLS = {
    name: f"{name} --help" for name in ("perplexity", "haystack", "speed", "agreement", "questions", "cost")
}
PREDICTION = {
    "id": "q1",
    "type": "conclusion",
    "golden_result_list": ["It was June."],
    "funcs": [],
    "model_predict": {"KuaiAgent": "June"},
}
EVIDENCE = ("bench", "quality", "results", "scoreboard")
"""Folders of `experiments` that stay in the repository."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel of this repository."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    config = folder / "setup.cfg"
    config.write_text(
        f"[build]\nbuild_base = {folder / 'build'}\n"
    )  # build/ may hold files of another version
    environment = {**os.environ, "DIST_EXTRA_CONFIG": str(config)}
    subprocess.run([*build, str(ROOT)], check=True, timeout=600, env=environment)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_a_wheel_contains_every_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    pages = (f"experiments/viz/page.{ending}" for ending in ("html", "css", "js"))
    maps = "memory/context/policies/scored/kvzap-llama-30-9-576-49152.safetensors"
    data = ("py.typed", "experiments/answers/parts.json", maps, *pages)
    for name in ("memory/hcam.py", "kernels/retrieval/op.py", "experiments/commands/main.py", *data):
        assert f"scrubjay/{name}" in names
    evidence = tuple(f"scrubjay/experiments/{folder}/" for folder in EVIDENCE)
    assert not [name for name in names if name.startswith(evidence)]
    assert {name.partition("/")[0] for name in names if "dist-info" not in name} == {"scrubjay"}


def test_every_command_has_a_call():
    assert {*CALLS, "memory", "longcontext"} == set(COMMANDS)
    assert set(MEMORY_CALLS) == set(ACTIONS)
    assert set(MEASUREMENT_CALLS) == set(MEASUREMENTS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_runs_from_an_installed_wheel(wheel, tmp_path):
    """Each command runs in an empty folder, without the repository on the path."""
    site, here = tmp_path / "site", tmp_path / "here"
    here.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*install, str(site), str(wheel)], check=True, timeout=600)
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "XDG_CACHE_HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    place = [sys.executable, "-P", "-c", "import scrubjay; print(scrubjay.__file__)"]
    done = subprocess.run(place, capture_output=True, text=True, check=True, cwd=here, env=environment)
    assert done.stdout.startswith(str(site))
    (here / "part.jsonl").write_text(json.dumps(PREDICTION) + "\n")
    lines = list(CALLS.values())
    lines += [f"memory {line}" for line in MEMORY_CALLS.values()]
    lines += [f"longcontext {line}" for line in MEASUREMENT_CALLS.values()]
    for line in lines:
        command = [sys.executable, "-P", "-m", "scrubjay", *line.split()]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=here, env=environment, timeout=600
        )
        assert done.returncode == 0, f"{line}: {done.stderr or done.stdout}"
        # A new bank has no decisions to list.
        assert done.stdout or "--out" in line or line == "memory decisions m.db", line


@pytest.mark.slow
@pytest.mark.requires("build", "twine")
def test_distributions_pass_the_checks_of_an_index(tmp_path):
    """The page of both distributions has no pictures and no relative links."""
    build = [sys.executable, "-P", "-m", "build", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=600)
    files = sorted(map(str, tmp_path.iterdir()))
    assert [name.rpartition(".")[2] for name in files] == ["whl", "gz"]
    check = [sys.executable, "-P", "-m", "twine", "check", "--strict", *files]
    done = subprocess.run(check, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "docs" / "package.md").read_text()):
        assert target.startswith("https://"), target
