"""`make bench` makes every page of measured numbers, and one that fails leaves its page alone."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ASKED_FOR = {"gpu", "revisions"}
"""What has a target of its own, and what compares with a commit that somebody names."""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def make(tmp_path):
    """Run make with pages of its own and a Python that prints its arguments, but fails at kernels."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    for folder in ("venv/bin", "experiments/bench", "experiments/quality"):
        (tmp_path / folder).mkdir(parents=True)
    for stamp in (".installed", ".installed-bench"):
        (tmp_path / "venv" / stamp).touch()
    python = tmp_path / "venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho ran "$@"\ncase "$*" in *kernels*) exit 3;; esac\n')
    python.chmod(0o755)

    def run(*words):
        done = subprocess.run(
            ["make", "VENV=venv", *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        return done.returncode

    return run


def test_all_that_is_measured_is_measured_anew_and_a_failure_leaves_its_page(make, tmp_path):
    made = tmp_path / "experiments" / "bench"
    (made / "kernels.md").write_text("as it was\n")
    assert make("--keep-going", "bench") != 0
    measured = {path.name for path in (ROOT / "experiments" / "bench").glob("*.md")}
    assert {path.name for path in made.iterdir()} == measured - {f"{name}.md" for name in ASKED_FOR}
    assert (made / "kernels.md").read_text() == "as it was\n"
    command = "-P -m scrubjay.experiments.bench.memories"
    assert (made / "memories.md").read_text() == f"# memories\n\n`python {command}`\n\nran {command}\n"
    assert (tmp_path / "experiments" / "quality" / "embeddings.md").exists()
