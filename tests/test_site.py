"""The site: `make docs` builds all of it without a warning, and no page loads anything from outside."""

import html.parser
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from scrubjay import envs, memory
from scrubjay.memory import context

ROOT = Path(__file__).parent.parent
FROM_OUTSIDE = re.compile(r"(?:url\(|@import\s+)['\"]?(?:https?:)?//[^)\s]*")


class Page(html.parser.HTMLParser):
    """What a page loads, and where it leads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.leads: list[str] = []
        self.ids: set[str] = set()
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.ids.add(given.get("id", ""))
        if tag == "a" and "href" in given:
            self.leads.append(given["href"])
        self.loads += [given[name] for name in ("src", "data") if name in given]
        if tag == "link" and "href" in given:
            self.loads.append(given["href"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_site_is_whole_and_stands_alone(tmp_path):
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "-b", "html"]
    built = subprocess.run(
        [*command, "docs", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr[-3000:]
    pages = {path.relative_to(tmp_path).as_posix(): Page(path) for path in tmp_path.rglob("*.html")}
    for name, page in pages.items():
        loads_nothing_from_outside(tmp_path / name, page)
        leads_to_places_that_are_there(tmp_path / name, page, pages, tmp_path)
    for sheet in tmp_path.rglob("*.css"):
        assert not FROM_OUTSIDE.findall(sheet.read_text(encoding="utf-8")), sheet.name
    has_a_page_for_all_that_is_registered(pages)
    for name in ("own", "book", "agent", "team", "sweep"):
        assert pages[f"tutorials/{name}.html"].text.count("cell_output") >= 2, name


def loads_nothing_from_outside(path: Path, page: Page) -> None:
    for address in page.loads:
        parts = urlsplit(address)
        assert parts.scheme in ("", "data"), (path.name, address)
        assert not parts.netloc, (path.name, address)
        assert parts.scheme or (path.parent / unquote(parts.path)).exists(), (path.name, address)


def leads_to_places_that_are_there(path: Path, page: Page, pages: dict[str, Page], root: Path) -> None:
    for address in page.leads:
        parts = urlsplit(address)
        if not parts.scheme:
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            assert target.exists(), (path.name, address)
            there = pages.get(target.relative_to(root.resolve()).as_posix())
            assert not there or unquote(parts.fragment) in {"", *there.ids}, (path.name, address)


def has_a_page_for_all_that_is_registered(pages: dict[str, Page]) -> None:
    for kind, names in (("memories", memory.list_memories()), ("policies", context.list_policies())):
        for name in names:
            assert f"made/{kind}/{name}.html" in pages
    for id in envs.list_environments():
        page = pages[f"made/environments/{id.split('/')[1]}.html"]
        assert any(loaded.endswith(".png") for loaded in page.loads), id
