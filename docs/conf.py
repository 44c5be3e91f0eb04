"""Sphinx configuration of the site: written pages, generated pages and executed tutorials."""

import os
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from head import add_description
from markup import escape_bars
from names import NameOrCode, hide_exports, link_code, link_outside
from notebooks import add_download_link, write_notebooks
from pages import write_pages
from sphinx.application import Sphinx
from sphinx.ext import napoleon
from sphinx.ext.napoleon.docstring import GoogleDocstring
from tables import on_site

import scrubjay

project = "Scrubjay"
author = copyright = "Scrubjay's maintainers"
version = release = scrubjay.__version__
extensions = ["sphinx.ext.autodoc", "myst_nb"]
# Page of the package index, output of `make docs`, notebooks executed by myst-nb, notebooks to download.
exclude_patterns = ["package.md", "site", "jupyter_execute", "generated/notebooks"]
html_theme = "furo"
html_title = "Scrubjay"
html_static_path = ["static"]
html_css_files = ["tables.css"]
html_show_sourcelink = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Every tutorial is executed. An error in a tutorial fails the build.
nb_execution_mode = "force"
nb_execution_in_temp = True  # in an empty folder, as for a new user
nb_execution_raise_on_error = True
nb_execution_timeout = 400
nb_execution_excludepatterns = ["generated/*"]
nb_output_stderr = "remove"  # warnings contain paths of the build machine
os.environ.pop("MPLBACKEND", None)  # with a backend set, kernels show no figures
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"State": "~scrubjay.memory.State", "Observation": "~scrubjay.agents.Observation"}
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # else constructors have those of torch and gymnasium
autoclass_content = "both"  # the docstring of a class, then that of its constructor
python_maximum_signature_line_length = 90  # longer signatures have a line for each parameter
toc_object_entries_show_parents = "hide"
# Docstrings have code in single backticks. A name of the reference becomes a link.
default_role = "name-or-code"
_NAPOLEON: Any = napoleon.Config()
_OF_NAMED_TUPLES = ("Alias for field number", "Create new instance of")
"""Beginnings of docstrings that Python writes."""


def setup(app: Sphinx) -> None:
    """Generate pages before Sphinx reads its sources."""
    app.connect("config-inited", lambda app, _: _write(Path(app.srcdir) / "generated"))
    app.connect("autodoc-process-docstring", _process)
    app.connect("source-read", _replace_links)
    app.connect("doctree-read", link_code)
    app.connect("html-page-context", add_description)
    app.connect("env-updated", hide_exports)
    app.connect("missing-reference", link_outside)
    app.add_role("name-or-code", NameOrCode())


def _write(folder: Path) -> None:
    write_pages(folder)
    write_notebooks(folder / "notebooks")


def _process(app: Sphinx, what: Any, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Convert a docstring to reStructuredText. Attributes are excluded: napoleon reads "a: b" as a type."""
    escape_bars(lines)
    if what not in ("attribute", "property"):
        lines[:] = [line for line in lines if not line.startswith(_OF_NAMED_TUPLES)]
        lines[:] = GoogleDocstring(lines, _NAPOLEON, app, what, name, thing, options).lines()


def _replace_links(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace links to files outside `docs` by links to pages of the site or to copies of the files."""
    text = on_site(add_download_link(source[0], page), (Path(app.srcdir) / page).parent)
    # An interval in a table stays on one line.
    source[0] = re.sub(r"(-?\d[\d.]*) \[(-?\d[\d.]*), (-?\d[\d.]*)\]", "\\1\u00a0[\\2,\u00a0\\3]", text)
