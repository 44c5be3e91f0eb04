"""HTML pages: one file that loads no other resources and runs no text of other people."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_ESCAPES = str.maketrans({letter: f"\\u{ord(letter):04x}" for letter in "<>&'"})
_HEIGHT = 760
"""Height of a page in a notebook, in CSS pixels."""


def render_document(name: str, data: str, styles: Sequence[str] = ("page",)) -> str:
    """Return the HTML page `name` with its data, a JSON text.

    The data are untrusted. The page holds them as JSON with all markup characters escaped. The script adds
    them as text nodes. The content security policy of the page allows only that script, by its hash.
    """
    style, script = "".join(_read(f"{one}.css") for one in styles), _read(f"{name}.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    # The data are inserted last, so that placeholders in their text are not replaced.
    document = _read(f"{name}.html").replace("@policy@", policy).replace("@style@", style)
    return document.replace("@script@", script).replace("@data@", data.translate(_ESCAPES))


def render_frame(document: str) -> str:
    """Return a sandboxed iframe with the page, for a notebook; the page cannot access the notebook."""
    return (
        f'<iframe sandbox="allow-scripts" width="100%" height="{_HEIGHT}" style="border: 0" '
        f'srcdoc="{html.escape(document)}"></iframe>'
    )


@cache
def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
