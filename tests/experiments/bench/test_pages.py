"""Benchmark of pages: opens each page in a browser and compares it with a page of the pictures only."""

import re

import pytest

from scrubjay.experiments.bench import pages
from scrubjay.experiments.viz.trace import Trace


@pytest.mark.slow
@pytest.mark.requires("playwright")
def test_each_page_is_compared_with_the_film_alone(capsys):
    if pages.chromium() is None:
        pytest.skip("no chromium")
    pages.main(pages.PagesBench(dancers=2, max_steps=5, rounds=1))
    output = capsys.readouterr().out
    assert "2 dancers, 5 steps, 5 pictures" in output
    for name in ("empty page", "pictures only", "episode page"):
        assert re.search(rf"^\| {name} \| \d+ ms \| [\d.]+x \| [\d,]+ \| [\d.]+x \|$", output, re.MULTILINE)
    assert "1.00x" in output


def test_a_film_is_every_picture_once():
    pictures = tuple(f"data:image/png;base64,{letters}" for letters in ("AAAA", "BBBB"))
    text = pages.render_pictures(Trace("policy", "film", (), pictures=pictures))
    assert re.findall(r'src="([^"]*)"', text) == list(pictures)


@pytest.mark.requires("playwright")
def test_without_a_browser_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(pages, "chromium", lambda: None)
    with pytest.raises(RuntimeError, match="set CHROMIUM"):
        pages.time_pages({"empty": pages.EMPTY}, 1)
