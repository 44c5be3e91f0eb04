"""The browse tool on pages of a local server."""

import pytest

from scrubjay.agents.tools.browse import select_passages

from .asking import ask


def article(*paragraphs, charset=""):
    body = "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    return f"<html><head>{charset}<title>Jays</title><script>track()</script></head><body><nav>Home</nav>\
<article>{body}</article></body></html>"


JAY = "Scrub jays hide thousands of acorns every autumn and remember for months where each of them lies. " * 3


MOON = "The moon was full above the oaks while nobody in the whole valley was awake to look up at it. " * 3


@pytest.mark.requires("trafilatura")
def test_a_page_becomes_its_text(serve):
    site = serve({"/": ("text/html", article(JAY, MOON).encode()), "/raw": ("text/plain", b"plain words")})
    answer = ask("browse", url=site.url)
    assert answer.content.startswith(site.url)
    assert JAY.strip() in answer.content
    assert "track()" not in answer.content
    assert answer.artifact["urls"] == [site.url]
    assert ask("browse", url=site.url + "raw").content == f"{site.url}raw\nplain words"


@pytest.mark.requires("trafilatura")
def test_a_chinese_page_names_its_own_encoding(serve):
    text = "松鸦把橡子藏在许多地方，并且记得每一处的位置和时间，几个月以后仍然能够准确地找到它们。" * 5
    page = article(text, charset='<meta charset="gbk">').encode("gbk")
    site = serve({"/": ("text/html", page)})
    assert text in ask("browse", "zh", url=site.url).content


def test_a_long_page_is_read_on(serve):
    text = "\n".join(f"line {number} " + "word " * 20 for number in range(200)).strip()
    site = serve({"/": ("text/plain", text.encode())})
    text_so_far, start = "", 0
    while True:
        content = ask("browse", url=site.url, start=start).content.removeprefix(site.url + "\n")
        body, note, rest = content.rpartition("\n[")
        if not note:
            break
        text_so_far += body
        start = int(rest.partition("start=")[2].removesuffix("]"))
        assert start == len(text_so_far)
    assert text_so_far + content == text
    late = ask("browse", url=site.url, start=10**6)
    assert late.status == "error"
    assert f"the page has {len(text)} characters" in late.content


def test_a_question_chooses_passages_in_order_and_shows_what_is_left_out():
    filler = [f"Paragraph {number} is about something else entirely." for number in range(50)]
    text = "\n".join(
        [*filler[:25], "The jay hides acorns.", *filler[25:], "An acorn is found again by the jay."]
    )
    excerpt = select_passages(text, "where does the jay hide acorns", 200, "[...]")
    assert excerpt == "[...]\nThe jay hides acorns.\n[...]\nAn acorn is found again by the jay."
    beginning = "\n".join(filler[:2]) + "\n"
    assert (
        select_passages(text, "松鸦", 100, "[...]") == select_passages(text, None, 100, "[...]") == beginning
    )
    chinese = "\n".join(["天气很好。"] * 30 + ["松鸦把橡子藏起来。"] + ["天气很好。"] * 30)
    assert "松鸦把橡子藏起来" in select_passages(chinese, "松鸦藏什么", 60, "[...]")


@pytest.mark.requires("trafilatura")
def test_a_page_without_text_says_so(serve):
    site = serve({"/": ("text/html", b"<html><body></body></html>")})
    assert "has no text" in ask("browse", url=site.url).content
