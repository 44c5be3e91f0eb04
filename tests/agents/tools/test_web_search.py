"""The web search tool; a module in place of ddgs stands for the search engines, also in child processes."""

import pytest

from scrubjay.agents.tools import WebConfig, make_tools

from .asking import call

ENGINE = """
class DDGS:
    def __init__(self, timeout): pass
    def text(self, query, region, max_results):
"""


@pytest.fixture
def search(tmp_path, monkeypatch):
    """Return a function that searches with an engine whose method has this body."""

    def run(body, **limits):
        (tmp_path / "ddgs.py").write_text(f"{ENGINE}        {body}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr("scrubjay.agents.tools.web_search.run", Pool().run)
        (tool,) = make_tools(["web_search"], web=WebConfig(**limits))
        return call(tool, query="scrub jay", count=2)

    from scrubjay.agents.tools.processes import Pool

    return run


def test_hits_have_a_title_an_address_and_an_excerpt(search):
    hit = "{'title': query + region, 'href': 'http://jay.example/', 'body': 'x' * 10_000}"
    answer = search(f"return [{hit}] * max_results * 2")
    assert answer.content.startswith("1. scrub jayus-en\nhttp://jay.example/\nxxx")
    assert answer.artifact["urls"] == ["http://jay.example/"] * 2
    assert len(answer.content) < 2000


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('DNSError: error resolving DNS')", "unavailable (offline)"),
        ("raise RuntimeError('rate limit')", "rate limit"),
        ("import os; os._exit(3)", "exit status 3"),
        ("return 5", "an answer of another form"),
        ("return [5]", "an answer of another form"),
    ],
)
def test_an_engine_that_fails_is_explained(search, body, message):
    answer = search(body)
    assert answer.status == "error"
    assert message in answer.content


def test_no_results_are_no_error(search):
    assert search("raise RuntimeError('No results found.')").content == "Nothing was found; try other words."


def test_an_engine_that_hangs_is_ended(search):
    answer = search("while True: pass", total_seconds=0.5)
    assert "no search engine answered within 0.5 s" in answer.content
