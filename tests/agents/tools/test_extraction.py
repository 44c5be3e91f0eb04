"""Text of pages through the browse tool: honest pages keep their text, hostile ones end within the limits."""

import random

import pytest

from scrubjay.agents.tools import processes
from scrubjay.agents.tools.extraction import TASKS
from scrubjay.agents.tools.web import Page, Web

from .asking import ask
from .test_browse import JAY, MOON, article

SIZE = 1_900_000


def repeat(piece):
    return (piece * (SIZE // len(piece))).encode()


def mix():
    draw = random.Random(1)
    pieces = [
        "<div>",
        "</div>",
        "<p>",
        "<b>",
        "</table>",
        "<table>",
        "<td>",
        "text ",
        "<a href=x>",
        "<!--",
        "-->",
    ]
    return "".join(draw.choice(pieces) for _ in range(SIZE // 5)).encode()


HOSTILE = {
    "list items": repeat("<li>item one"),
    "comments": repeat('<div class="comment" id="comments">a b c d</div>'),
    "line breaks": repeat("<br>"),
    "table cells": repeat("<td>x"),
    "NUL": repeat("\0<p>x"),
    "crossed tags": repeat("<b><p></b>"),
    "nested tags": repeat("<ul><li>"),
    "dates": repeat('<time datetime="2024-01-02">2 Jan 2024</time> '),
    "authors": repeat('<span class="author byline">by John Smith Johnson</span>'),
    "JSON": b'<script type="application/ld+json">' + repeat('{"a":') + b"</script><p>hello",
    "attributes": b"<a " + " ".join(f"a{number}=1" for number in range(SIZE // 9)).encode() + b">x</a>",
    "mixture": mix(),
}


def browse(monkeypatch, content, charset=None):
    page = Page("http://jay.example/", "text/html", charset, content, False)
    monkeypatch.setattr(Web, "get", lambda *_: page)
    return ask("browse", url="http://jay.example/")


@pytest.mark.one_in(4)
@pytest.mark.slow
@pytest.mark.requires("trafilatura")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_page_ends_with_a_text_or_an_explanation(name, monkeypatch):
    answer = browse(monkeypatch, HOSTILE[name])
    if answer.status == "error":
        assert "the text of http://jay.example/ cannot be read: it took more than" in answer.content
    else:
        assert answer.content.startswith("http://jay.example/")


@pytest.mark.requires("trafilatura")
def test_a_page_whose_main_text_takes_too_long_gives_all_its_text(monkeypatch):
    run = processes.run

    def run_briefly(task, *arguments, **options):
        limits = {"seconds": 0.2} if task == "extract_main_text" else {}
        return run(task, *arguments, **options, **limits)

    monkeypatch.setattr("scrubjay.agents.tools.browse.run", run_briefly)
    content = browse(monkeypatch, b"<html><body>" + b"<li>item one" * 16_000).content
    assert "item one" in content
    assert "[the text of the whole page, since its main text could not be found within the limits]" in content


@pytest.mark.requires("trafilatura")
def test_a_page_that_no_parser_can_read_is_an_explained_error(monkeypatch):
    def fail(task, *_, **__):
        raise processes.ChildError("child_failed", kind="ValueError", error=f"ValueError: {task}")

    monkeypatch.setattr("scrubjay.agents.tools.browse.run", fail)
    answer = browse(monkeypatch, b"<p>x")
    assert answer.status == "error"
    assert "the text of http://jay.example/ cannot be read: ValueError: extract_all_text" in answer.content


@pytest.mark.requires("trafilatura")
@pytest.mark.parametrize("charset", [None, "utf_8", "gbk", "latin_1", "utf_16"])
def test_an_honest_page_keeps_its_main_text_in_every_charset(charset, monkeypatch):
    page = article(JAY, MOON, charset='<meta charset="utf-8">')
    content = browse(monkeypatch, page.encode(charset or "utf-8"), charset).content
    assert JAY.strip() in content
    assert MOON.strip() in content
    assert "Home" not in content


def test_every_task_names_its_package():
    assert {package for _, package in TASKS.values()} == {"trafilatura", "ddgs"}
