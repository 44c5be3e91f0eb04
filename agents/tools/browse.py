"""Read a web page: its main text, or the passages relevant to a question."""

from __future__ import annotations

import re
from collections import Counter

from scrubjay.agents.language.address import RequestError
from scrubjay.agents.tools.base import ToolArgumentError, ToolResult
from scrubjay.agents.tools.processes import ChildError, run
from scrubjay.agents.tools.spec import ToolContext, ToolSpec
from scrubjay.agents.tools.web import Page

MAX_CHARACTERS = 6000
"""Maximum characters of page text in one answer."""

_WORDS = re.compile(r"[\u3400-\u9fff]|[^\W_]+")


def _run(context: ToolContext, url: str, question: str | None = None, start: int = 0) -> ToolResult:
    if start < 0:
        raise ToolArgumentError("page_start", start=start)
    page = context.web.get(url)
    text, is_main = page.text, True
    if page.content_type in ("text/html", "application/xhtml+xml"):
        text, is_main = _extract_text(page)
    text = text.strip()
    if not text:
        return ToolResult(
            context.say(f"{page.url} has no text to read.", f"{page.url} 没有可读的正文。"), (page.url,), ""
        )
    if start >= len(text):
        raise ToolArgumentError("page_end", characters=len(text), start=start)
    rest = text[start:]
    excerpt = select_passages(
        rest, question, MAX_CHARACTERS, context.say("[passages left out]", "[此处略去]")
    )
    if not is_main:
        excerpt += context.say(
            "\n[the text of the whole page, since its main text could not be found within the limits]",
            "\n[整个网页的文字：未能在限额内提取正文]",
        )
    if page.truncated:
        excerpt += context.say("\n[the page is longer than what was read]", "\n[网页过长，仅读取前部]")
    if len(rest) > MAX_CHARACTERS and not question:
        end = start + len(truncate_at_line(rest, MAX_CHARACTERS))
        excerpt += context.say(
            f"\n[{len(text) - end} characters follow; read on with start={end}]",
            f"\n[后面还有 {len(text) - end} 字；用 start={end} 继续]",
        )
    return ToolResult(f"{page.url}\n{excerpt}", (page.url,), {"characters": len(text)})


def _extract_text(page: Page) -> tuple[str, bool]:
    """Return the main text of an HTML page and True.

    Return all text and False if the main text cannot be extracted within the limits of a child process.
    """
    content, is_utf8 = (page.content, False) if page.charset is None else (page.text.encode(), True)
    try:
        text = run("extract_main_text", content, url=page.url, is_utf8=is_utf8)
        return text.decode(), True
    except ChildError:
        pass
    try:
        return run("extract_all_text", content, is_utf8=is_utf8).decode(), False
    except ChildError as error:
        raise RequestError("page_unreadable", url=page.url, cause=error.phrase) from error


def truncate_at_line(text: str, most: int) -> str:
    """Return at most the first `most` characters of a text, cut at a line end if possible."""
    if len(text) <= most:
        return text
    cut = text.rfind("\n", most // 2, most)
    return text[: cut + 1 if cut > 0 else most]


def select_passages(text: str, question: str | None, most: int, gap: str) -> str:
    """Return the passages that share the most words with the question, in the order of the text.

    `gap` replaces omitted passages. The result has at most about `most` characters. The weight of a shared
    word is 1 divided by the number of passages that contain this word. Return the beginning of the text if
    there is no question or no shared word.
    """
    if len(text) <= most or not question:
        return truncate_at_line(text, most)
    size = most // 4
    passages = [
        line[first : first + size]
        for line in text.splitlines()
        if line.strip()
        for first in range(0, len(line), size)
    ]
    words = [set(_WORDS.findall(passage.lower())) for passage in passages]
    question_words = set(_WORDS.findall(question.lower()))
    spread = Counter(word for passage_words in words for word in question_words & passage_words)
    scores = [sum(1 / spread[word] for word in question_words & passage_words) for passage_words in words]
    if not any(scores):
        return truncate_at_line(text, most)
    selected_indices, remaining = set(), most
    for index in sorted(range(len(passages)), key=lambda index: -scores[index]):
        if not scores[index]:
            break
        if len(passages[index]) <= remaining:
            selected_indices.add(index)
            remaining -= len(passages[index]) + len(gap) + 2
    parts: list[str] = []
    for index, passage in enumerate(passages):
        if index in selected_indices:
            parts.append(passage)
        elif not parts or parts[-1] != gap:
            parts.append(gap)
    return "\n".join(parts)


BROWSE = ToolSpec(
    name="browse",
    zh_name="浏览网页",
    description=(
        "Read the main text of a web page; with a question, only the passages that bear on it.",
        "读取网页正文；给出问题时只返回相关段落。",
    ),
    arguments={
        "url": ("address of the page, http:// or https://", "网址"),
        "question": ("what to look for in it", "要在网页中查找的问题（可选）"),
        "start": ("character to read on from", "从第几个字开始读"),
    },
    run=_run,
    side_effect=False,
    network=True,
    packages=("trafilatura",),
    addresses=("url",),
)
