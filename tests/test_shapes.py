"""Declared shapes are executed by `make shapes`: what does not fit is refused where it is handed in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("beartype")
TESTS = Path(__file__).parent


def outcome(call):
    """Return what a call raises in a process where annotations are executed, '' if nothing."""
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
    ("call", "raised"),
    [
        ("Clock.of(torch.zeros(2, dtype=torch.long), torch.zeros(2, 3, dtype=torch.bool))", ""),
        (
            "Clock.of(torch.zeros(2, dtype=torch.long), torch.zeros(1, 3, dtype=torch.bool))",
            "TypeCheckError",
        ),
        ("Clock.of(torch.zeros(2), torch.zeros(2, 3, dtype=torch.bool))", "TypeCheckError"),
        ("pack([torch.zeros(1, 2, 3), torch.zeros(1, 3, 2)])", ""),
        ("pack([torch.zeros(1, 2, 3, dtype=torch.long)])", "TypeCheckError"),
    ],
    ids=["fits", "another batch", "another dtype", "layers of any width", "no network"],
)
def test_the_hook_refuses_what_is_not_declared_and_nothing_else(call, raised):
    assert outcome(call) == raised


def test_ops_and_gpu_kernels_are_left_as_they_are_written():
    sys.path.insert(0, str(TESTS))
    try:
        import shapes
    finally:
        sys.path.remove(str(TESTS))
    hooked = shapes.hooked()
    assert {"scrubjay.memory", "scrubjay.agents.rl", "scrubjay.kernels.neural.network"} <= set(hooked)
    assert not [name for name in hooked if name.endswith(".gpu")]
    for room in ("sinks", "summary", "retrieval"):
        assert f"scrubjay.kernels.{room}.op" not in hooked
