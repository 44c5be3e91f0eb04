"""Notebooks of tutorials have the same cells and no links to other pages."""

import re
from pathlib import Path

import nbformat
import pytest

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
NAMES = {"own", "book", "agent", "team", "sweep"}


@pytest.fixture(scope="module")
def notebooks(from_docs):
    return from_docs("notebooks")


def test_every_tutorial_is_a_notebook_of_its_cells(notebooks, tmp_path):
    notebooks.write_notebooks(tmp_path / "out")
    by_name = {path.stem: nbformat.read(path, as_version=4) for path in (tmp_path / "out").iterdir()}
    assert by_name.keys() == NAMES
    for name, notebook in by_name.items():
        nbformat.validate(notebook)
        source = (TUTORIALS / f"{name}.md").read_text(encoding="utf-8")
        blocks = re.findall(r"^```\{code-cell\} python\n(.*?)^```$", source, re.MULTILINE | re.DOTALL)
        cells = [re.sub(r"\A:tags: .*\n\n?", "", cell).rstrip() for cell in blocks]
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.source for cell in code] == cells
        assert not any(cell.outputs for cell in code)
        assert notebook.cells[0].source.startswith("# ")


def test_only_links_to_the_web_remain(notebooks):
    page = "# A [b](c.md#d) [e](https://f.g)\n\n```{code-cell} python\nx[1](2)\n```\n"
    prose, code = notebooks.to_notebook(page).cells
    assert prose.source == "# A b [e](https://f.g)"
    assert code.source == "x[1](2)"


def test_only_tutorials_have_a_download_link(notebooks):
    page = "---\nfile_format: mystnb\n---\n\n# One\n\n# Two"
    text = notebooks.add_download_link(page, "tutorials/one")
    assert text.count("](path:../generated/notebooks/one.ipynb)") == 1
    assert text.index("# One") < text.index("one.ipynb") < text.index("# Two")
    assert notebooks.add_download_link("# One", "guide/one") == "# One"
