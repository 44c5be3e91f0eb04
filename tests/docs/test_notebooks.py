"""Tutorials to take along: notebooks of the same cells, which lead nowhere that is not taken along."""

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
    notebooks.write_notebooks(tmp_path / "taken")
    taken = {path.stem: nbformat.read(path, as_version=4) for path in (tmp_path / "taken").iterdir()}
    assert taken.keys() == NAMES
    for name, notebook in taken.items():
        nbformat.validate(notebook)
        written = (TUTORIALS / f"{name}.md").read_text(encoding="utf-8")
        fenced = re.findall(r"^```\{code-cell\} python\n(.*?)^```$", written, re.MULTILINE | re.DOTALL)
        cells = [re.sub(r"\A:tags: .*\n\n?", "", cell).rstrip() for cell in fenced]
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.source for cell in code] == cells
        assert not any(cell.outputs for cell in code)
        assert notebook.cells[0].source.startswith("# ")


def test_what_it_leads_to_is_taken_along_or_on_the_net(notebooks):
    page = "# A [b](c.md#d) [e](https://f.g)\n\n```{code-cell} python\nx[1](2)\n```\n"
    told, code = notebooks.notebook(page).cells
    assert told.source == "# A b [e](https://f.g)"
    assert code.source == "x[1](2)"


def test_tutorials_alone_offer_themselves(notebooks):
    page = "---\nfile_format: mystnb\n---\n\n# One\n\n# Two"
    offered = notebooks.offering(page, "tutorials/one")
    assert offered.count("](path:../made/notebooks/one.ipynb)") == 1
    assert offered.index("# One") < offered.index("one.ipynb") < offered.index("# Two")
    assert notebooks.offering("# One", "guide/one") == "# One"
