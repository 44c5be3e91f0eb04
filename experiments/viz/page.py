"""HTML page of a trace; the page is one file and loads no other resources.

The text of a trace is untrusted. The page holds it as JSON with all markup characters escaped, the script
adds it as text nodes, and the content security policy of the page allows only that script, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import html
from functools import cache
from pathlib import Path

from scrubjay.experiments.viz.trace import Trace, to_json

_HERE = Path(__file__)
_ESCAPES = str.maketrans({letter: f"\\u{ord(letter):04x}" for letter in "<>&'"})
_HEIGHT = 760
"""Height of a page in a notebook, in CSS pixels."""


def render_page(trace: Trace) -> str:
    """Return the HTML page of a trace."""
    style, script = _read_part(".css"), _read_part(".js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    # The trace is inserted last, so that placeholders in its text are not replaced.
    document = (
        _read_part(".html").replace("@policy@", policy).replace("@style@", style).replace("@script@", script)
    )
    return document.replace("@trace@", to_json(trace).translate(_ESCAPES))


def render_iframe(trace: Trace) -> str:
    """Return a sandboxed iframe with the page, for a notebook; the page cannot access the notebook."""
    return (
        f'<iframe sandbox="allow-scripts" width="100%" height="{_HEIGHT}" style="border: 0" '
        f'srcdoc="{html.escape(render_page(trace))}"></iframe>'
    )


@cache
def _read_part(ending: str) -> str:
    return _HERE.with_suffix(ending).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
