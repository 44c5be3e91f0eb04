"""What the documents say is run: every snippet, every relative link, every number that code can tell."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scrubjay import envs, memory

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md"]


def snippets(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command,
        cwd=folder,
        check=False,
        env=os.environ | {"PATH": path, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=240,
    )


# Unpacking the real model takes longer than all other snippets; that it answers, the chat model's tests say.
REAL = "smollm2"


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["tiny", "whole"])
@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_snippets_run_in_order(document, whole, tmp_path):
    shown = snippets(document, "python")
    run_here = [snippet for snippet in shown if whole or REAL not in snippet]
    assert len(shown) - 1 <= len(run_here) > 0
    (tmp_path / "snippets.py").write_text("\n".join(run_here))
    done = run([sys.executable, "-P", "snippets.py"], tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_quickstart_is_short():
    for snippet in snippets("README.md", "python"):
        assert len(snippet.splitlines()) <= 15
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_shell_snippets_run(document, tmp_path):
    for snippet in snippets(document, "sh"):
        for line in snippet.splitlines():
            if line.startswith("make "):
                # The suite cannot run itself: make only says what it would do.
                command, cwd = f"{line.replace('make', 'make -n', 1)}", ROOT
            else:
                command, cwd = line, tmp_path
            done = run(["bash", "-c", command], cwd)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_relative_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / document).read_text()):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), f"{document} links to {target}"


def test_the_table_of_memories_is_true():
    """A row may tell of several, each with its file and its bytes in their order."""
    told = []
    for line in (ROOT / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 7 and re.fullmatch(r"[\d,]+ B(, [\d,]+ B)*", cells[4]):
            names, files = (re.findall(r"`([\w/.]+)`", cell) for cell in (cells[1], cells[3]))
            told += zip(names, files, cells[4].split(", "), strict=True)
    assert sorted(name for name, _, _ in told) == memory.list_memories()
    for name, file, size in told:
        assert (ROOT / file).exists()
        assert int(size.removesuffix(" B").replace(",", "")) == memory.make(name, dim=64).state_bytes(1)


def test_the_table_of_environments_is_complete():
    rows = re.findall(r"^\| `(scrubjay/[\w-]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(envs.list_environments())


def test_make_knows_every_promised_target():
    make = shutil.which("make")
    assert make is not None
    for target in ("demo", "test", "lint", "type", "bench", "docs-check"):
        subprocess.run([make, "-n", target], cwd=ROOT, check=True, capture_output=True, timeout=60)
