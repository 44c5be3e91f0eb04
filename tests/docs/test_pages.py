"""Generated pages of memories."""

import pytest

pytestmark = pytest.mark.requires("transformers")


@pytest.fixture(scope="module")
def pages(from_docs):
    return from_docs("pages")


def row(task, memory, seed, score, **more):
    source = {"command": "scrubjay compare", "file": "x.jsonl"}
    return {"task": task, "memory": memory, "seed": seed, "score": score} | source | more


def test_a_page_of_a_memory_has_its_differences_from_the_paper(pages):
    page = pages._memory("agalite", [])
    assert "Differs from the paper in\n-----" in page
    assert "   * - number in the denominator\n     - 1e-5 in the published code\n     - 1e-3\n" in page
    assert "gives the defaults" in pages.differences("mingru")


def test_a_page_of_a_memory_says_of_how_many_seeds(pages):
    page = pages._memory("gru", [row("a", "gru", 0, 0.5), *(row("b", "gru", seed, 1.0) for seed in range(2))])
    assert "0.50, 1 seed\n" in page
    assert "1.00 [1.00,\u00a01.00], 2 seeds\n" in page
