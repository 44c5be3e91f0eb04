"""Read a web page: its main text, or the passages that bear on a question."""

from __future__ import annotations

import re
from collections import Counter

from scrubjay.agents.tools.base import Answer, Mistaken
from scrubjay.agents.tools.spec import Argument, Around, Bilingual, ToolSpec

MOST_CHARACTERS = 6000
"""Of page text in one answer."""

_WORDS = re.compile(r"[\u3400-\u9fff]|[^\W_]+")


def _run(around: Around, url: str, question: str | None, start: int) -> Answer:
    if start < 0:
        raise Mistaken("page_start", start=start)
    page = around.web.get(url)
    if page.content_type in ("text/html", "application/xhtml+xml"):
        import trafilatura

        text = trafilatura.extract(page.content if page.charset is None else page.text, url=page.url) or ""
    else:
        text = page.text
    text = text.strip()
    if not text:
        return Answer(
            around.say(f"{page.url} has no text to read.", f"{page.url} 没有可读的正文。"), (page.url,), ""
        )
    if start >= len(text):
        raise Mistaken("page_end", characters=len(text), start=start)
    rest = text[start:]
    shown = choose(rest, question, MOST_CHARACTERS, around.say("[passages left out]", "[此处略去]"))
    if page.truncated:
        shown += around.say("\n[the page is longer than what was read]", "\n[网页过长，仅读取前部]")
    if len(rest) > MOST_CHARACTERS and not question:
        end = start + len(shown_until(rest, MOST_CHARACTERS))
        shown += around.say(
            f"\n[{len(text) - end} characters follow; read on with start={end}]",
            f"\n[后面还有 {len(text) - end} 字；用 start={end} 继续]",
        )
    return Answer(f"{page.url}\n{shown}", (page.url,), {"characters": len(text)})


def shown_until(text: str, most: int) -> str:
    """Return the beginning of a text that fits, up to the end of a line where one is near."""
    if len(text) <= most:
        return text
    cut = text.rfind("\n", most // 2, most)
    return text[: cut + 1 if cut > 0 else most]


def choose(text: str, question: str | None, most: int, gap: str) -> str:
    """Return the passages that share most words with the question, in order, `gap` for what is between.

    Without a question, or if nothing is shared, the beginning. Words count by how few passages have them.
    """
    if len(text) <= most or not question:
        return shown_until(text, most)
    passages = [piece for line in text.splitlines() if line.strip() for piece in _pieces(line, most // 4)]
    words = [set(_WORDS.findall(passage.lower())) for passage in passages]
    asked = set(_WORDS.findall(question.lower()))
    spread = Counter(word for found in words for word in asked & found)
    scores = [sum(1 / spread[word] for word in asked & found) for found in words]
    if not any(scores):
        return shown_until(text, most)
    taken, room = set(), most
    for index in sorted(range(len(passages)), key=lambda index: -scores[index]):
        if not scores[index]:
            break
        if len(passages[index]) <= room:
            taken.add(index)
            room -= len(passages[index]) + len(gap) + 2
    shown: list[str] = []
    for index, passage in enumerate(passages):
        if index in taken:
            shown.append(passage)
        elif not shown or shown[-1] != gap:
            shown.append(gap)
    return "\n".join(shown)


def _pieces(line: str, most: int) -> list[str]:
    return [line[first : first + most] for first in range(0, len(line), most)]


BROWSE = ToolSpec(
    name="browse",
    zh_name="浏览网页",
    about=Bilingual(
        "Read the main text of a web page; with a question, only the passages that bear on it.",
        "读取网页正文；给出问题时只返回相关段落。",
    ),
    arguments=(
        Argument("url", str, Bilingual("address of the page, http:// or https://", "网址"), address=True),
        Argument(
            "question", str | None, Bilingual("what to look for in it", "要在网页中查找的问题（可选）"), None
        ),
        Argument("start", int, Bilingual("character to read on from", "从第几个字开始读"), 0),
    ),
    run=_run,
    side_effect=False,
    network=True,
    packages=("trafilatura",),
)
