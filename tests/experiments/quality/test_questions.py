"""Figures of the pages of results: drawn from stored rows, small, and without a run."""

import shutil
from pathlib import Path

from scrubjay.experiments.quality import questions

from ..pictures import assert_picture

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "experiments" / "results"


def test_a_figure_is_drawn_from_its_rows_alone(tmp_path):
    shutil.copy(RESULTS / "outliers.jsonl", tmp_path)
    picture, drawing = questions.draw_figures(tmp_path, ["question-outliers"])
    assert_picture(picture)
    assert "share of the other values recalled" in drawing.read_text(encoding="utf-8")


def test_every_figure_is_stored_and_small():
    for name in questions.FIGURES:
        for ending in (".png", ".svg"):
            assert 0 < (RESULTS / f"{name}{ending}").stat().st_size < 2**20, name
