"""Tutorials as notebooks to download, without outputs."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from myst_nb.core.read import read_myst_markdown_notebook
from tables import ROOT

TUTORIALS = ROOT / "docs" / "tutorials"
_MARK = "file_format: mystnb"  # marks an executed page
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]+\)")
_TITLE = re.compile(r"^# .*$", re.MULTILINE)


def write_notebooks(folder: Path) -> None:
    """Write a notebook of each tutorial into a new folder."""
    folder.mkdir()
    for path in sorted(TUTORIALS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if _MARK in text:
            nbformat.write(to_notebook(text), folder / f"{path.stem}.ipynb")


def to_notebook(text: str) -> nbformat.NotebookNode:
    """Return a tutorial as a notebook. Links to other pages become plain text."""
    result = read_myst_markdown_notebook(text)
    for cell in result.cells:
        cell.metadata.clear()  # tags for the site
        if cell.cell_type == "markdown":
            cell.source = _LINK.sub(r"\1", cell.source)
    return result


def add_download_link(text: str, page: str) -> str:
    """Add a link to the notebook below the title of a tutorial. Other pages stay unchanged."""
    if _MARK not in text:
        return text
    path = f"../generated/notebooks/{page.rpartition('/')[2]}.ipynb"
    link = f"[Download this page as a notebook](path:{path})"
    return _TITLE.sub(lambda title: f"{title[0]}\n\n{link}", text, count=1)
