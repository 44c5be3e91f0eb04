"""reStructuredText of the generated pages: titles, and docstrings and Markdown converted to it."""

from __future__ import annotations

import inspect
import re
from typing import Any


def title(text: str, under: str = "=") -> str:
    """Return a title, underlined."""
    return f"{text}\n{under * len(text)}"


def module_docstring(module: Any) -> str:
    """Return a module's docstring as reStructuredText."""
    return as_rst(inspect.getdoc(module) or "")


def as_rst(markdown: str) -> str:
    """Convert Markdown links to reStructuredText and link arXiv papers."""
    lines = markdown.splitlines()
    escape_bars(lines)
    text = re.sub(r"\[([^\]]+)\]\((https?://[^)]+)\)", r"`\1 <\2>`__", "\n".join(lines))
    return re.sub(r"\barXiv\s(\d{4}\.\d{5})\b", r"`arXiv \1 <https://arxiv.org/abs/\1>`__", text)


def escape_bars(lines: list[str]) -> None:
    """Escape bars outside code in place. docutils would read |x| as a substitution."""
    lines[:] = [re.sub(r"\|(?=[^`]*(?:`[^`]*`[^`]*)*$)", r"\\|", line) for line in lines]
