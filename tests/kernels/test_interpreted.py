"""Runs the tests of Triton kernels in a process of their own, where Triton's interpreter is on.

The interpreter must be selected before the first import of triton and replaces its functions permanently, so
it cannot share a process with the other tests. All files share one process, to import torch and triton once.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(path.name for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "conftest"))


@pytest.mark.slow
@pytest.mark.requires("triton")
@pytest.mark.timeout(1800)
def test_kernels_under_the_interpreter():
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--import-mode=importlib"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", *(str(FOLDER / name) for name in FILES), *options],
        cwd=FOLDER.parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    summary = done.stdout.strip().splitlines()[-1]
    assert re.search(r"[1-9]\d* passed", summary), output
    assert "skipped" not in summary, output
