"""Description of each page in its head, which search engines and chat programs show below the title."""

from __future__ import annotations

import html
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

_LONGEST = 160
"""Number of characters that search engines show."""


def add_description(
    app: Sphinx, page: str, template: str, context: dict[str, Any], document: nodes.document | None
) -> None:
    """Add the first paragraph of a page to its head."""
    text = describe(document) if document is not None else ""
    if text:
        tag = f'<meta name="description" content="{html.escape(text)}">\n'
        context["metatags"] = context.get("metatags", "") + tag


def describe(document: nodes.document) -> str:
    """Return the first paragraph, if possible outside tables and lists, cut at a word; empty for none."""
    paragraphs = [one for one in document.findall(nodes.paragraph) if len(one.astext().split()) > 3]
    if not paragraphs:
        return ""
    first = next((one for one in paragraphs if isinstance(one.parent, nodes.section)), paragraphs[0])
    text = " ".join(first.astext().split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1].rpartition(" ")[0] + "…"
