"""`make docs` builds the site from the wheel without a warning, and its pages fit a phone.

All tutorials run in empty folders with the installed wheel, as for a new user.
"""

import html
import html.parser
import importlib
import inspect
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from scrubjay import envs, memory
from scrubjay.memory import context

ROOT = Path(__file__).parent.parent
EXTERNAL_URL = re.compile(r"(?:url\(|@import\s+)['\"]?(?:https?:)?//[^)\s]*")

PAGE_STATE = """() => ({
    width: document.documentElement.scrollWidth,
    broken: [...document.images].filter(one => one.complete && !one.naturalWidth).map(one => one.src),
})"""


class Page(html.parser.HTMLParser):
    """Resources and links of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.leads: list[str] = []
        self.ids: set[str] = set()
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.ids.add(values.get("id", ""))
        if tag == "a" and "href" in values:
            self.leads.append(values["href"])
        self.loads += [values[name] for name in ("src", "data") if name in values]
        if tag == "link" and "href" in values:
            self.loads.append(values["href"])


@pytest.fixture(scope="module")
def wheel_environment(tmp_path_factory):
    """Return the environment variables of a process that imports the wheel."""
    wheels, packages = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("packages")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", wheels, ROOT], check=True, timeout=600)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", packages, wheel], check=True, timeout=600)
    environment = os.environ | {"PYTHONPATH": str(packages), "MPLBACKEND": "agg"}
    command = [sys.executable, "-P", "-c", "import scrubjay; print(scrubjay.__file__)"]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd="/")
    assert Path(output.stdout.strip()).is_relative_to(packages)
    return environment


@pytest.fixture(scope="module")
def site(wheel_environment, tmp_path_factory):
    """Build the site with the wheel and return its folder."""
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-P",
        "-m",
        "sphinx",
        "--fail-on-warning",
        "--keep-going",
        "--quiet",
        "-b",
        "html",
    ]
    build = subprocess.run(
        [*command, "docs", folder],
        cwd=ROOT,
        env=wheel_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_site_is_whole_and_stands_alone(site):
    pages = {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}
    for name, page in pages.items():
        check_resources(site / name, page)
        check_links(site / name, page, pages, site)
    for sheet in site.rglob("*.css"):
        assert not EXTERNAL_URL.findall(sheet.read_text(encoding="utf-8")), sheet.name
    check_registered_pages(pages)
    check_reference(pages, site)
    for name, page in pages.items():
        check_head(name, page)
    for name in ("own", "book", "agent", "team", "sweep"):
        check_tutorial(name, pages[f"tutorials/{name}.html"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_page_fits_a_phone(site, browser):
    """No page scrolls sideways, misses a picture or logs an error."""
    page = browser.new_page()
    page.set_viewport_size({"width": 390, "height": 800})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    wrong = {}
    for path in sorted(site.rglob("*.html")):
        page.goto(path.as_uri(), wait_until="load")
        state = page.evaluate(PAGE_STATE)
        if state["width"] > 390 or state["broken"] or complaints:
            wrong[path.relative_to(site).as_posix()] = state | {"complaints": list(complaints)}
        complaints.clear()
    page.close()
    assert not wrong


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("query", ["MemoryBank", "hcam", "checkpoint"])
def test_the_search_finds_pages_of_a_folder(site, browser, query):
    """Without a server, too: a browser then only refuses to load excerpts of the pages."""
    page = browser.new_page()
    page.goto(f"{(site / 'search.html').as_uri()}?q={query}", wait_until="load")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    page.close()


def check_resources(path: Path, page: Page) -> None:
    for address in page.loads:
        parts = urlsplit(address)
        assert parts.scheme in ("", "data"), (path.name, address)
        assert not parts.netloc, (path.name, address)
        assert parts.scheme or (path.parent / unquote(parts.path)).exists(), (path.name, address)


def check_links(path: Path, page: Page, pages: dict[str, Page], root: Path) -> None:
    for address in page.leads:
        parts = urlsplit(address)
        if not parts.scheme:
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            assert target.exists(), (path.name, address)
            there = pages.get(target.relative_to(root.resolve()).as_posix())
            assert not there or unquote(parts.fragment) in {"", *there.ids}, (path.name, address)


def check_tutorial(name: str, page: Page) -> None:
    """A tutorial has outputs, figures and a notebook. It does not contain paths of the build machine."""
    assert page.text.count("cell_output") >= 2, name
    source = (ROOT / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
    figures = len(re.findall(r"plt\.subplots|^Image\(", source, re.MULTILINE))
    assert sum(url.endswith(".png") for url in page.loads) == figures, name
    assert "site-packages" not in page.text, name
    assert sum(address.endswith(f"/{name}.ipynb") for address in page.leads) == 1, name


def check_head(name: str, page: Page) -> None:
    """A page has a title of its own and a description, except pages that Sphinx makes."""
    (title,) = re.findall(r"<title>(.*?)</title>", page.text, re.DOTALL)[:1]
    assert html.unescape(title).strip(), name
    if name not in ("genindex.html", "py-modindex.html", "search.html"):
        assert page.text.count('<meta name="description"') == 1, name


def check_reference(pages: dict[str, Page], site: Path) -> None:
    """Every public name has an anchor and is in the inventory, to which other sites can link."""
    with (site / "objects.inv").open("rb") as file:
        header = [file.readline() for _ in range(4)]
        lines = zlib.decompress(file.read()).decode().splitlines()
    assert header[0].startswith(b"# Sphinx inventory version 2")
    inventory = {line.split(" ", 1)[0] for line in lines}
    for package in public_packages("scrubjay"):
        page = pages[f"generated/reference/{package.removeprefix('scrubjay.').replace('.', '-')}.html"]
        assert f"module-{package}" in page.ids
        for name in importlib.import_module(package).__all__:
            assert f"{package}.{name}" in page.ids & inventory, name


def public_packages(package: str) -> list[str]:
    """Return a package and the public packages in it."""
    packages = [package]
    module = importlib.import_module(package)
    for name in dir(module):
        inner = getattr(module, name)
        if inspect.ismodule(inner) and inner.__name__ == f"{package}.{name}" and hasattr(inner, "__all__"):
            packages += public_packages(inner.__name__)
    return packages


def check_registered_pages(pages: dict[str, Page]) -> None:
    for kind, names in (("memories", memory.list_memories()), ("policies", context.list_policies())):
        for name in names:
            page = pages[f"generated/{kind}/{name}.html"]
            assert any(url.endswith(f"/{name}.png") for url in page.loads), name
    for id in envs.list_environments():
        page = pages[f"generated/environments/{id.split('/')[1]}.html"]
        assert any(url.endswith(".png") for url in page.loads), id
