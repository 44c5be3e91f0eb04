"""Names of tools: one line per tool, chosen by English or Chinese name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal, get_args

from langchain_core.tools import BaseTool

from scrubjay.agents.tools.base import Language
from scrubjay.agents.tools.browse import BROWSE
from scrubjay.agents.tools.calculator import CALCULATOR
from scrubjay.agents.tools.calendar import CALENDAR
from scrubjay.agents.tools.holidays import HOLIDAYS
from scrubjay.agents.tools.lunar_date import LUNAR_DATE
from scrubjay.agents.tools.replay import Replay
from scrubjay.agents.tools.solar_terms import SOLAR_TERMS
from scrubjay.agents.tools.spec import Around, ToolSpec, build
from scrubjay.agents.tools.time_delta import TIME_DELTA
from scrubjay.agents.tools.weather import WEATHER
from scrubjay.agents.tools.web import Web, WebConfig
from scrubjay.agents.tools.web_search import WEB_SEARCH
from scrubjay.agents.tools.wikipedia import WIKIPEDIA

_SPECS: dict[str, ToolSpec] = {
    spec.name: spec
    for spec in (
        WEB_SEARCH,
        BROWSE,
        WIKIPEDIA,
        WEATHER,
        CALENDAR,
        HOLIDAYS,
        SOLAR_TERMS,
        LUNAR_DATE,
        TIME_DELTA,
        CALCULATOR,
    )
}


def list_tools(language: Language = "en") -> list[str]:
    """Return the names of all tools."""
    return [spec.zh_name if language == "zh" else spec.name for spec in _SPECS.values()]


def make_tools(
    names: Sequence[str] | Literal["auto", "notool"] = "auto",
    *,
    language: Language = "en",
    clock: Callable[[], datetime] | None = None,
    offline: bool = False,
    replay: Replay | str | os.PathLike[str] | None = None,
    web: WebConfig | None = None,
) -> list[BaseTool]:
    """Return tools by English or Chinese name, as langchain tools; `auto` is all, `notool` none.

    Args:
        names: Which; a name given twice makes one.
        language: Of descriptions and outputs.
        clock: Returns the present with its time zone; None for the machine's.
        offline: Leave network tools out of `auto`, unless there is a `replay`, whose recorded answers they
            then give; one that is named and has no recorded answer says that it is unavailable.
        replay: Where answers are recorded online, and from where they are given if the network fails.
        web: Limits of requests.

    Raises ValueError on an unknown name or language, and on a clock without time zone.
    """
    if language not in get_args(Language):
        raise ValueError(f"unknown language {language!r}; choose from {', '.join(get_args(Language))}")
    clock = clock or _now
    if clock().tzinfo is None:
        raise ValueError("clock must return datetimes with a time zone, such as datetime.now().astimezone()")
    recorded = replay if isinstance(replay, Replay) or replay is None else Replay(replay)
    around = Around(language, clock, Web(web), offline, recorded)
    words = [names] if isinstance(names, str) else list(names)
    chosen: dict[str, None] = {}
    for word in words:
        if word == "auto":
            mute = offline and recorded is None
            chosen |= dict.fromkeys(name for name, spec in _SPECS.items() if not (mute and spec.network))
        elif word != "notool":
            chosen[_resolve(word)] = None
    return [build(_SPECS[name], around) for name in chosen]


def _now() -> datetime:
    return datetime.now().astimezone()


def _resolve(word: str) -> str:
    for name, spec in _SPECS.items():
        if word in (name, spec.zh_name):
            return name
    known = list_tools() + list_tools("zh")
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown tool {word!r}; choose from {', '.join(known)}, auto, notool{hint}")
