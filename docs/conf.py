"""How `make docs` builds the site: pages by hand, pages from the registries, tutorials that are run."""

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from measured import on_site
from notebooks import offering, write_notebooks
from pages import escape_bars, write_pages
from sphinx.application import Sphinx
from sphinx.ext import napoleon
from sphinx.ext.napoleon.docstring import GoogleDocstring

import scrubjay

project = "Scrubjay"
author = copyright = "Scrubjay's maintainers"
version = release = scrubjay.__version__
extensions = ["sphinx.ext.autodoc", "myst_nb"]
# What a package index shows; where `make docs` leaves the site, and myst-nb the notebooks that it has run;
# notebooks to take along.
exclude_patterns = ["package.md", "site", "jupyter_execute", "made/notebooks"]
html_theme = "furo"
html_title = "Scrubjay"
html_static_path = ["static"]
html_css_files = ["tables.css"]
html_show_sourcelink = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Tutorials are run where they stand still as notebooks; what fails in one fails the build.
nb_execution_mode = "force"
nb_execution_in_temp = True  # in a folder that is empty, as for somebody new
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_execution_excludepatterns = ["made/*"]
nb_output_stderr = "remove"  # warnings, which name folders of the machine that builds
os.environ.pop("MPLBACKEND", None)  # or a kernel would draw figures and show none
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Docstrings have code in single backticks.
default_role = "code"
_NAPOLEON: Any = napoleon.Config()


def setup(app: Sphinx) -> None:
    """Write the pages that are made, before the others are read."""
    app.connect("config-inited", lambda app, _: _write(Path(app.srcdir) / "made"))
    app.connect("autodoc-process-docstring", _process)
    app.connect("source-read", _give_files)


def _write(made: Path) -> None:
    write_pages(made)
    write_notebooks(made / "notebooks")


def _process(app: Sphinx, what: Any, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Give docutils what it understands. Of attributes napoleon would take all before a colon for a type."""
    escape_bars(lines)
    if what not in ("attribute", "property"):
        lines[:] = GoogleDocstring(lines, _NAPOLEON, app, what, name, thing, options).lines()


def _give_files(app: Sphinx, page: str, source: list[str]) -> None:
    """Let links outside of `docs` lead to pages of the site where there are such, else give the files."""
    source[0] = on_site(offering(source[0], page), (Path(app.srcdir) / page).parent)
