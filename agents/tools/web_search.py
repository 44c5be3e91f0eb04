"""Web search with ddgs, which queries several engines and needs no API key."""

from __future__ import annotations

from scrubjay.agents.tools.base import ToolArgumentError, ToolResult, UnreachableError
from scrubjay.agents.tools.spec import Argument, Bilingual, ToolContext, ToolSpec
from scrubjay.agents.tools.web import run_with_timeout

MAX_CHARACTERS = 500
"""Maximum characters of an excerpt."""


def _run(context: ToolContext, query: str, count: int) -> ToolResult:
    if not query.strip():
        raise ToolArgumentError("search_empty")
    if not 1 <= count <= 20:
        raise ToolArgumentError("search_count", most=20, count=count)
    from ddgs import DDGS
    from ddgs.exceptions import DDGSException

    limits = context.web.config
    search = DDGS(timeout=max(1, int(limits.read_seconds)))
    region = context.say("us-en", "cn-zh")
    try:
        hits = run_with_timeout(
            limits.total_seconds, lambda: search.text(query, region=region, max_results=count)
        )
    except TimeoutError:
        raise UnreachableError("search_late", offline=False, seconds=f"{limits.total_seconds:g}") from None
    except DDGSException as error:
        # ddgs raises one exception for all causes: no network, rate limits, and no results.
        message = str(error)
        if "no results" in message.lower():
            hits = []
        else:
            is_offline = "dns" in message.lower() or "connect" in message.lower()
            if is_offline:
                raise UnreachableError("search_unreachable") from error
            raise UnreachableError("search_failed", offline=False, error=message[:200]) from error
    if not hits:
        return ToolResult(
            context.say("Nothing was found; try other words.", "没有找到结果，请换词再试。"), data=[]
        )
    data = [
        {
            "title": hit.get("title", ""),
            "url": hit.get("href", ""),
            "text": hit.get("body", "")[:MAX_CHARACTERS],
        }
        for hit in hits[:count]
    ]
    blocks = [f"{number}. {hit['title']}\n{hit['url']}\n{hit['text']}" for number, hit in enumerate(data, 1)]
    return ToolResult("\n\n".join(blocks), tuple(hit["url"] for hit in data), data)


WEB_SEARCH = ToolSpec(
    name="web_search",
    zh_name="网页搜索",
    description=Bilingual(
        "Search the web: titles, addresses and excerpts. Open an address with browse for more.",
        "搜索网页，返回标题、网址与摘要；需要详情时用 browse 打开网址。",
    ),
    arguments=(
        Argument("query", str, Bilingual("what to search for", "搜索词")),
        Argument("count", int, Bilingual("how many hits, 1 to 20", "结果数，1 至 20"), 5),
    ),
    run=_run,
    side_effect=False,
    network=True,
    packages=("ddgs",),
)
