"""Output of an earlier build is not a source of the site."""

import pytest
from sphinx.project import Project


@pytest.mark.requires("transformers")
def test_output_of_a_build_is_no_page(from_docs, tmp_path):
    """The second `make docs` would fail, because no page links to the output."""
    for file in ("site/_downloads/1f/README.md", "jupyter_execute/tutorials/own.ipynb"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("{}")
    (tmp_path / "index.md").write_text("# Here")
    project = Project(tmp_path, [".md", ".rst", ".ipynb"])
    assert project.discover(from_docs("conf").exclude_patterns) == {"index"}
