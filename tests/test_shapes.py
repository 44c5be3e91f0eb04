"""`make shapes` checks shape annotations and reports a wrong argument at the call."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.requires("beartype")

TESTS = Path(__file__).parent


def outcome(call):
    """Return the exception type of a call in a process with checked annotations, or an empty string."""
    code = f"""
import shapes
shapes.pytest_load_initial_conftests()
import torch
from scrubjay.memory.contract.clock import Clock
from scrubjay.kernels.neural.network import pack
try:
    {call}
except Exception as error:
    print(type(error).__name__)
"""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("Clock.from_starts(torch.zeros(2, dtype=torch.long), torch.zeros(2, 3, dtype=torch.bool))", ""),
        (
            "Clock.from_starts(torch.zeros(2, dtype=torch.long), torch.zeros(1, 3, dtype=torch.bool))",
            "TypeCheckError",
        ),
        ("Clock.from_starts(torch.zeros(2), torch.zeros(2, 3, dtype=torch.bool))", "TypeCheckError"),
        ("pack([torch.zeros(1, 2, 3), torch.zeros(1, 3, 2)])", ""),
        ("pack([torch.zeros(1, 2, 3, dtype=torch.long)])", "TypeCheckError"),
    ],
    ids=["fits", "another batch", "another dtype", "layers of any width", "no network"],
)
def test_the_hook_refuses_what_is_not_declared_and_nothing_else(call, error):
    assert outcome(call) == error


def test_ops_and_gpu_kernels_are_not_wrapped():
    sys.path.insert(0, str(TESTS))
    try:
        import shapes
    finally:
        sys.path.remove(str(TESTS))
    modules = shapes.checked_modules()
    assert {"scrubjay.memory", "scrubjay.agents.rl", "scrubjay.kernels.neural.network"} <= set(modules)
    assert not [name for name in modules if name.endswith(".gpu")]
    for package in ("sinks", "summary", "retrieval"):
        assert f"scrubjay.kernels.{package}.op" not in modules
