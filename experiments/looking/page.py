"""A trace as one page of HTML that loads nothing: what it holds is shown by a script of our own.

Text of a trace is data. It stands in the page as JSON without a letter that HTML could take for markup, the
script makes text nodes of it, and the page's policy runs no script but that one, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import html
from functools import cache
from pathlib import Path

from scrubjay.experiments.looking.trace import Trace, to_json

_HERE = Path(__file__)
_MARKUP = str.maketrans({letter: f"\\u{ord(letter):04x}" for letter in "<>&'"})
_HEIGHT = 760
"""Of a page in a notebook, in points."""


def page(trace: Trace) -> str:
    """Return the page that shows a trace."""
    style, script = _part(".css"), _part(".js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    # The trace comes last, so that what it holds is never looked through for a place.
    filled = _part(".html").replace("@policy@", policy).replace("@style@", style).replace("@script@", script)
    return filled.replace("@trace@", to_json(trace).translate(_MARKUP))


def framed(trace: Trace) -> str:
    """Return what shows the page within another, as in a notebook, of which it can touch nothing."""
    return (
        f'<iframe sandbox="allow-scripts" width="100%" height="{_HEIGHT}" style="border: 0" '
        f'srcdoc="{html.escape(page(trace))}"></iframe>'
    )


@cache
def _part(ending: str) -> str:
    return _HERE.with_suffix(ending).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
