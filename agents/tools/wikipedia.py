"""Look up Wikipedia: the introductions of the articles that answer a search best."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from scrubjay.agents.language.address import Refused
from scrubjay.agents.tools.base import Answer, Mistaken
from scrubjay.agents.tools.spec import Argument, Around, Bilingual, ToolSpec
from scrubjay.agents.tools.web import Page

API = "https://{language}.wikipedia.org/w/api.php"
MOST_CHARACTERS = 2000
"""Of one article."""


def read_json(page: Page) -> Any:
    """Return the JSON of a page. Raises Refused if it is something else."""
    try:
        return json.loads("" if page.truncated else page.text)
    except ValueError:
        raise Refused("web_not_json") from None


def _run(around: Around, query: str, count: int) -> Answer:
    if not query.strip():
        raise Mistaken("wiki_empty")
    if not 1 <= count <= 5:
        raise Mistaken("search_count", most=5, count=count)
    asked = {
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
    if around.language == "zh":
        asked["variant"] = "zh-cn"
    found = read_json(around.web.get(f"{API.format(language=around.language)}?{urlencode(asked)}"))
    if "error" in found:
        raise Refused("wiki_refuses", error=found["error"].get("info", found["error"]))
    articles = sorted(found.get("query", {}).get("pages", []), key=lambda article: article.get("index", 0))
    data = [
        {
            "title": article["title"],
            "url": article.get("fullurl", ""),
            "text": _cut(article.get("extract", "").strip()),
        }
        for article in articles[:count]
    ]
    if not data:
        return Answer(around.say("No article was found.", "没有找到条目。"), data=[])
    blocks = [f"{article['title']}\n{article['url']}\n{article['text']}" for article in data]
    return Answer("\n\n".join(blocks), tuple(article["url"] for article in data), data)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " [...]"


WIKIPEDIA = ToolSpec(
    name="wikipedia",
    zh_name="维基百科",
    about=Bilingual(
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
