"""Tables of results and benchmarks as pages of the site, and links between pages and files."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
_FOLDERS = {ROOT / "experiments" / name: name for name in ("results", "bench")}
_PAGES = {
    ROOT / "README.md": "/index.md",
    ROOT / "CHANGELOG.md": "/generated/changes.md",
    ROOT / "SECURITY.md": "/generated/security.md",
    ROOT / "memory" / "README.md": "/generated/memories/index.md",
    ROOT / "tests" / "renamed.json": "/generated/renamed.md",
}
"""Pages of the files outside `docs`."""


def write_tables(site: Path) -> None:
    """Write a folder of pages for results and one for benchmarks into the folder of generated pages."""
    for folder, name in _FOLDERS.items():
        (site / name).mkdir()
        pages = {path: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md"))}
        if folder / "README.md" not in pages:
            pages[folder / "README.md"] = _contents(folder, pages)
        pages[folder / "README.md"] += _hidden_toctree(
            [_page(path) for path in pages if path.name != "README.md"]
        )
        for path, text in pages.items():
            page = site / name / f"{_page(path)}.md"
            page.write_text(move_links(text, folder, site / name), encoding="utf-8")


def write_others(site: Path) -> None:
    """Write the changelog, the security page, the renamed names and the table of memories with links."""
    (site / "renamed.md").write_text(renamed_page(), encoding="utf-8")
    for name in ("CHANGELOG", "SECURITY"):
        path = ROOT / f"{name}.md"
        page = site / _PAGES[path].removeprefix("/generated/")
        page.write_text(move_links(path.read_text(encoding="utf-8"), ROOT, site), encoding="utf-8")
    package, folder = ROOT / "memory", site / "memories"
    text = move_links((package / "README.md").read_text(encoding="utf-8"), package, folder)
    names = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    table = re.sub(r"^\| `(\w+)` \|", r"| [`\1`](\1.rst) |", text, flags=re.MULTILINE)
    (folder / "index.md").write_text(table + _hidden_toctree(sorted(names)), encoding="utf-8")


def move_links(page: str, old: Path, new: Path) -> str:
    """Return a page moved to another folder, with its relative links adjusted."""
    return _with_links(page, lambda target: os.path.relpath(old / target, new))


def on_site(page: str, folder: Path) -> str:
    """Return a page of this folder with links to files replaced by links to their pages.

    Links to other files outside `docs` lead to copies of the files. MyST would treat them as pages.
    """

    def resolve(target: str) -> str:
        path = (folder / target).resolve()
        if path.suffix not in (".md", ".json") or (ROOT / "docs") in path.parents:
            return target
        if path.parent in _FOLDERS:
            return f"/generated/{_FOLDERS[path.parent]}/{_page(path)}.md"
        return _PAGES.get(path, f"path:{target}" if path.suffix == ".md" else target)

    return _with_links(page, resolve)


def _with_links(page: str, resolve: Callable[[str], str]) -> str:
    relative = r"\]\((?!https?:|path:|[/#])([^)#\s]+)"
    return re.sub(relative, lambda link: f"]({resolve(link[1])}", page)


def _hidden_toctree(pages: Sequence[str]) -> str:
    """Return a hidden toctree, which lists the pages only in the sidebar."""
    names = "\n".join(pages)
    return f"\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"


def _page(path: Path) -> str:
    return "index" if path.name == "README.md" else path.stem


_TITLES = {"bench": "Benchmarks"}
"""Titles of the folders without a README."""


def _contents(folder: Path, pages: dict[Path, str]) -> str:
    """Return a page that links the tables of a folder, described by the docstrings of their modules.

    A benchmark with a folder of its own is described by the docstring of its package.
    """
    lines = []
    for path in pages:
        module = path.with_suffix(".py")
        if not module.exists():
            module = path.with_suffix("") / "__init__.py"
        docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
        lines.append(
            f"- [{path.stem}]({path.name}): {docstring.partition(chr(10) * 2)[0].replace(chr(10), ' ')}"
        )
    return f"# {_TITLES[folder.name]}\n\n" + "\n".join(lines) + "\n"


_HEADINGS = {
    "modules": "Packages and modules",
    "names": "Classes, functions and constants",
    "fields": "Fields",
    "flags": "Flags",
    "arguments": "Arguments",
}


def renamed_page() -> str:
    """Return the page of names that version 0.2.0 changed."""
    tables = json.loads((ROOT / "tests" / "renamed.json").read_text(encoding="utf-8"))
    parts = ["# Renamed names", "Version 0.2.0 renamed the following names. Old names have no aliases."]
    for key, heading in _HEADINGS.items():
        rows = "\n".join(f"| `{old}` | `{new}` |" for old, new in tables[key].items())
        parts += [f"## {heading}", f"| before | now |\n| --- | --- |\n{rows}"]
    return "\n\n".join(parts) + "\n"
