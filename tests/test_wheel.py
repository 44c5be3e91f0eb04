"""The wheel contains every package, and a package index can show its page."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_wheel_contains_every_package(tmp_path):
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True, timeout=240)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    pages = (f"experiments/viz/page.{ending}" for ending in ("html", "css", "js"))
    for name in (
        "py.typed",
        "memory/hcam.py",
        "kernels/retrieval/op.py",
        "experiments/answers/parts.json",
        *pages,
    ):
        assert f"scrubjay/{name}" in names
    evidence = tuple(f"scrubjay/experiments/{folder}/" for folder in ("bench", "quality", "results"))
    assert not [name for name in names if name.startswith(evidence)]
    assert {name.partition("/")[0] for name in names if "dist-info" not in name} == {"scrubjay"}


@pytest.mark.slow
@pytest.mark.requires("build", "twine")
def test_distributions_pass_the_checks_of_an_index(tmp_path):
    """The page of both distributions has no pictures and no relative links."""
    build = [sys.executable, "-P", "-m", "build", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=240)
    files = sorted(map(str, tmp_path.iterdir()))
    assert [name.rpartition(".")[2] for name in files] == ["whl", "gz"]
    check = [sys.executable, "-P", "-m", "twine", "check", "--strict", *files]
    done = subprocess.run(check, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "docs" / "package.md").read_text()):
        assert target.startswith("https://"), target
