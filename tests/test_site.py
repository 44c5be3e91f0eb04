"""The site: `make docs` builds all of it without a warning, from the wheel as from here, and phones show it.

So somebody new is tried, too: all tutorials run in empty folders on what a package index would give.
"""

import html.parser
import os
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

LOOKED_AT = """() => ({
    width: document.documentElement.scrollWidth,
    broken: [...document.images].filter(one => one.complete && !one.naturalWidth).map(one => one.src),
})"""


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


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return the environment of somebody new: the package is the wheel, not the working tree."""
    wheels, packages = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("packages")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", wheels, ROOT], check=True, timeout=240)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", packages, wheel], check=True, timeout=240)
    environment = os.environ | {"PYTHONPATH": str(packages), "MPLBACKEND": "agg"}
    asked = [sys.executable, "-P", "-c", "import scrubjay; print(scrubjay.__file__)"]
    found = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True, cwd="/")
    assert Path(found.stdout.strip()).is_relative_to(packages)
    return environment


@pytest.fixture(scope="module")
def site(installed, tmp_path_factory):
    """Return the folder of the site: tutorials are run from the wheel, each in a folder that is empty."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "-b", "html"]
    built = subprocess.run(
        [*command, "docs", folder], cwd=ROOT, env=installed, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_site_is_whole_and_stands_alone(site):
    pages = {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}
    for name, page in pages.items():
        loads_nothing_from_outside(site / name, page)
        leads_to_places_that_are_there(site / name, page, pages, site)
    for sheet in site.rglob("*.css"):
        assert not FROM_OUTSIDE.findall(sheet.read_text(encoding="utf-8")), sheet.name
    has_a_page_for_all_that_is_registered(pages)
    for name in ("own", "book", "agent", "team", "sweep"):
        shows_what_it_does(name, pages[f"tutorials/{name}.html"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_page_fits_a_phone(site, browser):
    """None scrolls sideways, lacks a picture, or complains."""
    page = browser.new_page()
    page.set_viewport_size({"width": 390, "height": 800})
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    wrong = {}
    for path in sorted(site.rglob("*.html")):
        page.goto(path.as_uri(), wait_until="load")
        found = page.evaluate(LOOKED_AT)
        if found["width"] > 390 or found["broken"] or complaints:
            wrong[path.relative_to(site).as_posix()] = found | {"complaints": list(complaints)}
        complaints.clear()
    page.close()
    assert not wrong


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


def shows_what_it_does(name: str, page: Page) -> None:
    """Outputs of a tutorial are there, and its figures and notebook; none tells where the site was built."""
    assert page.text.count("cell_output") >= 2, name
    source = (ROOT / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
    figures = len(re.findall(r"plt\.subplots|^Image\(", source, re.MULTILINE))
    assert sum(loaded.endswith(".png") for loaded in page.loads) == figures, name
    assert "site-packages" not in page.text, name
    assert sum(address.endswith(f"/{name}.ipynb") for address in page.leads) == 1, name


def has_a_page_for_all_that_is_registered(pages: dict[str, Page]) -> None:
    for kind, names in (("memories", memory.list_memories()), ("policies", context.list_policies())):
        for name in names:
            page = pages[f"made/{kind}/{name}.html"]
            assert any(loaded.endswith(f"/{name}.png") for loaded in page.loads), name
    for id in envs.list_environments():
        page = pages[f"made/environments/{id.split('/')[1]}.html"]
        assert any(loaded.endswith(".png") for loaded in page.loads), id
