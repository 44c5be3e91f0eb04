"""`make bench` writes every page of benchmarks. A failing benchmark does not change its page."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SEPARATE = {"elsewhere", "gpu", "prefill", "revisions"}
"""Benchmarks with a target or a command of their own."""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def make(tmp_path):
    """Run make with a Python that prints its arguments and fails for kernels."""
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


def test_every_page_is_written_and_a_failure_changes_none(make, tmp_path):
    pages = tmp_path / "experiments" / "bench"
    (pages / "kernels.md").write_text("as it was\n")
    assert make("--keep-going", "bench") != 0
    names = {path.name for path in (ROOT / "experiments" / "bench").glob("*.md")}
    assert {path.name for path in pages.iterdir()} == names - {f"{name}.md" for name in SEPARATE}
    assert (pages / "kernels.md").read_text() == "as it was\n"
    command = "-P -m scrubjay.experiments.bench.memories"
    assert (pages / "memories.md").read_text() == f"# memories\n\n`python {command}`\n\nran {command}\n"
    assert (tmp_path / "experiments" / "quality" / "embeddings.md").exists()
