"""Search Wikipedia and return the introductions of the articles that match best."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from scrubjay.agents.language.address import RequestError
from scrubjay.agents.tools.base import ToolArgumentError, ToolResult
from scrubjay.agents.tools.spec import Argument, Bilingual, ToolContext, ToolSpec
from scrubjay.agents.tools.web import Page

API = "https://{language}.wikipedia.org/w/api.php"
MAX_CHARACTERS = 2000
"""Maximum characters of one article."""


def read_json(page: Page) -> Any:
    """Return the JSON value of a page. Raises RequestError if the page is not JSON."""
    try:
        return json.loads("" if page.truncated else page.text)
    except ValueError:
        raise RequestError("web_not_json") from None


def _run(context: ToolContext, query: str, count: int) -> ToolResult:
    if not query.strip():
        raise ToolArgumentError("wiki_empty")
    if not 1 <= count <= 5:
        raise ToolArgumentError("search_count", most=5, count=count)
    parameters = {
        "action": "query",
        "format": "json",
        "formatversion": 2,
        "generator": "search",
        "gsrsearch": query,
        "gsrlimit": count,
        "prop": "extracts|info",
        "inprop": "url",
        "exintro": 1,
        "explaintext": 1,
        "exlimit": "max",
        "redirects": 1,
    }
    if context.language == "zh":
        parameters["variant"] = "zh-cn"
    response = read_json(context.web.get(f"{API.format(language=context.language)}?{urlencode(parameters)}"))
    if "error" in response:
        raise RequestError("wiki_refuses", error=response["error"].get("info", response["error"]))
    articles = sorted(response.get("query", {}).get("pages", []), key=lambda article: article.get("index", 0))
    data = [
        {
            "title": article["title"],
            "url": article.get("fullurl", ""),
            "text": _cut(article.get("extract", "").strip()),
        }
        for article in articles[:count]
    ]
    if not data:
        return ToolResult(context.say("No article was found.", "没有找到条目。"), data=[])
    blocks = [f"{article['title']}\n{article['url']}\n{article['text']}" for article in data]
    return ToolResult("\n\n".join(blocks), tuple(article["url"] for article in data), data)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " [...]"


WIKIPEDIA = ToolSpec(
    name="wikipedia",
    zh_name="维基百科",
    description=Bilingual(
        "Look up Wikipedia: introductions of the best matching articles. Good for people, places, dates of "
        "birth.",
        "查询维基百科条目简介，适合人物、地点、生卒日期等。",
    ),
    arguments=(
        Argument("query", str, Bilingual("a name or some words", "名称或关键词")),
        Argument("count", int, Bilingual("how many articles, 1 to 5", "条目数，1 至 5"), 2),
    ),
    run=_run,
    side_effect=False,
    network=True,
)
