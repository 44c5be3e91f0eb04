"""Every table of results has a page, and moved links keep their targets."""

import re
from pathlib import Path

import pytest

from scrubjay import memory

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def tables(from_docs):
    return from_docs("tables")


def test_links_of_a_moved_page_keep_their_targets(tables):
    notes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)", tables.move_links(notes, ROOT, DOCS / "tutorials"))
    assert targets
    for target in targets:
        assert (DOCS / "tutorials" / target).exists(), target
    assert tables.move_links("[a](https://b.c/d) [e](#f)", ROOT, DOCS) == "[a](https://b.c/d) [e](#f)"


@pytest.mark.parametrize(
    ("target", "leads"),
    [
        ("../../experiments/results/recall.md", "/generated/results/recall.md"),
        ("../../experiments/results/README.md#results", "/generated/results/index.md#results"),
        ("../../experiments/bench/memories.md", "/generated/bench/memories.md"),
        ("../../memory/README.md", "/generated/memories/index.md"),
        ("../../memory/README.md#all", "/generated/memories/index.md#all"),
        ("../../SECURITY.md", "/generated/security.md"),
        ("../../README.md", "/index.md"),
        ("../../tests/renamed.json", "/generated/renamed.md"),
        ("../../CONTRIBUTING.md", "path:../../CONTRIBUTING.md"),
        ("../../experiments/results/mqar.jsonl", "../../experiments/results/mqar.jsonl"),
        ("speed.md", "speed.md"),
        ("https://example.org/a.md", "https://example.org/a.md"),
    ],
)
def test_a_link_leads_to_the_page_if_there_is_one(target, leads, tables):
    page = tables.on_site(f"[one]({target}) and [two]({target})", DOCS / "guide")
    assert page == f"[one]({leads}) and [two]({leads})"


def test_every_table_has_its_page_with_one_title(tables, tmp_path):
    tables.write_tables(tmp_path)
    for folder in ("results", "bench"):
        pages = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / folder).glob("*.md")}
        stems = {path.stem for path in (ROOT / "experiments" / folder).glob("*.md")} - {"README"}
        assert pages.keys() == stems | {"index"}
        entries = pages.pop("index").partition("{toctree}")[2].split()
        assert stems <= set(entries)
        for name, page in pages.items():
            prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
            assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1, f"{folder}/{name}"
            assert page.startswith("# "), f"{folder}/{name}"


def test_the_table_of_memories_leads_to_their_pages(tables, tmp_path):
    (tmp_path / "memories").mkdir()
    tables.write_others(tmp_path)
    table, _, toctree = (
        (tmp_path / "memories" / "index.md").read_text(encoding="utf-8").partition("{toctree}")
    )
    names = memory.list_memories()
    assert sorted(re.findall(r"^\| \[`(\w+)`\]\(\1\.rst\) \|", table, re.MULTILINE)) == names
    assert toctree.split()[1:-1] == names
    for name in ("security", "changes", "renamed"):
        assert (tmp_path / f"{name}.md").read_text(encoding="utf-8").startswith("# ")
