"""The pages are true: snippets run, relative links exist and numbers agree with the tables."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import scrubjay
from scrubjay import envs, memory

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md"]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (".", "extending", "guide", "results", "tutorials")
    for path in (ROOT / "docs" / folder).glob("*.md")
)
PACKAGE = "docs/package.md"
GUIDE = [
    page
    for page in PAGES
    if page.startswith(("docs/guide/", "docs/results/", "docs/c", "docs/index", "docs/start"))
]
EXTENDING = [page for page in PAGES if page.startswith("docs/extending/")]


def with_snippets(documents: list[str], language: str) -> list[str]:
    return [document for document in documents if snippets(document, language)]


def snippets(document: str, language: str) -> list[str]:
    return [code for code, _ in with_outputs(document, language)]


def with_outputs(document: str, language: str) -> list[tuple[str, str]]:
    """Return the snippets of a page, each with the output that a block `text` directly below it shows."""
    block = rf"^```{language}\n(.*?)^```\n(?:\n*```text\n(.*?)^```$)?"
    return re.findall(block, (ROOT / document).read_text() + "\n", re.MULTILINE | re.DOTALL)


def write_files(document: str, folder: Path) -> None:
    """Write the snippets of a page whose first line is the name of a file, as `# keys.py`."""
    block = r"^```(?:python|yaml)\n(# (\w+\.(?:py|yaml))\n.*?)^```$"
    for text, name in re.findall(block, (ROOT / document).read_text(), re.MULTILINE | re.DOTALL):
        (folder / name).write_text(text)


def check_output(expected: str, output: str, code: str) -> None:
    """Compare an output with the one on the page, where `...` stands for any text."""
    pattern = ".*?".join(re.escape(part.strip()) for part in expected.split("..."))
    output = re.sub(r"[ \t]+$", "", output.expandtabs(), flags=re.MULTILINE).strip()
    assert re.fullmatch(pattern, output, re.DOTALL), f"{code}\nprinted\n{output}\nthe page has\n{expected}"


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command,
        cwd=folder,
        check=False,
        env=os.environ | {"PATH": path, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=600,
    )


# Unpacking the real model takes longer than all other snippets. Tests of the chat model cover it.
REAL = "smollm2"

MATRIX = {
    "python": ("docs/index.md", "docs/guide/language.md", "docs/guide/long-documents.md"),
    "sh": (
        "docs/choose.md",
        "docs/guide/environments.md",
        "docs/guide/evaluate.md",
        "docs/guide/looking.md",
        "docs/guide/ray.md",
        "docs/guide/sweeps.md",
        "docs/guide/teams.md",
        "docs/guide/train.md",
    ),
}
"""Pages whose long snippets only `make docs-check` and `make test-all` run. CI runs those of the others."""


def mark(document: str, language: str) -> pytest.MarkDecorator:
    return pytest.mark.matrix if document in MATRIX[language] else pytest.mark.slow


@pytest.mark.parametrize(
    ("document", "whole"),
    [
        ("README.md", False),
        *(
            pytest.param(page, True, marks=mark(page, "python"))
            for page in with_snippets([*DOCUMENTS, PACKAGE, *GUIDE], "python")
        ),
    ],
)
def test_python_snippets_run_in_order(document, whole, tmp_path):
    code = with_outputs(document, "python")
    run_here = [(snippet, expected) for snippet, expected in code if whole or REAL not in snippet]
    assert len(code) - 1 <= len(run_here)
    write_files(document, tmp_path)
    runs(run_here, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("document", with_snippets(EXTENDING, "python"))
def test_a_page_on_extending_is_whole(document, tmp_path):
    """Each page runs alone. `test_contributing.py` runs all of them together."""
    runs(with_outputs(document, "python"), tmp_path)


MARK = "=== end of snippet ==="


def runs(run_here: list[tuple[str, str]], tmp_path: Path) -> None:
    """Run snippets one after the other in one process, and compare the outputs that the page shows."""
    code = "".join(f"{snippet}\nprint({MARK!r}, flush=True)\n" for snippet, _ in run_here)
    (tmp_path / "snippets.py").write_text(code)
    done = run([sys.executable, "-P", "snippets.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    for (snippet, expected), output in zip(run_here, done.stdout.split(f"{MARK}\n"), strict=False):
        if expected:
            check_output(expected, output, snippet)


def test_the_quickstart_is_short():
    for document in ("README.md", *GUIDE):
        for snippet in snippets(document, "python"):
            # The formatter adds empty lines around classes.
            assert len(list(filter(str.strip, snippet.splitlines()))) <= 15
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_release_notes_are_short():
    notes = (ROOT / "CHANGELOG.md").read_text()
    (newest, _), *_ = re.findall(r"^## (\S+) - (\d{4}-\d\d-\d\d)$", notes, re.MULTILINE)
    assert newest == scrubjay.__version__
    for release in re.split(r"^## ", notes, flags=re.MULTILINE)[1:]:
        assert len(release.splitlines()) <= 130


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "document",
    [
        pytest.param(page, marks=mark(page, "sh"))
        for page in with_snippets([*DOCUMENTS, PACKAGE, *GUIDE], "sh")
    ],
)
def test_shell_snippets_run(document, tmp_path):
    write_files(document, tmp_path)
    for snippet, expected in with_outputs(document, "sh"):
        output = ""
        for line in snippet.replace("\\\n", "").splitlines():
            if line.startswith("make "):
                # The suite cannot run itself, so make only prints its commands.
                command, cwd = f"{line.replace('make', 'make -n', 1)}", ROOT
            else:
                command, cwd = line, tmp_path
            done = run(["bash", "-c", command], cwd)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            output += done.stdout
        if expected:
            check_output(expected, output, snippet)


@pytest.mark.parametrize("document", [*DOCUMENTS, *PAGES, "CHANGELOG.md", "memory/README.md"])
def test_relative_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / document).read_text()):
        if not target.startswith("http") and "generated/" not in target:  # pages of the site
            assert ((ROOT / document).parent / target).exists(), f"{document} links to {target}"


def test_the_table_of_memories_is_true():
    table = (ROOT / "memory" / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| `([\w/.]+)` \| ([\d,]+) B \|", table, re.MULTILINE)
    assert sorted(name for name, _, _ in rows) == memory.list_memories()
    for name, file, size in rows:
        assert (ROOT / file).exists()
        assert int(size.replace(",", "")) == memory.make(name, dim=64).state_bytes(1)


def test_the_differences_from_the_papers_are_those_of_all_memories():
    text = (ROOT / "docs" / "papers.md").read_text()
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert list(sections) == memory.list_memories()
    for name, section in sections.items():
        values = type(memory.make_config(name)).paper_values
        assert ("`paper=True` is refused" in section) is isinstance(values, str)
        assert ("`paper=True` gives the defaults" in section) is (values == {})


def test_ratios_of_speed_are_those_of_the_tables():
    """Ratios have one decimal. Ratios in brackets are from another machine without a table."""
    guide = ROOT / "docs" / "guide"
    for line in re.findall(r"^\| .*\.md\).*$", (guide / "speed.md").read_text(), re.MULTILINE):
        tables = "".join((guide / page).read_text() for page in re.findall(r"\(([^)]+\.md)\)", line))
        ratios = {round(float(ratio), 1) for ratio in re.findall(r"(\d+\.\d+)x", tables)}
        page_ratios = set(map(float, re.findall(r"(\d+\.\d+)x", re.sub(r"\[[^]]*\](?!\()", "", line))))
        assert page_ratios <= ratios, line


def test_recall_of_the_bank_is_that_of_the_tables_of_public_and_self_made_sets():
    """The guide has MRR and recall of the bank, next to the best of the other methods."""
    results = (ROOT / "experiments" / "results" / "recall.md").read_text()
    expected = []
    for table in re.findall(r"^\| mean of \d+ sets .*\n(?:\|.*\n)+", results, re.MULTILINE):
        head, _, *rows = (re.split(r"\s+\|\s+", row.strip("| ")) for row in table.splitlines())
        values = {row[0]: [row[head.index(measure)] for measure in ("MRR", "@10")] for row in rows}
        own = values["**MemoryBank**"]
        others = [row for name, row in values.items() if "MemoryBank" not in name]
        expected += [(bank, max(column)) for bank, column in zip(own, zip(*others, strict=True), strict=True)]
    guide = (ROOT / "docs" / "guide" / "bank.md").read_text()
    rows = re.findall(r"^\| [\w -]+ \| (?:MRR|recall@10) \| ([\d.]+) \| ([\d.]+) \|$", guide, re.MULTILINE)
    assert rows == expected


def test_recall_in_the_changelog_is_that_of_the_earlier_tables():
    results = (ROOT / "experiments" / "results" / "recall.md").read_text()
    table = re.search(r"^\| recall @5, @10, @20 .*\n(?:\|.*\n)+", results, re.MULTILINE)
    assert table
    head, _, *rows = (re.split(r"\s+\|\s+", row.strip("| ")) for row in table[0].splitlines())
    at_10 = {row[0]: [float(cell.split()[1]) for cell in row[1:]] for row in rows}
    notes = (ROOT / "CHANGELOG.md").read_text()
    for column, digits in (("mean, public", 3), ("mean, all", 2)):
        values = {name: row[head.index(column) - 1] for name, row in at_10.items()}
        best = max(value for name, value in values.items() if "MemoryBank" not in name)
        own = values["**MemoryBank**"]
        assert f"{own:.{digits}f}; best of nine other search methods {best:.{digits}f}" in notes


RESULTS = ROOT / "experiments" / "results"


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/results/")])
def test_numbers_of_results_are_those_of_the_reports(page):
    """Every number in a table is in a report that the page links. The index only repeats answers."""
    text = (ROOT / page).read_text()
    number = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
    reports = set(re.findall(r"experiments/results/([\w-]+\.md)", text))
    numbers = {each for report in reports for each in number.findall((RESULTS / report).read_text())}
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert tables
    for table in tables if not page.endswith("/index.md") else []:
        for row in table.splitlines()[2:]:
            assert set(number.findall(row.partition("|")[2].partition("|")[2])) <= numbers, row


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/results/")])
def test_findings_are_short(page):
    findings = (ROOT / page).read_text().partition("## Findings\n")[2].partition("\n## ")[0]
    for finding in re.split(r"^- ", findings, flags=re.MULTILINE)[1:]:
        assert len(finding.split()) <= 25, finding


def test_every_page_of_results_is_in_the_index():
    index = (ROOT / "docs" / "results" / "index.md").read_text()
    links = re.findall(r"\| \[[\w-]+\]\(([\w-]+)\.md\) \|$", index, re.MULTILINE)
    assert sorted([*links, "index"]) == sorted(path.stem for path in (ROOT / "docs" / "results").glob("*.md"))


def test_the_families_name_every_memory():
    families = (ROOT / "docs" / "guide" / "memories.md").read_text()
    assert set(memory.list_memories()) <= set(re.findall(r"`(\w+)`", families))


def test_the_table_of_environments_is_complete():
    table = (ROOT / "docs" / "guide" / "environments.md").read_text()
    rows = re.findall(r"^\| `(scrubjay/[\w-]+)` \|", table, re.MULTILINE)
    assert sorted(rows) == sorted(envs.list_environments())


def test_make_knows_every_promised_target():
    make = shutil.which("make")
    assert make is not None
    for target in ("demo", "test", "lint", "type", "bench", "docs-check"):
        subprocess.run([make, "-n", target], cwd=ROOT, check=True, capture_output=True, timeout=600)
