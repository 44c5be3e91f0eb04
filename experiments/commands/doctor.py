"""`scrubjay doctor`: versions, threads, GPU, and what is missing with the words that bring it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

import scrubjay
from scrubjay.experiments.words.arguments import UsageError
from scrubjay.experiments.words.terminal import table

EXTRAS = {
    "agent": "the agent's tools: web, calculator, calendar",
    "ann": "approximate search in memory banks of 100,000 records and more",
    "bench": "the peers that `make bench` measures against",
    "cluster": "scrubjay launch, and Ray's dashboard",
    "dev": "the tests",
    "embeddings": "banks that search by meaning, in English",
    "film": "scrubjay play --out x.mp4",
    "gpu": "Triton's kernels, where torch brings none: PyPI's does, on Linux",
    "langgraph": "store, checkpointer and middleware of LangGraph",
    "lm": "local language models: chat, inspect, longcontext",
    "mlflow": "scrubjay train --logger mlflow",
    "mpe": "PettingZoo's particle environments",
    "multilingual": "banks that search by meaning, in a hundred languages",
    "onnx": "scrubjay export --onnx",
    "popgym": "POPGym's environments",
    "wandb": "scrubjay train --logger wandb",
}
"""What each extra of the package is for."""
_SHOWN = ("torch", "triton", "ray", "gymnasium", "pettingzoo", "torch-geometric", "langchain-core", "numpy")


def run(words: Sequence[str]) -> int:
    """`scrubjay doctor`: 0 if what every installation needs is there, else 1."""
    if words and words[0] in ("-h", "--help"):
        print(
            "usage: scrubjay doctor\n\n"
            "Show versions, threads, GPU and compiler, and which extras lack what; the exit code is 1 if\n"
            "something is missing that no installation works without."
        )
        return 0
    if words:
        raise UsageError(f"unexpected argument {words[0]!r}: doctor takes none")
    asked = [Requirement(text) for text in requires("scrubjay") or ()]
    lacking = [problem for need in asked if _asked_by(need, "") and (problem := _problem(need))]
    print(f"versions\n{table(_versions())}\n")
    print(f"this machine\n{table(_machine())}\n")
    print(f"extras\n{table([_extra(name, asked) for name in EXTRAS])}")
    if lacking:
        print(f"\nmissing: {', '.join(lacking)}; get it with: pip install scrubjay", file=sys.stderr)
    return 1 if lacking else 0


def _versions() -> list[tuple[str, str]]:
    shown = [("scrubjay", scrubjay.__version__), ("python", platform.python_version())]
    return [*shown, *((name, _version(name) or "not installed") for name in _SHOWN)]


def _machine() -> list[tuple[str, str]]:
    try:
        import torch
    except ImportError as error:
        return [("torch", f"cannot be imported: {error}")]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    said = f"OMP_NUM_THREADS={threads}" if threads else "one while training, unless OMP_NUM_THREADS is set"
    if torch.cuda.is_available():
        gpu = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    else:
        gpu = "none that torch sees" + (
            "" if torch.version.cuda else f": torch {torch.__version__} has no CUDA"
        )
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    return [
        ("system", platform.platform()),
        ("cores", f"{usable} of {os.cpu_count()}"),
        ("threads", f"{torch.get_num_threads()} of torch; {said}"),
        ("GPU", gpu),
        ("compiler", compiler or "none: torch.compile needs g++ on a CPU, as in: apt-get install g++"),
    ]


def _extra(name: str, asked: Sequence[Requirement]) -> tuple[str, str, str]:
    lacking = [problem for need in asked if _asked_by(need, name) and (problem := _problem(need))]
    remedy = f"pip install 'scrubjay[{name}]' (lacks {', '.join(lacking)})" if lacking else "installed"
    return name, EXTRAS[name], remedy


def _asked_by(need: Requirement, extra: str) -> bool:
    """Return whether a package is asked for by an extra, or, of "", by every installation."""
    if need.marker is None:
        return not extra
    return need.marker.evaluate({"extra": extra}) and not (extra and need.marker.evaluate({"extra": ""}))


def _problem(need: Requirement) -> str | None:
    """Return the package that is asked for and not here, with its versions if a wrong one is."""
    found = _version(need.name)
    if found is None:
        return need.name
    return (
        None
        if need.specifier.contains(found, prereleases=True)
        else f"{need.name}{need.specifier}, not {found}"
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
