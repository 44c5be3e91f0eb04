"""Tutorials as notebooks to take along: what is written, before it is run."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from measured import ROOT
from myst_nb.core.read import read_myst_markdown_notebook

TUTORIALS = ROOT / "docs" / "tutorials"
_MARK = "file_format: mystnb"  # of pages that are run
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]+\)")
_TITLE = re.compile(r"^# .*$", re.MULTILINE)


def write_notebooks(folder: Path) -> None:
    """Write a notebook of each tutorial into a new folder."""
    folder.mkdir()
    for path in sorted(TUTORIALS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if _MARK in text:
            nbformat.write(notebook(text), folder / f"{path.stem}.ipynb")


def notebook(text: str) -> nbformat.NotebookNode:
    """Return a tutorial as a notebook; links to other pages, which are not taken along, are their words."""
    made = read_myst_markdown_notebook(text)
    for cell in made.cells:
        cell.metadata.clear()  # tags that only the site reads
        if cell.cell_type == "markdown":
            cell.source = _LINK.sub(r"\1", cell.source)
    return made


def offering(text: str, page: str) -> str:
    """Return a tutorial whose title is followed by a link to its notebook; another page as it is."""
    if _MARK not in text:
        return text
    made = f"../made/notebooks/{page.rpartition('/')[2]}.ipynb"
    offer = f"[This page as a notebook](path:{made}), to run and to change."
    return _TITLE.sub(lambda title: f"{title[0]}\n\n{offer}", text, count=1)
