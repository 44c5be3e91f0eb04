"""The Wikipedia tool on answers of a local server."""

import json
from urllib.parse import parse_qs, urlsplit

import pytest

from scrubjay.agents.tools import web_search

from .asking import ask


def test_wikipedia_gives_introductions_and_sources(serve, monkeypatch):
    pages = [
        {
            "index": 2,
            "title": "Acorn",
            "fullurl": "https://en.wikipedia.org/wiki/Acorn",
            "extract": "x" * 3000,
        },
        {
            "index": 1,
            "title": "Scrub jay",
            "fullurl": "https://en.wikipedia.org/wiki/Jay",
            "extract": "A bird.",
        },
    ]
    replies = {"jay": {"query": {"pages": pages}}, "nothing": {"batchcomplete": True}}
    replies["bad"] = {"error": {"info": "no such action"}}

    def api(handler):
        query = parse_qs(urlsplit(handler.path).query)["gsrsearch"][0]
        handler.answer("application/json", json.dumps(replies[query]).encode())

    site = serve({"/api": api, "/page": ("text/html", b"<html>"), "/": ("text/html", b"")})
    monkeypatch.setattr(web_search, "API", site.url + "api")
    answer = ask("wikipedia", query="jay")
    assert answer.content.startswith("Scrub jay\nhttps://en.wikipedia.org/wiki/Jay\nA bird.\n\nAcorn")
    assert answer.content.endswith("x [...]")
    assert answer.artifact["urls"] == [page["fullurl"] for page in reversed(pages)]
    assert ask("wikipedia", "zh", query="nothing").content == "没有找到条目。"
    assert "no such action" in ask("wikipedia", query="bad").content
    monkeypatch.setattr(web_search, "API", site.url + "page")
    assert "not JSON" in ask("wikipedia", query="jay").content
    assert ask("wikipedia", query=" ").status == "error"


@pytest.mark.parametrize(
    "reply",
    [
        {"query": 5},
        {"query": {"pages": [5]}},
        {"query": {"pages": [{"title": 5}]}},
        {"query": {"pages": [{"title": "x", "extract": []}]}},
        {"query": {"pages": [{"title": "x", "index": "a"}, {"title": "y", "index": 1}]}},
        {"error": []},
    ],
)
def test_an_answer_of_another_form_is_explained(serve, monkeypatch, reply):
    site = serve({"/api": ("application/json", json.dumps(reply).encode())})
    monkeypatch.setattr(web_search, "API", site.url + "api")
    answer = ask("wikipedia", query="jay")
    assert answer.status == "error"
    assert "an answer of another form" in answer.content
