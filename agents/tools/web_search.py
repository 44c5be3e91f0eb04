"""Web search by ddgs, which asks several engines and needs no key."""

from __future__ import annotations

from scrubjay.agents.tools.base import Answer, Mistaken, Unreachable
from scrubjay.agents.tools.spec import Argument, Around, Bilingual, ToolSpec
from scrubjay.agents.tools.web import within

MOST_CHARACTERS = 500
"""Of one hit's excerpt."""


def _run(around: Around, query: str, count: int) -> Answer:
    if not query.strip():
        raise Mistaken("search_empty")
    if not 1 <= count <= 20:
        raise Mistaken("search_count", most=20, count=count)
    from ddgs import DDGS
    from ddgs.exceptions import DDGSException

    limits = around.web.config
    search = DDGS(timeout=max(1, int(limits.read_seconds)))
    region = around.say("us-en", "cn-zh")
    try:
        hits = within(limits.total_seconds, lambda: search.text(query, region=region, max_results=count))
    except TimeoutError:
        raise Unreachable("search_late", offline=False, seconds=f"{limits.total_seconds:g}") from None
    except DDGSException as error:
        # One exception for all: no network, limits of the engines, and nothing found.
        said = str(error)
        if "no results" in said.lower():
            hits = []
        else:
            named = "dns" in said.lower() or "connect" in said.lower()
            if named:
                raise Unreachable("search_unreachable") from error
            raise Unreachable("search_failed", offline=False, error=said[:200]) from error
    if not hits:
        return Answer(
            around.say("Nothing was found; try other words.", "没有找到结果，请换词再试。"), data=[]
        )
    data = [
        {
            "title": hit.get("title", ""),
            "url": hit.get("href", ""),
            "text": hit.get("body", "")[:MOST_CHARACTERS],
        }
        for hit in hits[:count]
    ]
    blocks = [f"{number}. {hit['title']}\n{hit['url']}\n{hit['text']}" for number, hit in enumerate(data, 1)]
    return Answer("\n\n".join(blocks), tuple(hit["url"] for hit in data), data)


WEB_SEARCH = ToolSpec(
    name="web_search",
    zh_name="网页搜索",
    about=Bilingual(
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
