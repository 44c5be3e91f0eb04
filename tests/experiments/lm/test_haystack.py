"""Tests of the haystack grid: each cell runs once, with its needle at the right depth."""

import pytest

from scrubjay.experiments.lm.haystack import HaystackOptions, cells, make_cell
from scrubjay.experiments.lm.needles import split_sentences, token_counter

pytestmark = pytest.mark.requires("transformers", "wonderwords")


@pytest.mark.slow
def test_the_grid_is_filled_once(run, rows):
    flags = (
        "--lengths",
        100,
        200,
        "--depths",
        0,
        50,
        "--methods",
        "full",
        "window",
        "sinks",
        "--budget",
        32,
    )
    out = run("haystack", *flags)
    before = rows(out / "answers.jsonl")
    keys = {(row["length"], row["depth"], row["method"]) for row in before}
    assert len(before) == len(keys) == 2 * 2 * 3
    assert all(row["tokens"] <= row["length"] for row in before)
    assert (out / "map.png").stat().st_size > 1000
    after = rows(run("haystack", *flags, "--samples", 2) / "answers.jsonl")
    assert after[: len(before)] == before
    assert len(after) == 2 * len(before)
    assert (out / "table.md").read_text().count("| needle, ") == 3


def test_cells_have_needles_where_they_say_and_differ_by_sample(model, text):
    _, tokenizer = model
    options = HaystackOptions(
        text=(text,), lengths=(300,), depths=(0.0, 50.0, 100.0), tasks=("needle", "single_1"), samples=2
    )
    sentences, count = split_sentences(text.read_text()), token_counter(tokenizer)
    examples = set()
    for cell in cells(options):
        example = make_cell(cell, sentences, count, seed=0)
        assert count(example) <= 300
        if cell.depth is not None:
            pieces = split_sentences(example.context)
            (place,) = [i for i, piece in enumerate(pieces) if "secret" in piece]
            assert place == round((len(pieces) - 1) * cell.depth / 100)
        examples.add((cell.task, cell.sample, example.references))
    assert len({references for _, _, references in examples}) == (3 + 1) * 2
