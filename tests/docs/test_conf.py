"""The site is built from what is written, not from what it was built to before."""

from sphinx.project import Project


def test_what_a_build_leaves_in_docs_is_no_page(from_docs, tmp_path):
    """Or the second `make docs` would fail: nothing leads to such a page."""
    for left in ("site/_downloads/1f/README.md", "jupyter_execute/tutorials/own.ipynb"):
        (tmp_path / left).parent.mkdir(parents=True)
        (tmp_path / left).write_text("{}")
    (tmp_path / "index.md").write_text("# Here")
    project = Project(tmp_path, [".md", ".rst", ".ipynb"])
    assert project.discover(from_docs("conf").exclude_patterns) == {"index"}
