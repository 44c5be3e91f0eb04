"""Tables of results and of speed as pages of the site, and links between what is on it and what is not."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
_ROOMS = {ROOT / "experiments" / name: name for name in ("results", "bench")}


def write_measured(made: Path) -> None:
    """Write a folder for each room of tables into the folder of made pages."""
    for room, name in _ROOMS.items():
        (made / name).mkdir()
        pages = {path: path.read_text(encoding="utf-8") for path in sorted(room.glob("*.md"))}
        if room / "README.md" not in pages:
            pages[room / "README.md"] = _contents(room, pages)
        others = "\n".join(_page(path) for path in pages if path.name != "README.md")
        pages[room / "README.md"] += f"\n```{{toctree}}\n:hidden:\n\n{others}\n```\n"
        for path, text in pages.items():
            page = made / name / f"{_page(path)}.md"
            page.write_text(moved(text, room, made / name), encoding="utf-8")


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
        room = _ROOMS.get(path.parent)
        return f"path:{target}" if room is None else f"/made/{room}/{_page(path)}.md"

    return _with_links(page, led)


def _with_links(page: str, led: Callable[[str], str]) -> str:
    relative = r"\]\((?!https?:|path:|[/#])([^)#\s]+)"
    return re.sub(relative, lambda link: f"]({led(link[1])}", page)


def _page(path: Path) -> str:
    return "index" if path.name == "README.md" else path.stem


def _contents(room: Path, pages: dict[Path, str]) -> str:
    """Return a page that leads to the tables of a room, by what the modules that make them say they are."""
    lines = []
    for path in pages:
        told = ast.get_docstring(ast.parse(path.with_suffix(".py").read_text(encoding="utf-8"))) or ""
        lines.append(f"- [{path.stem}]({path.name}): {told.partition(chr(10) * 2)[0].replace(chr(10), ' ')}")
    return f"# {room.name.title()}\n\n" + "\n".join(lines) + "\n"
