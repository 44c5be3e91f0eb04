"""Tables of results on the site: every one is there, and moved links lead where they led."""

import re
from pathlib import Path

import pytest

from scrubjay import memory

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def measured(from_docs):
    return from_docs("measured")


def test_links_of_a_page_that_moves_lead_where_they_led(measured):
    notes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)", measured.moved(notes, ROOT, DOCS / "tutorials"))
    assert targets
    for target in targets:
        assert (DOCS / "tutorials" / target).exists(), target
    assert measured.moved("[a](https://b.c/d) [e](#f)", ROOT, DOCS) == "[a](https://b.c/d) [e](#f)"


@pytest.mark.parametrize(
    ("target", "leads"),
    [
        ("../../experiments/results/recall.md", "/made/results/recall.md"),
        ("../../experiments/results/README.md#results", "/made/results/index.md#results"),
        ("../../experiments/bench/memories.md", "/made/bench/memories.md"),
        ("../../memory/README.md", "/made/memories/index.md"),
        ("../../memory/README.md#all", "/made/memories/index.md#all"),
        ("../../SECURITY.md", "/made/security.md"),
        ("../../README.md", "/index.md"),
        ("../../CONTRIBUTING.md", "path:../../CONTRIBUTING.md"),
        ("../../experiments/results/mqar.jsonl", "../../experiments/results/mqar.jsonl"),
        ("speed.md", "speed.md"),
        ("https://example.org/a.md", "https://example.org/a.md"),
    ],
)
def test_a_link_leads_to_the_page_if_there_is_one(target, leads, measured):
    page = measured.on_site(f"[one]({target}) and [two]({target})", DOCS / "guide")
    assert page == f"[one]({leads}) and [two]({leads})"


def test_every_table_has_its_page_with_one_title(measured, tmp_path):
    measured.write_measured(tmp_path)
    for room in ("results", "bench"):
        pages = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / room).glob("*.md")}
        tables = {path.stem for path in (ROOT / "experiments" / room).glob("*.md")} - {"README"}
        assert pages.keys() == tables | {"index"}
        listed = pages.pop("index").partition("{toctree}")[2].split()
        assert tables <= set(listed)
        for name, page in pages.items():
            prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
            assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1, f"{room}/{name}"
            assert page.startswith("# "), f"{room}/{name}"


def test_the_table_of_memories_leads_to_their_pages(measured, tmp_path):
    (tmp_path / "memories").mkdir()
    measured.write_others(tmp_path)
    table, _, listed = (tmp_path / "memories" / "index.md").read_text(encoding="utf-8").partition("{toctree}")
    names = memory.list_memories()
    assert sorted(re.findall(r"^\| \[`(\w+)`\]\(\1\.rst\) \|", table, re.MULTILINE)) == names
    assert listed.split()[1:-1] == names
    for name in ("security", "changes"):
        assert (tmp_path / f"{name}.md").read_text(encoding="utf-8").startswith("# ")
