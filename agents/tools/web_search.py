"""Search the web with ddgs, and search Wikipedia."""

from __future__ import annotations

import json
from urllib.parse import urlencode

from scrubjay.agents.language.address import RequestError
from scrubjay.agents.tools.base import ToolArgumentError, ToolResult, UnreachableError
from scrubjay.agents.tools.processes import ChildError, run
from scrubjay.agents.tools.spec import ToolContext, ToolSpec
from scrubjay.agents.tools.web import expect_format

MAX_CHARACTERS = 500
"""Maximum characters of an excerpt."""
MAX_ARTICLE_CHARACTERS = 2000
"""Maximum characters of an article of Wikipedia."""
API = "https://{language}.wikipedia.org/w/api.php"


def _search(context: ToolContext, query: str, count: int = 5) -> ToolResult:
    _check(query, count, 20, "search_empty")
    limits = context.web.config
    region, seconds = context.say("us-en", "cn-zh"), max(1, int(limits.read_seconds))
    options = {"query": query, "region": region, "count": count, "seconds": seconds}
    try:
        hits = json.loads(run("search_web", seconds=limits.total_seconds, options=options))
    except ChildError as error:
        # ddgs raises one exception for all causes: no network, rate limits, and no results.
        message = str(error)
        if error.kind == "TimeoutError":
            seconds_text = f"{limits.total_seconds:g}"
            raise UnreachableError("search_late", offline=False, seconds=seconds_text) from None
        if "no results" in message.lower():
            hits = []
        else:
            is_offline = "dns" in message.lower() or "connect" in message.lower()
            if is_offline:
                raise UnreachableError("search_unreachable") from error
            raise UnreachableError("search_failed", offline=False, error=message[:200]) from error
    with expect_format():
        data = [
            {
                "title": _cut(str(hit.get("title", "")), MAX_CHARACTERS),
                "url": str(hit.get("href", "")),
                "text": _cut(str(hit.get("body", "")), MAX_CHARACTERS),
            }
            for hit in hits[:count]
        ]
    heads = [f"{number}. {hit['title']}" for number, hit in enumerate(data, 1)]
    return _to_result(
        data, heads, context.say("Nothing was found; try other words.", "没有找到结果，请换词再试。")
    )


WEB_SEARCH = ToolSpec(
    name="web_search",
    zh_name="网页搜索",
    description=(
        "Search the web: titles, addresses and excerpts. Open an address with browse for more.",
        "搜索网页，返回标题、网址与摘要；需要详情时用 browse 打开网址。",
    ),
    arguments={
        "query": ("what to search for", "搜索词"),
        "count": ("how many hits, 1 to 20", "结果数，1 至 20"),
    },
    run=_search,
    side_effect=False,
    network=True,
    packages=("ddgs",),
)


def _look_up(context: ToolContext, query: str, count: int = 2) -> ToolResult:
    _check(query, count, 5, "wiki_empty")
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
    address = f"{API.format(language=context.language)}?{urlencode(parameters)}"
    response = context.web.get(address).read_json()
    with expect_format():
        if "error" in response:
            error = str(response["error"].get("info", response["error"]))
            raise RequestError("wiki_refuses", error=_cut(error, MAX_CHARACTERS))
        pages = response.get("query", {}).get("pages", [])
        articles = sorted(pages, key=lambda article: article.get("index", 0))
        data = [
            {
                "title": _cut(article["title"], MAX_CHARACTERS),
                "url": str(article.get("fullurl", "")),
                "text": _cut(article.get("extract", "").strip(), MAX_ARTICLE_CHARACTERS),
            }
            for article in articles[:count]
        ]
    titles = [article["title"] for article in data]
    return _to_result(data, titles, context.say("No article was found.", "没有找到条目。"))


def _check(query: str, count: int, most: int, empty: str) -> None:
    if not query.strip():
        raise ToolArgumentError(empty)
    if not 1 <= count <= most:
        raise ToolArgumentError("search_count", most=most, count=count)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + " [...]"


def _to_result(data: list[dict[str, str]], heads: list[str], nothing: str) -> ToolResult:
    blocks = [f"{head}\n{hit['url']}\n{hit['text']}" for head, hit in zip(heads, data, strict=True)]
    return ToolResult("\n\n".join(blocks) or nothing, tuple(hit["url"] for hit in data), data)


WIKIPEDIA = ToolSpec(
    name="wikipedia",
    zh_name="维基百科",
    description=(
        (
            "Look up Wikipedia: introductions of the best matching articles. Good for people, places, dates "
            "of birth."
        ),
        "查询维基百科条目简介，适合人物、地点、生卒日期等。",
    ),
    arguments={
        "query": ("a name or some words", "名称或关键词"),
        "count": ("how many articles, 1 to 5", "条目数，1 至 5"),
    },
    run=_look_up,
    side_effect=False,
    network=True,
)
