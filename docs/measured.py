"""Tables of results and of speed as pages of the site, and links between what is on it and what is not."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
_ROOMS = {ROOT / "experiments" / name: name for name in ("results", "bench")}
_PAGES = {
    ROOT / "README.md": "/index.md",
    ROOT / "CHANGELOG.md": "/made/changes.md",
    ROOT / "SECURITY.md": "/made/security.md",
    ROOT / "memory" / "README.md": "/made/memories/index.md",
}
"""What of the files outside of `docs` is a page, and which."""


def write_measured(made: Path) -> None:
    """Write a folder for each room of tables into the folder of made pages."""
    for room, name in _ROOMS.items():
        (made / name).mkdir()
        pages = {path: path.read_text(encoding="utf-8") for path in sorted(room.glob("*.md"))}
        if room / "README.md" not in pages:
            pages[room / "README.md"] = _contents(room, pages)
        pages[room / "README.md"] += _hidden([_page(path) for path in pages if path.name != "README.md"])
        for path, text in pages.items():
            page = made / name / f"{_page(path)}.md"
            page.write_text(moved(text, room, made / name), encoding="utf-8")


def write_others(made: Path) -> None:
    """Write notes on releases and on security, and the table of memories, whose names lead to their pages."""
    for name in ("CHANGELOG", "SECURITY"):
        path = ROOT / f"{name}.md"
        page = made / _PAGES[path].removeprefix("/made/")
        page.write_text(moved(path.read_text(encoding="utf-8"), ROOT, made), encoding="utf-8")
    room, folder = ROOT / "memory", made / "memories"
    text = moved((room / "README.md").read_text(encoding="utf-8"), room, folder)
    names = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    linked = re.sub(r"^\| `(\w+)` \|", r"| [`\1`](\1.rst) |", text, flags=re.MULTILINE)
    (folder / "index.md").write_text(linked + _hidden(sorted(names)), encoding="utf-8")


def moved(page: str, old: Path, new: Path) -> str:
    """Return a page that moves to another folder: its links lead where they led."""
    return _with_links(page, lambda target: os.path.relpath(old / target, new))


def on_site(page: str, folder: Path) -> str:
    """Return a page of this folder whose links to files that are pages here lead to these.

    Those to other files outside of `docs` give the files, which MyST would take for pages.
    """

    def led(target: str) -> str:
        path = (folder / target).resolve()
        if path.suffix != ".md" or (ROOT / "docs") in path.parents:
            return target
        if path.parent in _ROOMS:
            return f"/made/{_ROOMS[path.parent]}/{_page(path)}.md"
        return _PAGES.get(path, f"path:{target}")

    return _with_links(page, led)


def _with_links(page: str, led: Callable[[str], str]) -> str:
    relative = r"\]\((?!https?:|path:|[/#])([^)#\s]+)"
    return re.sub(relative, lambda link: f"]({led(link[1])}", page)


def _hidden(pages: Sequence[str]) -> str:
    """Return what lists pages in the margin alone."""
    listed = "\n".join(pages)
    return f"\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"


def _page(path: Path) -> str:
    return "index" if path.name == "README.md" else path.stem


def _contents(room: Path, pages: dict[Path, str]) -> str:
    """Return a page that leads to the tables of a room, by what the modules that make them say they are."""
    lines = []
    for path in pages:
        told = ast.get_docstring(ast.parse(path.with_suffix(".py").read_text(encoding="utf-8"))) or ""
        lines.append(f"- [{path.stem}]({path.name}): {told.partition(chr(10) * 2)[0].replace(chr(10), ' ')}")
    return f"# {room.name.title()}\n\n" + "\n".join(lines) + "\n"
